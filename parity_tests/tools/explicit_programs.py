"""python -m parity_tests.tools.explicit_programs PART: layers on explicit axes.

How many devices a process has is settled when it starts, so `test_explicit_sharding.py`
runs this as a program of its own, for few layers and forms or for the others. It prints
one JSON object: by the name of the program how its output is sharded, the largest
difference from what one device computes, relative to the largest number, and nothing
but the error where there is one.
"""

import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dynconv_jax import DynamicConv, mix_kernels, per_sample_conv
from parity_tests.tools.compiled_programs import ENVIRONMENT, outlines
from parity_tests.tools.family import LAYERS, images, layer

# How inputs (8, 6, 4, 4) lie on a mesh of 4 × 2 devices.
SPECS: dict[str, tuple[str | None, ...]] = {
    "batch": ("data",),
    "height": (None, "space"),
    "width": (None, None, "data"),
    "batch and height": ("data", "space"),
    "batch and channels": ("data", None, None, "space"),
}
# What flax's own convolutions, of which these layers are made, take, gradient and all.
OF_FLAX = (
    *("DecomposedConv", "DecomposedConv, pooled"),
    *("FDConv", "FrequencyDynamicConv"),
)
TAKEN_BY_FLAX = ("batch", "height", "width", "batch and height")
FORMS = ("patches", "rows", "scan", "experts", "row_conv", "vmap", "taps")
# What is asked by default; the kernels are, too.
FEW = ("DynamicConv", "ODConv", "WarehouseConv", "FDConv", "rows", "experts")
KERNELS: dict[str, tuple[str | None, ...]] = {
    "outputs of an expert": (None, None, None, "space"),
    "outputs": (None, None, None, None, "space"),
    "inputs": (None, None, None, "space", None),
    "experts": ("data", None, None, None, None),
    "outputs as the batch": (None, None, None, None, "data"),
}


leaves = jax.tree.leaves


def gradient_of(module: nnx.Module) -> tuple[Any, Any]:
    """Returns the function of parameters and inputs to gradients and outputs."""
    evaluated = nnx.view(module, use_running_average=True, raise_if_not_found=False)
    graphdef, params, rest = nnx.split(evaluated, nnx.Param, ...)
    rest = jax.tree.map(np.asarray, rest)  # which lies on no mesh

    def run(params, inputs):
        def loss(params, inputs):
            outputs = nnx.merge(graphdef, params, rest, copy=True)(inputs)
            return jnp.sin(outputs).sum(), outputs

        return jax.grad(loss, (0, 1), has_aux=True)(params, inputs)

    return run, params


def main(part: str) -> None:
    """Runs or traces every program of a part and prints what came of it.

    Args:
        part: `"few"` or `"others"`.
    """
    mesh = jax.make_mesh((4, 2), ("data", "space"), axis_types=(AxisType.Explicit,) * 2)
    found: dict[str, Any] = {}
    inputs = images(8, 6, 4, 4, dtype="float64")

    def lay(array: Any, *axes: str | None) -> jax.Array:
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    def report(name: str, module: nnx.Module, *axes: str | None, runs: bool) -> None:
        run, params = gradient_of(module)
        specs = [jax.typeof(leaf).sharding.spec for leaf in leaves(params)]
        is_whole = not any(any(spec) for spec in specs)
        with jax.set_mesh(mesh):
            try:
                if not runs:
                    operands = outlines(params, mesh), outlines(inputs, mesh, *axes)
                    out = jax.jit(run).trace(*operands).out_info[1].sharding.spec
                    found[name] = {"spec": list(out)}
                    return
                laid = jax.tree.map(lay, params) if is_whole else params
                actual = jax.jit(run)(laid, lay(inputs, *axes))
                spec = list(jax.typeof(actual[1]).sharding.spec)
            except Exception as error:  # told to the test, which expects none
                found[name] = f"{type(error).__name__}: {error}"
                return
        expected = jax.jit(run)(*jax.tree.map(np.asarray, (params, inputs)))
        pairs = zip(leaves(actual), leaves(expected), strict=True)
        largest = max(np.abs(leaf).max() for leaf in leaves(expected))
        worst = max(float(np.abs(np.asarray(a) - b).max()) for a, b in pairs)
        found[name] = {"spec": spec, "difference": worst / float(largest)}

    is_few = part == "few"
    for name in (name for name in LAYERS if (name in FEW) == is_few):
        module = layer(name, param_dtype="float64")
        for spec, axes in SPECS.items():
            if name not in OF_FLAX or spec in TAKEN_BY_FLAX:
                runs = spec == "batch and height"
                report(f"{name}, {spec}", module, *axes, runs=runs)
    for form in (form for form in FORMS if (form in FEW) == is_few):
        width, groups = (4, 4) if form == "taps" else (6, 1)
        module = layer(
            "DynamicConv",
            4,
            width,
            (3, 3),
            feature_group_count=groups,
            implementation=form,
            param_dtype="float64",
        )
        for spec, axes in SPECS.items():
            report(f"{form}, {spec}", module, *axes, runs=False)
    for name, axes in KERNELS.items() if is_few else ():
        with jax.set_mesh(mesh):
            init = nnx.with_partitioning(nnx.initializers.normal(), axes)
            module = DynamicConv(
                4, 8, (3, 3), kernel_init=init, param_dtype="float64", rngs=nnx.Rngs(0)
            )
        report(f"kernel, {name}", module, "data", runs=True)
        found[f"kernel, {name}"]["kernel"] = list(
            jax.typeof(module.kernel[...]).sharding.spec
        )
    if is_few:
        found |= _of_functions(mesh, lay, inputs)
    print(json.dumps(found))


def _of_functions(mesh: jax.sharding.Mesh, lay: Any, inputs: np.ndarray) -> dict:
    """Returns how what functions answer is sharded."""
    with jax.set_mesh(mesh):
        mixed = jax.jit(mix_kernels)(
            lay(np.ones((8, 4)), "data"), lay(np.ones((4, 3, 6)), None, None, "space")
        )
        kernels = lay(np.ones((8, 3, 3, 4, 6)), "data", None, None, None, "space")
        convolve = functools.partial(per_sample_conv, implementation="rows")
        own = jax.jit(convolve)(lay(inputs, "data"), kernels)
    return {
        name: {"spec": list(jax.typeof(array).sharding.spec)}
        for name, array in (("mixed", mixed), ("per sample", own))
    }


if __name__ == "__main__":
    assert jax.device_count() == 8, f"start it with {ENVIRONMENT}"
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        main(sys.argv[1])
