"""The per-sample convolution: every sample of a batch with a kernel of its own.

    y_i = conv(x_i, W_i) + b_i

Written down directly it is XLA's convolution mapped over the batch (`"vmap"`). XLA
turns that into a convolution with B·g groups, whose gradient is slow, hungry and
impossible to export with a free batch size. So it is computed as batched matrix
products instead, in one of several forms (`forms.py`), all of them exact; `choice.py`
tells which is fastest.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float

from dynconv_jax.functional.checks import take_arrays
from dynconv_jax.functional.chips import Target, chip_for
from dynconv_jax.functional.choice import choose, is_chosen_by_place
from dynconv_jax.functional.cost import Plan, Problem
from dynconv_jax.functional.forms import FORMS
from dynconv_jax.functional.geometry import Geometry, PaddingLike, check_operands
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.platforms import compute_where_lowered
from dynconv_jax.functional.scan import map_samples
from dynconv_jax.functional.sharding import leave_to_partitioner, of_convolution


def add_bias(
    outputs: Float[jax.Array, "batch *spatial out_features"],
    bias: Float[jax.Array, "#batch out_features"] | None,
) -> Float[jax.Array, "batch *spatial out_features"]:
    """Adds to each sample a bias of its own, or to all the same."""
    if bias is None:
        return outputs
    spatial = tuple(range(1, outputs.ndim - 1))
    return outputs + jnp.expand_dims(bias.astype(outputs.dtype), spatial)


def per_sample_conv_by_plan(
    plan: Plan,
    inputs: Float[jax.Array, "batch *spatial in_features"],
    kernel: Float[jax.Array, "batch *window in_per_group out_features"],
    geometry: Geometry,
    numerics: Numerics,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves each sample with its own kernel, as a plan says."""
    form = FORMS[plan.form]
    arranged = form.arrange(kernel, geometry)

    def convolve(inputs: jax.Array, own_kernel: jax.Array) -> jax.Array:
        return form.convolve(inputs, own_kernel, geometry, numerics)

    if plan.chunk is not None:
        return map_samples(convolve, (inputs, arranged), plan.chunk)
    return convolve(inputs, arranged)


@dataclasses.dataclass(frozen=True)
class PlannedConv(abc.ABC):
    """A convolution as a plan says.

    Attributes:
        plan: The plan.
        geometry: The convolution.
        numerics: Its numerical options.
    """

    plan: Plan
    geometry: Geometry
    numerics: Numerics

    @abc.abstractmethod
    def __call__(self, *operands: Any) -> jax.Array:
        """Computes."""

    @property
    def plain(self) -> Self:
        """The same, of operations that can be differentiated in any way."""
        return dataclasses.replace(self, plan=self.plan.plain)

    @property
    def mappable(self) -> Self:
        """The same, of operations that `jax.vmap` maps well."""
        return dataclasses.replace(self, plan=self.plan.mappable)

    @property
    def loops(self) -> bool:
        """Whether it takes a few samples at a time."""
        return self.plan.chunk is not None


class _PerSampleConv(PlannedConv):
    def __call__(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return per_sample_conv_by_plan(
            self.plan, inputs, kernel, self.geometry, self.numerics
        )


@dataclasses.dataclass(frozen=True)
class PlacedConv:
    """A convolution whose plan is chosen where it is lowered.

    Attributes:
        shape: The shape (B, *S, C) of the inputs.
        dtype: Their dtype.
        geometry: The convolution.
        numerics: Its numerical options.
        implementation: `"auto"`, or the name of the form to use.
    """

    shape: tuple[Any, ...]
    dtype: jnp.dtype
    geometry: Geometry
    numerics: Numerics
    implementation: str

    def problem_on(self, target: Target) -> Problem:
        """Returns the problem of computing it in a place."""
        return Problem.of(
            jax.ShapeDtypeStruct(self.shape, self.dtype),
            self.geometry,
            chip=chip_for(target.platform),
            device_count=target.device_count,
        )

    def on(self, target: Target) -> PlannedConv:
        """Returns the convolution as it is computed in a place."""
        plan = choose(self.problem_on(target), self.implementation)
        return _PerSampleConv(plan, self.geometry, self.numerics)

    def __call__(self, *operands: jax.Array | None) -> jax.Array:
        """Computes, by the same form everywhere if it is asked for by its name."""
        if is_chosen_by_place(self.implementation):
            return compute_where_lowered(self, *operands)
        return self.on(Target("cpu"))(*operands)

    def check(self) -> bool:
        """Checks that it can be computed; returns whether that gathers a batch.

        Raises:
            ValueError: If the implementation is unknown or cannot compute it.
        """
        plan = choose(
            self.problem_on(Target("cpu", device_count=2)), self.implementation
        )
        return plan.gathers


def per_sample_conv(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    kernel: Float[jax.Array, "batch *window in_per_group out_features"],
    bias: Float[jax.Array, "batch out_features"] | None = None,
    *,
    strides: int | Sequence[int] | None = 1,
    padding: PaddingLike = "SAME",
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    implementation: str = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves every sample with its own kernel.

    Args:
        inputs: The samples, with 1, 2 or 3 spatial dimensions.
        kernel: The kernel of each sample, of the same dtype.
        bias: The bias of each sample, or None.
        strides: An int, or one per spatial dimension.
        padding: `"SAME"`, `"VALID"`, an int, or one int or (low, high) pair per spatial
            dimension.
        kernel_dilation: An int, or one per spatial dimension.
        feature_group_count: It must divide the features of inputs and of outputs.
        implementation: `"auto"`, `"patches"`, `"rows"`, `"scan"`, `"taps"`
            (depthwise), `"row_conv"` (for TPUs) or `"vmap"`. All compute the same.
            `"vmap"` is the reference, see `forms.py` for what XLA may do to it.
        precision: As in `jax.lax.conv_general_dilated`.
        preferred_element_type: The dtype of the output and of the sums behind it, as in
            `jax.lax.conv_general_dilated`.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, the kernel spans more than the padded input,
            or the implementation is unknown or cannot compute this: `"experts"` needs
            the attention (see `dynamic_conv`), `"taps"` a depthwise convolution.

    Example:
        >>> import jax.numpy as jnp
        >>> images = jnp.ones((2, 9, 7, 4))
        >>> kernels = jnp.ones((2, 3, 3, 4, 8))
        >>> per_sample_conv(images, kernels, strides=2, padding=1).shape
        (2, 5, 4, 8)
    """
    inputs, kernel, bias = take_arrays(
        inputs=inputs, kernel=kernel, bias=bias, optional=("bias",)
    )
    geometry = check_operands(
        inputs,
        kernel,
        bias,
        stack="batch",
        stack_size=inputs.shape[0] if inputs.ndim else 0,
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    convolve = PlacedConv(
        inputs.shape,
        inputs.dtype,
        geometry,
        Numerics(precision, preferred_element_type).settled,
        implementation,
    )
    outputs = leave_to_partitioner(
        convolve,
        (inputs, kernel),
        of_convolution(inputs, kernel, geometry.output_size(inputs.shape[1:-1])),
        gathers=convolve.check(),
    )
    return add_bias(outputs, bias)
