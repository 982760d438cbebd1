"""`nnx.Conv` for models that are stacked, and the change of a model to it."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax import lax

from dynconv_jax.functional.conv import conv_general_dilated
from dynconv_jax.functional.static import few_channel_conv

# What is mapped well already.
_MAPPED_WELL = (conv_general_dilated, few_channel_conv)


class Conv(nnx.Conv):
    """`nnx.Conv` that maps well over its kernels.

    It computes what `nnx.Conv` does, by the same program, until `nnx.vmap` or
    `jax.vmap` maps it over its parameters: then there is no convolution with a group
    for each kernel, but what `dynconv_jax.conv` makes of it.

    Args:
        in_features: C.
        out_features: O.
        kernel_size: As in `nnx.Conv`, for which an int is a one-dimensional window.
        strides: As in `nnx.Conv`.
        conv_general_dilated: As in `nnx.Conv`; by default it is that of `dynconv_jax`.
        **options: All that `nnx.Conv` takes beside: `padding` (also `"CIRCULAR"`,
            `"REFLECT"` and `"CAUSAL"`), `input_dilation`, `mask`, `rngs` and so on.

    Example:
        >>> import jax.numpy as jnp
        >>> @nnx.split_rngs(splits=5)
        ... @nnx.vmap
        ... def create(rngs):
        ...     return Conv(3, 8, (3, 3), rngs=rngs)
        >>> models = create(nnx.Rngs(0))
        >>> nnx.vmap(lambda model, x: model(x))(models, jnp.ones((5, 2, 9, 7, 3))).shape
        (5, 2, 9, 7, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        conv_general_dilated: Callable[..., jax.Array] = conv_general_dilated,
        **options: Any,
    ):
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            conv_general_dilated=conv_general_dilated,
            **options,
        )


def replace_convs(model: nnx.Module) -> list[str]:
    """Lets each `nnx.Conv` of a model compute as `Conv` does, in place.

    Weights, names and layers stay, and so do the outputs; what changes is how the model
    is mapped over its parameters. A layer of a class with a `__call__` of its own, or
    with a convolution that its maker has chosen, is left as it is.

    Args:
        model: Any model of Flax NNX.

    Returns:
        The paths of the layers that were changed, in the order of the model.

    Warns:
        UserWarning: Names the layers that are left.

    Example:
        >>> model = nnx.Sequential(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.relu)
        >>> replace_convs(model)
        ['layers.0']
    """
    replaced, left = [], []
    for path, layer in nnx.iter_modules(model):
        if not isinstance(layer, nnx.Conv):
            continue
        name = ".".join(map(str, path)) or type(layer).__name__
        if type(layer).__call__ is not nnx.Conv.__call__:
            left.append(f"{name} ({type(layer).__name__} has a `__call__` of its own)")
        elif layer.conv_general_dilated is lax.conv_general_dilated:
            layer.conv_general_dilated = conv_general_dilated
            replaced.append(name)
        elif layer.conv_general_dilated not in _MAPPED_WELL:
            left.append(f"{name} (it has a `conv_general_dilated` of its own)")
    if left:
        warnings.warn(f"left as they are: {', '.join(left)}", stacklevel=2)
    return replaced
