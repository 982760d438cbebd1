"""The transposed convolution: every sample spread by a kernel of its own.

    y_i[p] = Σ_j Σ_t x_i[j] W_i[t]    over all j, t with j·stride + t·dilation = p + low

Two equivalent forms. Spread the inputs, stride - 1 zeros between any two pixels, and
convolve them with the flipped kernel, which is how one writes it down (`"vmap"`); most
of the products are then with zeros. Or sort the outputs by their remainder modulo the
stride: those of one remainder see the taps of one remainder only, so that each of these
phases is an ordinary convolution of the inputs as they are, with stride 1 and a part of
the kernel, and the phases interleave to the outputs. A phase is computed by whichever
form of `per_sample.py` and `dynamic.py` is asked for, or fastest. Shi et al., "Is the
deconvolution layer the same as a convolutional layer?", 2016, for a static kernel.
"""

import abc
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from dynconv_jax.functional.checks import take_arrays
from dynconv_jax.functional.chips import Target, chip_for
from dynconv_jax.functional.choice import (
    check_implementation,
    choose,
    is_chosen_by_place,
)
from dynconv_jax.functional.cost import Plan, Problem
from dynconv_jax.functional.dynamic import check_attention, dynamic_conv_by_plan
from dynconv_jax.functional.geometry import Geometry, PaddingLike, check_operands
from dynconv_jax.functional.mixing import mix_kernels
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.per_sample import add_bias, per_sample_conv_by_plan
from dynconv_jax.functional.platforms import compute_where_lowered
from dynconv_jax.functional.sharding import leave_to_partitioner, of_convolution
from dynconv_jax.functional.transpose_geometry import TransposeGeometry
from dynconv_jax.functional.transpose_phases import (
    along_each_axis,
    as_convolution,
    conv_by_phases,
)

# What brings all samples of a sharded batch to every device.
_GATHERING = ("scan", "row_conv", "vmap")

# The plan of the convolution of each phase.
_Plans = tuple[tuple[Geometry, Plan], ...]


def conv_transpose_by_vmap(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    kernel: Float[jax.Array, "batch *window in_per_group out_features"],
    geometry: TransposeGeometry,
    numerics: Numerics,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Spreads samples by kernels in XLA's own way, mapped.

    It is the reference for every other form.
    """
    axes = "DHW"[-geometry.rank :]

    def one(sample: jax.Array, own_kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            sample[None],
            jnp.flip(own_kernel, axis=tuple(range(geometry.rank))),
            window_strides=(1,) * geometry.rank,
            padding=geometry.pads(sample.shape[:-1]),
            lhs_dilation=geometry.strides,
            rhs_dilation=geometry.kernel_dilation,
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
            feature_group_count=geometry.feature_group_count,
            precision=numerics.precision,
            preferred_element_type=numerics.preferred_element_type,
        )[0]

    return jax.vmap(one)(inputs, kernel)


@dataclasses.dataclass(frozen=True)
class _PlannedTranspose(abc.ABC):
    """A transposed convolution with a plan for each phase.

    Attributes:
        plans: The plans; of `"vmap"`, which has no phases, None.
        geometry: The transposed convolution.
        numerics: Its numerical options.
    """

    plans: _Plans | None
    geometry: TransposeGeometry
    numerics: Numerics

    @abc.abstractmethod
    def __call__(self, *operands: Any) -> jax.Array:
        """Computes."""

    @property
    def plain(self) -> Self:
        """The same, of operations that can be differentiated in any way."""
        return self._with(lambda plan: plan.plain)

    @property
    def mappable(self) -> Self:
        """The same, of operations that `jax.vmap` maps well."""
        return self._with(lambda plan: plan.mappable)

    @property
    def loops(self) -> bool:
        """Whether it takes a few samples at a time."""
        return any(plan.chunk is not None for _, plan in self.plans or ())

    def _with(self, change: Callable[[Plan], Plan]) -> Self:
        if self.plans is None:
            return self
        plans = tuple((phase, change(plan)) for phase, plan in self.plans)
        return dataclasses.replace(self, plans=plans)


class _PerSampleTranspose(_PlannedTranspose):
    def __call__(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        geometry, numerics = self.geometry, self.numerics
        if self.plans is None:
            return conv_transpose_by_vmap(inputs, kernel, geometry, numerics)
        plans = dict(self.plans)

        def convolve(inputs: jax.Array, part: jax.Array, phase: Geometry) -> jax.Array:
            return per_sample_conv_by_plan(plans[phase], inputs, part, phase, numerics)

        return conv_by_phases(inputs, kernel, geometry, numerics, convolve)


class _DynamicTranspose(_PlannedTranspose):
    def __call__(
        self, inputs: jax.Array, attention: jax.Array, kernel: jax.Array
    ) -> jax.Array:
        geometry, numerics = self.geometry, self.numerics
        if self.plans is None:
            mixed = mix_kernels(attention, kernel, precision=numerics.precision)
            mixed = mixed.astype(inputs.dtype)
            return conv_transpose_by_vmap(inputs, mixed, geometry, numerics)
        plans = dict(self.plans)

        def convolve(inputs: jax.Array, part: jax.Array, phase: Geometry) -> jax.Array:
            plan = plans[phase]
            return dynamic_conv_by_plan(plan, inputs, attention, part, phase, numerics)

        return conv_by_phases(inputs, kernel, geometry, numerics, convolve)


@dataclasses.dataclass(frozen=True)
class _PlacedTranspose:
    """A transposed convolution whose plans are chosen where it is lowered.

    Attributes:
        planned: What computes it.
        shape: The shape (B, *S, C) of the inputs.
        dtype: Their dtype.
        geometry: The transposed convolution.
        numerics: Its numerical options.
        implementation: `"auto"`, or the name of the form to use.
        num_experts: K, or None where every sample brings its own kernel.
    """

    planned: type[_PlannedTranspose]
    shape: tuple[Any, ...]
    dtype: jnp.dtype
    geometry: TransposeGeometry
    numerics: Numerics
    implementation: str
    num_experts: int | None

    def on(self, target: Target) -> _PlannedTranspose:
        """Returns the transposed convolution as it is computed in a place."""
        plans = None
        if self.implementation != "vmap":
            plans = tuple(
                (phase, choose(self._problem(phase, target), self.implementation))
                for phase in self._phases()
            )
        return self.planned(plans, self.geometry, self.numerics)

    def __call__(self, *operands: jax.Array) -> jax.Array:
        """Computes, by the same form everywhere if it is asked for by its name."""
        if is_chosen_by_place(self.implementation):
            return compute_where_lowered(self, *operands)
        return self.on(Target("cpu"))(*operands)

    def _phases(self) -> list[Geometry]:
        along = along_each_axis(self.geometry, self.shape[1:-1])
        phases = (
            as_convolution(self.geometry, each) for each in itertools.product(*along)
        )
        return list(dict.fromkeys(phase for phase in phases if phase is not None))

    def _problem(self, phase: Geometry, target: Target) -> Problem:
        return Problem.of(
            jax.ShapeDtypeStruct(self.shape, self.dtype),
            phase,
            self.num_experts,
            chip=chip_for(target.platform),
            device_count=target.device_count,
        )


def _transpose(
    planned: type[_PlannedTranspose],
    operands: Sequence[jax.Array],
    geometry: TransposeGeometry,
    numerics: Numerics,
    implementation: str,
) -> jax.Array:
    """Computes a transposed convolution of (inputs, ..., kernel)."""
    inputs, kernel = operands[0], operands[-1]
    num_experts = kernel.shape[0] if planned is _DynamicTranspose else None
    check_implementation(
        implementation,
        geometry,
        has_experts=num_experts is not None,
        has_batch=isinstance(inputs.shape[0], int),
    )
    if implementation == "pallas":
        raise ValueError(
            "`implementation` (='pallas') has no transposed form; use 'auto'"
        )
    return leave_to_partitioner(
        _PlacedTranspose(
            planned,
            inputs.shape,
            inputs.dtype,
            geometry,
            numerics.settled,
            implementation,
            num_experts,
        ),
        operands,
        of_convolution(inputs, kernel, geometry.output_size(inputs.shape[1:-1])),
        stack=None if num_experts is None else kernel,
        gathers=implementation in _GATHERING,
    )


def per_sample_conv_transpose(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    kernel: Float[jax.Array, "batch *window in_per_group out_features"],
    bias: Float[jax.Array, "batch out_features"] | None = None,
    *,
    strides: int | Sequence[int] | None = 1,
    padding: PaddingLike = "SAME",
    output_padding: int | Sequence[int] = 0,
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    implementation: str = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Applies to every sample the transposed convolution with its own kernel.

    For each sample it is `torch.nn.functional.conv_transpose1d` (2d, 3d) with the
    kernel laid out as (*k, C/g, O): group j takes its C/g inputs to its O/g outputs.
    `nnx.ConvTranspose` does not flip its kernel, so it computes the same with the
    kernel flipped along all spatial axes.

    Args:
        inputs: The samples, with 1, 2 or 3 spatial dimensions.
        kernel: The kernel of each sample, of the same dtype.
        bias: The bias of each sample, or None.
        strides: An int, or one per spatial dimension.
        padding: `"SAME"` (the output is `strides` times as large as the input),
            `"VALID"`, both as in `nnx.ConvTranspose`; or, as in
            `torch.nn.ConvTranspose2d` and unlike `nnx.ConvTranspose`, what is cropped
            from the full output: an int, or one int or (low, high) pair per spatial
            dimension. A negative number appends zeros.
        output_padding: How much larger the output is at the high end: an int, or one
            per spatial dimension, smaller than the stride or the dilation.
        kernel_dilation: An int, or one per spatial dimension.
        feature_group_count: It must divide the features of inputs and of outputs.
        implementation: `"auto"`, `"patches"`, `"rows"`, `"scan"`, `"taps"`
            (depthwise), `"row_conv"` (for TPUs) or `"vmap"`. All compute the same.
        precision: As in `jax.lax.conv_general_dilated`.
        preferred_element_type: The dtype of the output and of the sums behind it, as in
            `jax.lax.conv_general_dilated`.

    Returns:
        The outputs; without a name for the padding, along each dimension as many as
        (inputs - 1) · stride + (taps - 1) · dilation + 1 - low - high + output_padding.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, nothing is left of the output, the output
            padding is too large, or the implementation is unknown or cannot compute
            this: `"experts"` needs the attention (see `dynamic_conv_transpose`),
            `"taps"` a depthwise convolution.

    Example:
        >>> import jax.numpy as jnp
        >>> images = jnp.ones((2, 5, 4, 4))
        >>> kernels = jnp.ones((2, 3, 3, 4, 8))
        >>> per_sample_conv_transpose(images, kernels, strides=2, padding=1).shape
        (2, 9, 7, 8)
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
        geometry_type=TransposeGeometry,
        strides=strides,
        padding=padding,
        output_padding=output_padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    outputs = _transpose(
        _PerSampleTranspose,
        (inputs, kernel),
        geometry,
        Numerics(precision, preferred_element_type),
        implementation,
    )
    return add_bias(outputs, bias)


def dynamic_conv_transpose(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    attention: Shaped[jax.Array, "batch experts"],
    kernel: Float[jax.Array, "experts *window in_per_group out_features"],
    bias: Float[jax.Array, "experts out_features"] | None = None,
    *,
    strides: int | Sequence[int] | None = 1,
    padding: PaddingLike = "SAME",
    output_padding: int | Sequence[int] = 0,
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    implementation: str = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Applies the transposed convolution with a sample's own mixture of experts.

    Args:
        inputs: The samples, with 1, 2 or 3 spatial dimensions.
        attention: The weight of each expert for each sample. The rows need not sum to
            1.
        kernel: The experts, of the dtype of `inputs`, or wider, as in `dynamic_conv`.
        bias: The bias of each expert, or None.
        strides: An int, or one per spatial dimension.
        padding: As in `per_sample_conv_transpose`: `"SAME"`, `"VALID"`, or what is
            cropped from the full output.
        output_padding: As in `per_sample_conv_transpose`.
        kernel_dilation: An int, or one per spatial dimension.
        feature_group_count: It must divide the features of inputs and of outputs.
        implementation: `"auto"`, `"patches"`, `"rows"`, `"scan"`, `"taps"` (depthwise),
            `"experts"` or `"vmap"`, as in `dynamic_conv`. All compute the same.
        precision: As in `jax.lax.conv_general_dilated`.
        preferred_element_type: The dtype of the output and of the sums behind it, as in
            `jax.lax.conv_general_dilated`.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, nothing is left of the output, the output
            padding is too large, or the implementation is unknown or cannot compute
            this.

    Example:
        >>> import jax.numpy as jnp
        >>> attention = jnp.array([[0.7, 0.3], [0.1, 0.9]])
        >>> experts = jnp.ones((2, 3, 4, 8))
        >>> inputs = jnp.ones((2, 10, 4))
        >>> dynamic_conv_transpose(inputs, attention, experts, strides=2).shape
        (2, 20, 8)
    """
    inputs, attention, kernel, bias = take_arrays(
        inputs=inputs,
        attention=attention,
        kernel=kernel,
        bias=bias,
        optional=("bias",),
    )
    geometry = check_operands(
        inputs,
        kernel,
        bias,
        stack="num_experts",
        stack_size=kernel.shape[0] if kernel.ndim else 0,
        geometry_type=TransposeGeometry,
        strides=strides,
        padding=padding,
        output_padding=output_padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    check_attention(attention, inputs.shape[0], kernel.shape[0])
    if bias is not None:
        bias = mix_kernels(attention, bias, precision=precision)
    outputs = _transpose(
        _DynamicTranspose,
        (inputs, attention, kernel),
        geometry,
        Numerics(precision, preferred_element_type),
        implementation,
    )
    return add_bias(outputs, bias)
