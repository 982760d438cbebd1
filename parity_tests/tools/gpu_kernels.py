"""python -m parity_tests.tools.gpu_kernels h100: the kernels for GPUs, compiled.

In a process with the variables of `benchmarks.compiled.compiler.environment`. It prints
one JSON object: for each shape, and for other uses of a kernel, the bound of forward
and backward and the temporary memory; for shapes beside that of the static convolution.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from benchmarks.compiled import compiler
from benchmarks.compiled.chips import CHIPS, Chip
from benchmarks.compiled.estimate import bound
from benchmarks.compiled.hlo import parse_program
from benchmarks.compiled.jobs import DENSE, DEPTHWISE, PASSES, STATIC, Job
from benchmarks.compiled.layers import layer_work
from benchmarks.shapes import Shape
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.pallas.gpu import arrange, convolve

SMALL = Shape(3, 9, 20, 24, stride=2, experts=3)
PLAIN = Numerics()
# The same, in other ways than bfloat16 to bfloat16.
NUMERICS = {
    "float32": ("float32", PLAIN),
    "float32, not in TF32": ("float32", Numerics(lax.Precision.HIGHEST)),
    "bfloat16 to float32": ("bfloat16", Numerics(None, "float32")),
}


def compiled(
    chip: Chip, function: Callable[..., Any], arguments: Sequence[Any]
) -> dict[str, Any]:
    """Compiles a function of arrays; returns its bound and temporary memory."""
    (device,) = compiler.topology(chip, 1)
    auto = Format(Layout.AUTO, SingleDeviceSharding(device))
    jitted = jax.jit(function, in_shardings=auto, out_shardings=auto)
    program = jitted.lower(*arguments).compile(compiler.OPTIONS[chip.platform])
    found = bound(parse_program(program.as_text() or ""), chip, Path())
    analysis: Any = program.memory_analysis()
    return found | {"temporary": analysis.temp_size_in_bytes}


def dynamic(
    shape: Shape, numerics: Numerics = PLAIN, dtype: str = "bfloat16"
) -> tuple[Callable[..., Any], list[Any]]:
    """Returns the outputs of a layer and all its gradients, by the kernels."""
    geometry = shape.geometry
    attention = (shape.batch, shape.experts)
    experts = (shape.experts, *geometry.kernel_shape)
    shapes = (shape.input_shape, attention, experts)

    def run(cotangent, *operands):
        def layer(inputs, attention, kernel):
            arranged = arrange(kernel, geometry)
            return convolve(inputs, attention, arranged, geometry, numerics)

        outputs, pull = jax.vjp(layer, *operands)
        return outputs, pull(cotangent)

    cotangent = jax.ShapeDtypeStruct(shape.output_shape, numerics.output_dtype(dtype))
    return run, [cotangent, *(jax.ShapeDtypeStruct(each, dtype) for each in shapes)]


def mapped(shape: Shape) -> tuple[Callable[..., Any], list[Any]]:
    """Returns the same of two layers at once."""
    function, arguments = dynamic(shape)
    stacks = [jax.ShapeDtypeStruct((2, *each.shape), each.dtype) for each in arguments]
    return jax.vmap(function), stacks


def twice(shape: Shape) -> tuple[Callable[..., Any], list[Any]]:
    """Returns the slope of all gradients in all operands."""
    function, arguments = dynamic(shape)

    def slope(*operands):
        return sum(jnp.sum(jnp.sin(each)) for each in function(*operands)[1])

    return jax.grad(slope, argnums=(0, 1, 2, 3)), arguments


def main(name: str) -> None:
    """Compiles all of it for a chip and prints what there is to tell."""
    chip = CHIPS[name]
    shapes = {}
    for shape in (*DENSE, *DEPTHWISE):
        job = Job("layer", dataclasses.asdict(shape), STATIC, PASSES[1])
        static = compiled(chip, *layer_work(job))
        shapes[str(shape)] = {
            "kernels": compiled(chip, *dynamic(shape)),
            "static": static,
            "flops": 1e9 * shape.gigaflops,
        }
    others = {
        name: compiled(chip, *dynamic(SMALL, numerics, dtype))
        for name, (dtype, numerics) in NUMERICS.items()
    }
    others["mapped"] = compiled(chip, *mapped(SMALL))
    others["differentiated twice"] = compiled(chip, *twice(SMALL))
    print(json.dumps({"shapes": shapes, "others": others}))


if __name__ == "__main__":
    main(sys.argv[1])
