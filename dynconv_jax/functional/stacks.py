"""Stacks of convolutions: many kernels, each with a batch of its own.

XLA would make one convolution of them, with a group for each kernel. Here a stack is

- a product: the windows of all images of a kernel are gathered and contracted with it,
  for all kernels at once (the images are one more spatial axis, of which a window sees
  one); depthwise, a sum of shifted multiples;
- on one TPU the same product, depthwise too, as a convolution that has the kernels as
  an axis (`row_conv.py`), which gathers no windows;
- or, on one CPU, a loop over a few kernels at a time, whose windows stay in cache; or
  over single ones, each with XLA's convolution, which gathers no windows.

Which it is, is chosen by an estimate for the chip that the program is lowered for. The
transposes are those of the product; that in the inputs is, without strides, a
convolution too, with the kernel reversed.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dynconv_jax.functional.chips import Chip, Target, chip_for
from dynconv_jax.functional.conv_geometry import ConvGeometry
from dynconv_jax.functional.conv_operation import (
    FEW_CHANNELS,
    ConvOperation,
    conv_by_xla,
)
from dynconv_jax.functional.cost import Work, devices_of_a_batch
from dynconv_jax.functional.forms import FORMS
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.windows import pad_spatial

# How many kernels a step of a loop may take, and of what share of their images.
_CHUNKS = (1, 2, 4, 8, 16, 32)
_PARTS = (1, 2, 4, 8, 16, 32, 64)
# How often the windows pass through memory: written and read; or, of the gradient of
# the inputs, written, read and added up.
_PASSES = {"outputs": 2, "kernel": 2, "inputs": 3}


@dataclasses.dataclass(frozen=True)
class StackPlan:
    """One way to compute a stack.

    Attributes:
        form: The form of a product, by its name in `forms.py`; or `"xla"`.
        chunk: How many kernels a step of a loop takes; None takes all at once.
        parts: Into how many parts the images of a kernel are cut; only for the gradient
            of the kernels, which is the sum of theirs.
    """

    form: str
    chunk: int | None = None
    parts: int = 1


@dataclasses.dataclass(frozen=True)
class StackedConv:
    """A stack as a plan says.

    Attributes:
        operation: What is computed.
        plan: How.
    """

    operation: ConvOperation
    plan: StackPlan

    def __call__(self, first: jax.Array, second: jax.Array) -> list[jax.Array]:
        """Computes the stack, of arrays with an axis in front."""
        stack, parts, chunk = first.shape[0], self.plan.parts, self.plan.chunk
        if parts > 1:
            first, second = (
                each.reshape(stack * parts, -1, *each.shape[2:])
                for each in (first, second)
            )
        if chunk is None:
            result = self._at_once(first, second)
        else:
            # One by one, or mapped over those of a step.
            result = lax.map(
                lambda pair: self._at_once(pair[0][None], pair[1][None])[0],
                (first, second),
                batch_size=None if chunk == 1 else chunk,
            )
        if parts > 1:
            result = result.reshape(stack, parts, *result.shape[1:]).sum(1)
        return [result]

    def _at_once(self, first: jax.Array, second: jax.Array) -> jax.Array:
        if self.plan.form == "xla":
            return self._by_xla(first[0], second[0])[None]
        operation, form = self.operation, FORMS[self.plan.form]
        if operation.kernel_dtype is not None and self.plan.form == "row_conv":
            # A convolution has one dtype; what was rounded stays so.
            wide = operation.kernel_dtype
            first, second = first.astype(wide), second.astype(wide)
        geometry = _with_images(operation.geometry.dense)
        none = ((0, 0),) * operation.geometry.rank

        def convolve(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
            dilation = operation.geometry.input_dilation
            dilated = pad_spatial(inputs, none, dilation=dilation)
            arranged = form.arrange(jnp.expand_dims(kernel, 1), geometry)
            return form.convolve(dilated, arranged, geometry, operation.numerics)

        has_rule = self.plan.form == "taps"
        return operation.transposed(convolve, first, second, has_rule=has_rule)

    def _by_xla(self, first: jax.Array, second: jax.Array) -> jax.Array:
        operation = dataclasses.replace(self.operation, is_stacked=False)
        if operation.result != "inputs" or not _is_reversible(operation.geometry):
            return operation(first, second)[0]
        # Inside a loop XLA knows no fast form of a kernel whose axes lie otherwise.
        axes = tuple(range(operation.geometry.rank))
        reversed_kernel = jnp.flip(first, axes).swapaxes(-1, -2)
        outputs = conv_by_xla(
            second,
            reversed_kernel.astype(second.dtype),
            operation.geometry.mirrored,
            operation.numerics,
        )
        return outputs.astype(first.dtype)


def _with_images(geometry: Geometry) -> Geometry:
    """Returns a geometry with one more spatial axis: the images of a kernel."""
    padding = geometry.padding
    assert not isinstance(padding, str)
    return dataclasses.replace(
        geometry,
        kernel_size=(1, *geometry.kernel_size),
        strides=(1, *geometry.strides),
        padding=((0, 0), *padding),
        kernel_dilation=(1, *geometry.kernel_dilation),
    )


def _is_reversible(geometry: ConvGeometry) -> bool:
    """Tells whether the transpose in the inputs is a dense convolution as any other."""
    steps = (*geometry.strides, *geometry.input_dilation)
    return max(steps) == 1 and geometry.feature_group_count == 1


def stack_on(
    target: Target, operation: ConvOperation, first: Any, second: Any
) -> StackedConv:
    """Returns a stack as it is computed in a place.

    Args:
        target: The place.
        operation: What is computed.
        first: The first operand, or its type.
        second: The second.
    """
    stack = first.shape[0]
    images = second.shape[1] if operation.result != "outputs" else first.shape[1]
    is_known = all(
        isinstance(each, int) for each in (stack, images, *operation.spatial)
    )
    is_local = is_known and devices_of_a_batch(target.device_count) == 1
    geometry = operation.geometry
    if is_known and stack == 1 and target.platform != "cpu":
        return StackedConv(operation, StackPlan("xla"))
    if is_local and target.platform == "tpu":
        return StackedConv(operation, StackPlan("row_conv"))
    if geometry.is_depthwise and 1 < min(geometry.taps, geometry.feature_group_count):
        return StackedConv(operation, StackPlan("taps"))
    if target.platform != "cpu" or not is_local:
        return StackedConv(operation, StackPlan("patches"))
    chip = chip_for("cpu")
    itemsize = first.dtype.itemsize
    plan = min(
        _plans(operation, stack, images),
        key=lambda plan: _seconds(operation, plan, stack, images, itemsize, chip),
    )
    return StackedConv(operation, plan)


def _plans(operation: ConvOperation, stack: int, images: int) -> Iterator[StackPlan]:
    """Yields the plans for a stack on one CPU."""
    geometry, result = operation.geometry, operation.result
    contracted = {"outputs": geometry.in_features, "inputs": geometry.out_features}
    is_conv = result == "outputs" or (result == "inputs" and _is_reversible(geometry))
    if is_conv and geometry.feature_group_count == 1 and geometry.taps > 1:
        if contracted[result] > FEW_CHANNELS:
            yield StackPlan("xla", None if stack == 1 else 1)
    yield StackPlan("patches")
    for parts in _PARTS if result == "kernel" else _PARTS[:1]:
        if images % parts == 0:
            yield from (
                StackPlan("patches", chunk, parts)
                for chunk in _CHUNKS
                if chunk < stack * parts
            )


def _seconds(
    operation: ConvOperation,
    plan: StackPlan,
    stack: int,
    images: int,
    itemsize: int,
    chip: Chip,
) -> float:
    """Estimates the time of a plan; a third of the work of forward and backward."""
    geometry = operation.geometry
    pixels = images * math.prod(geometry.output_size(operation.spatial))
    each = 1e-9 * itemsize  # GB of a number
    arithmetic = 2e-9 * stack * pixels * math.prod(geometry.kernel_shape)
    inputs = images * math.prod(operation.spatial) * geometry.in_features
    moved = stack * (inputs + pixels * geometry.out_features) * each
    steps = 0.0 if plan.chunk is None else stack * plan.parts / plan.chunk / 3
    if plan.form == "xla":
        work = Work(arithmetic=arithmetic, images=moved, steps=steps)
        return work.seconds(chip.rates)
    is_gathered = geometry.taps > 1 or max(geometry.strides) > 1
    windows = pixels * geometry.taps * geometry.in_features * is_gathered * each
    at_once = (plan.chunk or stack * plan.parts) / plan.parts * windows
    passed = _PASSES[operation.result] * stack * windows
    is_cached, is_thin = 2 * at_once <= chip.cache, geometry.feature_group_count > 1
    work = Work(
        arithmetic=0 if is_thin else arithmetic,
        thin_arithmetic=arithmetic if is_thin else 0,
        windows=0 if is_cached else passed,
        cached_windows=passed if is_cached else 0,
        images=moved,
        steps=steps,
        memory=2 * at_once,
    )
    return work.seconds(chip.rates)
