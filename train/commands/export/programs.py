"""A network as one function from pictures to probabilities, and as StableHLO."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynconv_jax import fold_batch_norm
from train.data.dataset import Domain
from train.errors import TrainError
from train.learning.augment import normalize
from train.learning.step import evaluated

PLATFORMS = ("cpu", "cuda", "tpu")


def fold(model: nnx.Module, domain: Domain) -> tuple[nnx.Module, bool]:
    """Returns a model with its batch norms folded, and whether there were any.

    Raises:
        TrainError: If a convolution's outputs go elsewhere than into its batch norm.
    """
    if not any(isinstance(part, nnx.BatchNorm) for _, part in nnx.iter_modules(model)):
        return model, False
    images = jax.ShapeDtypeStruct((2, *domain.image_shape), jnp.float32)
    try:
        return fold_batch_norm(model, images), True
    except ValueError as error:
        message = " ".join(str(error).split())
        raise TrainError(
            f"the batch norms of the network cannot be folded: {message}; give "
            "--no-fold to keep them"
        ) from error


def classifier(model: nnx.Module, domain: Domain) -> Any:
    """Returns the jitted function from pictures (B, H, W, C) to probabilities."""
    graphdef, state = nnx.split(evaluated(model))

    @jax.jit
    def probabilities(images: jax.Array) -> jax.Array:
        inputs = normalize(images, domain.mean, domain.std)
        logits: jax.Array = nnx.merge(graphdef, state)(inputs)
        return jax.nn.softmax(logits.astype(jnp.float32))

    return probabilities


def to_stablehlo(function: Any, domain: Domain, *, open_size: bool) -> bytes:
    """Returns a function of `classifier` as a program that serves every batch.

    Args:
        function: The function.
        domain: What its pictures are like.
        open_size: Whether the program serves every height and width, too.

    Raises:
        TrainError: If it cannot be exported; the error names what in it.
    """
    from jax import export  # which needs flatbuffers

    height, width, channels = domain.image_shape
    size = "height, width" if open_size else f"{height}, {width}"
    shape = export.symbolic_shape(f"batch, {size}, {channels}")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    try:
        program = export.export(function, platforms=PLATFORMS)(images)
        return bytes(program.serialize())
    except (NotImplementedError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise TrainError(f"the network cannot be exported: {message}") from error


def answers(function: Callable[[Any], Any], pictures: np.ndarray) -> np.ndarray:
    """Returns the probabilities of pictures, in batches of one, a few and the rest."""
    batches = [batch for batch in np.split(pictures, (1, 4)) if len(batch)]
    return np.concatenate([np.asarray(function(batch)) for batch in batches])


def load_stablehlo(content: bytes) -> Any:
    """Returns the program of `to_stablehlo`, whose `call` takes pictures.

    Jit that: as it is, each call is prepared anew, which takes 0.2 ms.

    Raises:
        ValueError: If it is no program, or one that this JAX does not read.
    """
    from jax import export

    return export.deserialize(bytearray(content))
