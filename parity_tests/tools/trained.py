"""Layers as training leaves them: to start from, to collapse, to fold."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynconv_jax import (
    DecomposedConv,
    DynamicConv,
    KernelWarehouse,
    ODConv,
    WarehouseConv,
)
from dynconv_jax.functional import Geometry

GEOMETRY: dict[str, Any] = dict(
    in_features=6, out_features=8, kernel_size=(3, 3), strides=2, padding=1
)


def evaluated(module: nnx.Module) -> Any:
    """Returns the module as it is in evaluation."""
    return nnx.view(
        module, use_running_average=True, deterministic=True, raise_if_not_found=False
    )


def warmed(module: Any) -> Any:
    """Gives batch norms statistics and parameters of their own, as training would."""
    rng = np.random.default_rng(0)
    for _, part in nnx.iter_modules(module):
        if isinstance(part, nnx.BatchNorm):
            shape = part.mean[...].shape
            part.mean[...] = jnp.asarray(rng.normal(size=shape))
            part.var[...] = jnp.asarray(rng.uniform(0.5, 2, shape))
            assert part.scale is not None and part.bias is not None
            part.scale[...] = jnp.asarray(rng.uniform(0.5, 2, shape))
            part.bias[...] = jnp.asarray(rng.normal(size=shape))
    return module


def layer_of(name: str, **options: Any) -> Any:
    """Builds a layer of the geometry, of each kind that starts by itself."""
    own: dict[str, Any] = dict(param_dtype="float64", rngs=nnx.Rngs(0))
    if name == "kernel_warehouse":
        features = GEOMETRY["in_features"], GEOMETRY["out_features"]
        rest = {key: GEOMETRY[key] for key in ("strides", "padding")}
        geometry = Geometry.create(
            *features,
            GEOMETRY["kernel_size"],
            **rest,
            feature_group_count=options.pop("feature_group_count", 1),
        )
        use_bias = options.pop("use_bias", False)
        warehouse = KernelWarehouse([geometry], **own, **options)
        return WarehouseConv(warehouse, use_bias=use_bias, rngs=nnx.Rngs(1))
    cls = {"dynamic": DynamicConv, "odconv": ODConv, "decomposed": DecomposedConv}[name]
    return cls(**GEOMETRY, **own, **options)
