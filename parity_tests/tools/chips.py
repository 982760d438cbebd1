"""Chips that are not there, for programs that are lowered for them."""

from typing import Any

import jax

_H100 = {"device_kind": "NVIDIA H100 80GB HBM3", "num_cores": 132, "platform": "gpu"}


def an_h100(axis: str = "chip") -> jax.sharding.AbstractMesh:
    """Returns a mesh of one GPU.

    In its context a program with kernels is lowered for it where there is none: from
    0.12 on JAX asks which it is.
    """
    mesh: Any = jax.sharding.AbstractMesh
    device: Any = jax.sharding.AbstractDevice(**_H100)
    kinds = (jax.sharding.AxisType.Auto,)
    return mesh((1,), (axis,), axis_types=kinds, abstract_device=device)
