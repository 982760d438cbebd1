"""Prints what stacks of convolutions become over four devices, as JSON.

A process of its own, because the number of devices is settled when JAX starts:
`XLA_FLAGS=--xla_force_host_platform_device_count=4`.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dynconv_jax import conv
from parity_tests.tolerances import ParityError, assert_close

MODELS, DATA, WHOLE = PartitionSpec("d"), PartitionSpec(None, "d"), PartitionSpec()
# How the inputs and kernels of 8 models lie.
KINDS = {
    "models over devices": (AxisType.Auto, MODELS, MODELS),
    "models over devices, spmd_axis_name": (AxisType.Auto, MODELS, MODELS),
    "models over devices, shard_map": (AxisType.Auto, MODELS, MODELS),
    "models over devices, explicit": (AxisType.Explicit, MODELS, MODELS),
    "images over devices, explicit": (AxisType.Explicit, DATA, WHOLE),
    "images over devices, shard_map": (AxisType.Auto, DATA, WHOLE),
}


def ours(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves as `conv` does."""
    return conv(inputs, kernel, strides=2, padding=1)


def by_xla(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves by XLA's convolution."""
    numbers = ("NHWC", "HWIO", "NHWC")
    pads = ((1, 1), (1, 1))
    return lax.conv_general_dilated(
        inputs, kernel, (2, 2), pads, dimension_numbers=numbers
    )


def gradients(convolve: Callable[..., jax.Array], **options: Any) -> Callable[..., Any]:
    """Returns the gradients of a loss over all models."""

    def loss(*operands: jax.Array) -> jax.Array:
        return jnp.sin(jax.vmap(convolve, **options)(*operands)).sum()

    return jax.grad(loss, (0, 1))


def look(kind: str) -> dict[str, Any]:
    """Compiles and runs one kind; returns how it gathers, and how it differs."""
    axis_type, *specs = KINDS[kind]
    rng = np.random.default_rng(0)
    operands = [
        jnp.asarray(rng.normal(size=shape))
        for shape in ((8, 4, 7, 5, 3), (8, 3, 2, 3, 6))
    ]
    mesh = jax.make_mesh((4,), ("d",), axis_types=(axis_type,))
    named = {"spmd_axis_name": "d"} if "spmd" in kind else {}
    function = gradients(ours, **named)
    if "shard_map" in kind:
        # Of a kernel that is the same on all devices it is the sum of their gradients.
        function = jax.shard_map(
            function, mesh=mesh, in_specs=tuple(specs), out_specs=tuple(specs)
        )
    with jax.set_mesh(mesh):
        on_devices = [
            jax.device_put(each, NamedSharding(mesh, spec))
            for each, spec in zip(operands, specs, strict=True)
        ]
        compiled = jax.jit(function).lower(*on_devices).compile()
        found = compiled(*on_devices)
    expected = jax.jit(gradients(by_xla))(*operands)
    differs = ""
    try:
        assert_close(
            {str(at): np.asarray(each) for at, each in enumerate(found)},
            {str(at): each for at, each in enumerate(expected)},
            dtype="float64",
        )
    except ParityError as error:
        differs = str(error)
    return {
        "gathers": (compiled.as_text() or "").count("all-gather"),
        "differs": differs,
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    print(json.dumps({kind: look(kind) for kind in KINDS}))
