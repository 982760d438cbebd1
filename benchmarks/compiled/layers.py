"""The program of one layer: a dynamic convolution with its attention given.

Or of a stack of convolutions that are mapped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, SingleDeviceSharding

from benchmarks.compiled.jobs import AUTO, PASSES, STATIC, Job
from benchmarks.shapes import Shape
from benchmarks.stacks import Stack, stack_functions
from dynconv_jax import dynamic_conv
from dynconv_jax.functional.cost import Plan
from dynconv_jax.functional.dynamic import dynamic_conv_by_plan
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.static import static_conv

DTYPE = jnp.bfloat16


class Work(NamedTuple):
    """What is compiled.

    Attributes:
        function: A function of arrays.
        arguments: Their shapes.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def layer_work(job: Job, is_tpu: bool = False) -> Work:
    """Returns the program of a layer: its outputs, and all gradients if asked for.

    Args:
        job: One of `layer_jobs` or `stack_jobs`.
        is_tpu: Whether kernels are mixed as they are on a TPU.
    """
    if job.kind == "stack":
        stack = Stack(**job.subject)
        forward, gradient = stack_functions(stack, job.form)
        arrays = [jax.ShapeDtypeStruct(shape, DTYPE) for shape in stack.shapes()]
        if job.variant == PASSES[0]:
            return Work(forward, tuple(arrays[:-1]))
        return Work(gradient, tuple(arrays))
    shape = Shape(**job.subject)
    function, arguments = _forward(shape, job, is_tpu)
    if job.variant == PASSES[0]:
        return Work(function, arguments)

    def differentiate(cotangent, *arguments):
        outputs, pull = jax.vjp(function, *arguments)
        return outputs, pull(cotangent)

    cotangent = jax.ShapeDtypeStruct(shape.output_shape, DTYPE)
    return Work(differentiate, (cotangent, *arguments))


def lower_layer(job: Job, device: Any) -> jax.stages.Lowered:
    """Lowers a layer for a device, which need not exist.

    Arguments and results lie as the compiler wants them: so they do inside of a
    network, where the neighbours' layouts are the compiler's too.
    """
    work = layer_work(job, is_tpu=device.platform == "tpu")
    auto = Format(Layout.AUTO, SingleDeviceSharding(device))
    jitted = jax.jit(work.function, in_shardings=auto, out_shardings=auto)
    # With a mesh of it in use, `auto` knows for which kind of chip it chooses.
    mesh = Mesh(np.array([device]), ("chip",), axis_types=(AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jitted.lower(*work.arguments)


def _forward(
    shape: Shape, job: Job, is_tpu: bool
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    geometry, numerics = shape.geometry, Numerics(None, None)
    inputs = jax.ShapeDtypeStruct(shape.input_shape, DTYPE)
    kernel = jax.ShapeDtypeStruct(geometry.kernel_shape, DTYPE)
    if job.form == STATIC:

        def static(inputs, kernel):
            return static_conv(inputs, kernel, geometry, numerics)

        return static, (inputs, kernel)
    experts = jax.ShapeDtypeStruct((shape.experts, *kernel.shape), DTYPE)
    attention = jax.ShapeDtypeStruct((shape.batch, shape.experts), DTYPE)

    def dynamic(inputs, attention, experts):
        if job.form == AUTO:
            return dynamic_conv(
                *(inputs, attention, experts),
                strides=shape.stride,
                padding=shape.kernel // 2,
                feature_group_count=shape.groups,
            )
        plan = Plan(job.form, job.chunk, by_sums=is_tpu)
        return dynamic_conv_by_plan(
            plan, inputs, attention, experts, geometry, numerics
        )

    return dynamic, (inputs, attention, experts)
