"""What normalises the hidden features of an attention: over samples, or each alone."""

from typing import Any

import jax
from flax import nnx

from dynconv_jax.functional.checks import check_choice
from dynconv_jax.initializers import promote_to_widest
from dynconv_jax.layers.batch_norm import BatchNorm

NORMS = ("batch", "layer", "none")


def attention_norm(
    norm: str, features: int, **options: Any
) -> BatchNorm | nnx.LayerNorm | None:
    """Returns a norm by its name; `"none"` is None.

    Args:
        norm: One of `NORMS`.
        features: The number of features.
        **options: `param_dtype` and `rngs`.

    Raises:
        ValueError: If the name is not known.

    Example:
        >>> attention_norm("layer", 16, rngs=nnx.Rngs(0)).num_features
        16
    """
    check_choice("norm", norm, NORMS)
    if norm == "batch":
        return BatchNorm(features, **options)
    if norm == "layer":
        return nnx.LayerNorm(
            features,
            epsilon=1e-5,
            use_fast_variance=False,
            promote_dtype=promote_to_widest,
            **options,
        )
    return None


def normalise(
    layer: BatchNorm | nnx.LayerNorm | None, features: jax.Array
) -> jax.Array:
    """Applies a norm to features (B, ..., H).

    Raises:
        ValueError: If a batch norm is training with one sample.

    Example:
        >>> float(normalise(None, jax.numpy.ones((2, 16))).mean())
        1.0
    """
    if layer is None:
        return features
    sizes = features.shape[:-1]
    is_one = all(isinstance(size, int) and size == 1 for size in sizes)
    if is_one and isinstance(layer, BatchNorm) and not layer.use_running_average:
        raise ValueError(
            "`norm` (='batch') normalises the attention over the samples, and in "
            "training a batch of one has no variance; build the layer with "
            "`norm='layer'` or `norm='none'`, or train with a larger batch"
        )
    # The layer norm of flax promotes its float64 with float32, asked or not.
    with jax.numpy_dtype_promotion("standard"):
        return layer(features)
