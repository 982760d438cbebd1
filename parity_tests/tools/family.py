"""Every layer of the family, built and called alike: arrays in, one array out."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from dynconv_jax import (
    AdaptiveConv,
    CondConv,
    ContextConv,
    DecomposedConv,
    DynamicConv,
    DynamicConvBlock,
    DynamicConvTranspose,
    FDConv,
    FrequencyDynamicConv,
    KernelWarehouse,
    ModulatedConv,
    ODConv,
    SigmoidRouter,
    WarehouseConv,
)
from dynconv_jax.functional import Geometry
from dynconv_jax.functional.pooling import spatial_mean
from parity_tests.tools.jax_modules import build


class Routed(nnx.Module):
    """A `CondConv` and its router."""

    def __init__(self, in_features: int, *arguments, rngs: nnx.Rngs, **options):
        """Builds both; the arguments are those of the layer."""
        both = {k: v for k, v in options.items() if k in ("dtype", "param_dtype")}
        self.router = SigmoidRouter(in_features, rngs=rngs, **both)
        self.conv = CondConv(in_features, *arguments, rngs=rngs, **options)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer."""
        return self.conv(inputs, self.router(inputs))


class Styled(nnx.Module):
    """A layer with latents, which the means of its inputs are here."""

    def __init__(self, cls: Any, in_features: int, *arguments, **options):
        """Builds the layer; the arguments are those of its class."""
        self.conv = cls(in_features, *arguments, style_features=in_features, **options)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer."""
        return self.conv(inputs, spatial_mean(inputs))


class Steered(nnx.Module):
    """A `ContextConv` with a context, which the means of its inputs are here."""

    def __init__(self, in_features: int, *arguments, **options):
        """Builds the layer; the arguments are those of its class."""
        self.conv = ContextConv(
            in_features, *arguments, context_features=in_features, **options
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer."""
        return self.conv(inputs, spatial_mean(inputs))


class Tiled(nnx.Module):
    """A `WarehouseConv` and its warehouse."""

    def __init__(
        self,
        *arguments,
        rngs: nnx.Rngs,
        param_dtype: Any = "float32",
        dtype: Any = None,
        implementation: str = "auto",
        use_bias: bool = False,
        norm: str = "batch",
        **options,
    ):
        """Builds both; the arguments are those of `DynamicConv`."""
        geometry = Geometry.create(*arguments, **options)
        self.warehouse = KernelWarehouse([geometry], param_dtype=param_dtype, rngs=rngs)
        self.conv = WarehouseConv(
            self.warehouse,
            use_bias=use_bias,
            norm=norm,
            implementation=implementation,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer."""
        return self.conv(inputs)


LAYERS: dict[str, Callable[..., Any]] = {
    "DynamicConv": DynamicConv,
    "DynamicConv, sparse": functools.partial(DynamicConv, top_k=2),
    "DynamicConvTranspose": DynamicConvTranspose,
    "DynamicConvBlock": DynamicConvBlock,
    "CondConv": Routed,
    "ContextConv": Steered,
    "ODConv": ODConv,
    "ODConv, layer norm": functools.partial(ODConv, norm="layer"),
    "DecomposedConv": DecomposedConv,
    "DecomposedConv, pooled": functools.partial(DecomposedConv, pool=2),
    "ModulatedConv": functools.partial(
        Styled, ModulatedConv, pre_normalize=True, magnitude_momentum=0.5
    ),
    "AdaptiveConv": functools.partial(Styled, AdaptiveConv),
    "WarehouseConv": Tiled,
    "FDConv": functools.partial(FDConv, min_channels=2, num_experts=4),
    "FrequencyDynamicConv": FrequencyDynamicConv,
}


def layer(name: str, *arguments: Any, scale: float = 1e-2, **options: Any) -> Any:
    """Builds a layer of `LAYERS`, with random values in it.

    Args:
        name: Which.
        *arguments: C, O and the kernel size; by default of a 3×3 convolution.
        scale: What the values, up to 100, are multiplied by.
        **options: Further options of the layer.
    """
    arguments = arguments or (4, 6, (3, 3))
    module = build(lambda: LAYERS[name](*arguments, rngs=nnx.Rngs(0), **options))
    for _, value in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        value.set_value((value[...] * scale).astype(value[...].dtype))
    return module


def images(*shape: int, dtype: Any = "float32", seed: int = 0) -> np.ndarray:
    """Draws inputs."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)
