"""The dynamic convolution: experts mixed per sample, then applied to that sample.

    W(x_i) = Σ_k a_ik W_k        b(x_i) = Σ_k a_ik b_k        y_i = conv(x_i, W(x_i))

The experts are laid out as the chosen form wants them (`forms.py`), then mixed: for the
whole batch at once, or, in a loop over the samples, for those of each step, so that
there is never a kernel for every sample. `"experts"` mixes the outputs instead. With
spatial attention s_i the kernel is s_i ⊙ W(x_i), each tap weighted as a whole.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from dynconv_jax.functional.checks import take_arrays
from dynconv_jax.functional.chips import Target
from dynconv_jax.functional.choice import choose
from dynconv_jax.functional.cost import Plan, Problem, devices_of_a_batch
from dynconv_jax.functional.experts import conv_by_all_experts, conv_by_experts
from dynconv_jax.functional.forms import FORMS, Form
from dynconv_jax.functional.geometry import Geometry, PaddingLike, check_operands
from dynconv_jax.functional.mixing import mix_by_product, mix_by_sum, mix_kernels
from dynconv_jax.functional.numerics import Numerics, multiply_wide
from dynconv_jax.functional.pallas.by_platform import conv_by_pallas, pallas_refuses
from dynconv_jax.functional.per_sample import PlacedConv, PlannedConv, add_bias
from dynconv_jax.functional.scan import map_samples
from dynconv_jax.functional.sharding import leave_to_partitioner, of_convolution
from dynconv_jax.functional.static import conv_by_one_kernel


def dynamic_conv_by_plan(
    plan: Plan,
    inputs: Float[jax.Array, "batch *spatial in_features"],
    attention: Shaped[jax.Array, "batch experts"] | None,
    kernel: Float[jax.Array, "experts *window in_per_group out_features"],
    geometry: Geometry,
    numerics: Numerics,
    spatial_attention: Shaped[jax.Array, "batch *window"] | None = None,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Computes a dynamic convolution as a plan says.

    Args:
        plan: One of those that `choice.plans` gives for the problem.
        inputs: The samples.
        attention: The weights of the experts, or None for a single one with weight 1.
        kernel: The experts, as wide as the inputs or wider.
        geometry: The convolution.
        numerics: Its numerical options.
        spatial_attention: The weights of the taps, or None. There must be one of the
            two.

    Returns:
        The outputs.
    """
    is_dense = geometry.feature_group_count == 1 and spatial_attention is None
    if plan.form == "experts by convolution" and is_dense:
        return conv_by_all_experts(inputs, attention, kernel, geometry, numerics)
    if plan.implementation == "experts":
        return conv_by_experts(
            inputs, attention, kernel, geometry, numerics, spatial_attention
        )
    if plan.implementation == "pallas":
        return conv_by_pallas(
            plan.form, inputs, attention, kernel, geometry, numerics, spatial_attention
        )
    form = FORMS[plan.form]
    mixed_kernel = _mixer(
        form, kernel, geometry, inputs.dtype, numerics.precision, plan.by_sums
    )

    def convolve(
        inputs: jax.Array,
        attention: jax.Array | None,
        spatial_attention: jax.Array | None,
    ) -> jax.Array:
        mixed = mixed_kernel(attention, spatial_attention)
        return form.convolve(inputs, mixed, geometry, numerics)

    operands = (inputs, attention, spatial_attention)
    if plan.chunk is not None:
        return map_samples(convolve, operands, plan.chunk)
    return convolve(*operands)


def _mixer(
    form: Form,
    kernel: jax.Array,
    geometry: Geometry,
    dtype: DTypeLike,
    precision: lax.PrecisionLike,
    by_sums: bool,
) -> Callable[[jax.Array | None, jax.Array | None], jax.Array]:
    """Returns the function from attentions (..., K) and (..., *k) to arranged kernels.

    The experts are arranged once, except for spatial attention: its weights multiply
    kernels that still have their spatial axes, and each product is arranged as it is
    written.
    """
    arranged = form.arrange(kernel, geometry)

    def mix(attention: jax.Array, kernel: jax.Array) -> jax.Array:
        if by_sums:
            return mix_by_sum(attention, kernel, dtype)
        return mix_by_product(attention, kernel, dtype, precision)

    def mixed_kernel(
        attention: jax.Array | None, spatial_attention: jax.Array | None
    ) -> jax.Array:
        if spatial_attention is None:
            assert attention is not None
            return mix(attention, arranged)
        mixed = kernel[0] if attention is None else mix(attention, kernel)
        # In the wider dtype of the two: the gradient of a tap sums C/g · O products.
        weights = spatial_attention[..., None, None]
        if mixed.ndim < weights.ndim:  # of a single expert
            mixed = mixed[None]
        weighted = multiply_wide(mixed, weights)
        return form.arrange(weighted.astype(dtype), geometry)

    return mixed_kernel


def check_attention(attention: jax.Array, batch: int, num_experts: int) -> None:
    """Raises a ValueError unless `attention` has the shape (B, K)."""
    expected = (batch, num_experts)
    if attention.shape != expected:
        raise ValueError(
            f"`attention` (shape {attention.shape}) must be (batch, num_experts) = "
            f"{expected}"
        )


class PlannedDynamicConv(PlannedConv):
    """A dynamic convolution as a plan says."""

    def __call__(
        self,
        inputs: jax.Array,
        attention: jax.Array | None,
        kernel: jax.Array,
        spatial_attention: jax.Array | None,
    ) -> jax.Array:
        """Convolves (B, *S, C) with experts (K, *k, C/g, O); see `dynamic_conv`."""
        return dynamic_conv_by_plan(
            self.plan,
            inputs,
            attention,
            kernel,
            self.geometry,
            self.numerics,
            spatial_attention,
        )


@dataclasses.dataclass(frozen=True)
class _PlacedDynamicConv(PlacedConv):
    """A dynamic convolution whose plan is chosen where it is lowered.

    Attributes:
        num_experts: K.
        weighs_taps: Whether there is spatial attention.
    """

    num_experts: int
    weighs_taps: bool

    def refusal_on(self, platform: str, device_count: int) -> str | None:
        """Says why the kernels of Pallas cannot compute it on a platform."""
        return pallas_refuses(
            *(platform, self.geometry, self.shape, self.num_experts, self.dtype),
            numerics=self.numerics,
            spatial_attention=self.weighs_taps,
            device_count=device_count,
        )

    def problem_on(self, target: Target) -> Problem:
        """Returns the problem of computing it in a place."""
        problem = super().problem_on(target)
        refusal = self.refusal_on(target.platform, problem.device_count)
        return dataclasses.replace(
            problem, num_experts=self.num_experts, has_kernels=refusal is None
        )

    def on(self, target: Target) -> PlannedConv:
        """Returns the convolution as it is computed in a place.

        Raises:
            ValueError: If the kernels of Pallas are asked for where they cannot be.
        """
        problem = self.problem_on(target)
        # On a CPU they are refused when they are called; their types are asked for.
        if self.implementation == "pallas" and target.platform != "cpu":
            reason = self.refusal_on(target.platform, problem.device_count)
            if reason is not None:
                raise ValueError(
                    f"`implementation` (='pallas') {reason}; or use 'auto'"
                )
        plan = choose(problem, self.implementation)
        return PlannedDynamicConv(plan, self.geometry, self.numerics)

    def check(self) -> bool:
        """Checks that it can be computed; returns whether that gathers a batch.

        Raises:
            ValueError: If the implementation is unknown or cannot compute it.
        """
        gathers = super().check()
        if self.implementation == "pallas":
            count = devices_of_a_batch(1)
            reasons = [self.refusal_on(each, count) for each in ("tpu", "gpu")]
            if None not in reasons:
                raise ValueError(
                    f"`implementation` (='pallas') {reasons[0]}; use 'auto'"
                )
        return gathers


def dynamic_conv(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    attention: Shaped[jax.Array, "batch experts"] | None,
    kernel: Float[jax.Array, "experts *window in_per_group out_features"],
    bias: Float[jax.Array, "experts out_features"] | None = None,
    *,
    spatial_attention: Shaped[jax.Array, "batch *window"] | None = None,
    strides: int | Sequence[int] | None = 1,
    padding: PaddingLike = "SAME",
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    implementation: str = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves every sample with its own mixture of experts.

    Args:
        inputs: The samples, with 1, 2 or 3 spatial dimensions.
        attention: The weight of each expert for each sample. The rows need not sum to
            1. None is for a single expert, whose weight is then 1.
        kernel: The experts, of the dtype of `inputs`; or float32 beside narrower
            inputs: they are then rounded to their dtype, and their gradient is not.
        bias: The bias of each expert, or None.
        spatial_attention: One more weight for each sample and tap, which multiplies the
            mixed kernel; None is 1. With neither attention the kernel is the same for
            all samples, and it is a convolution like any other.
        strides: An int, or one per spatial dimension.
        padding: `"SAME"`, `"VALID"`, an int, or one int or (low, high) pair per spatial
            dimension.
        kernel_dilation: An int, or one per spatial dimension.
        feature_group_count: It must divide the features of inputs and of outputs.
        implementation: `"auto"`, `"patches"`, `"rows"`, `"scan"`, `"taps"` (depthwise),
            `"experts"`, `"row_conv"` (for TPUs), `"pallas"` (TPUs and GPUs) or
            `"vmap"`. All compute the same; `explain` says what `"auto"` chooses, which
            is for the platform that the program is lowered for.
            `"vmap"` is the reference, see `forms.py` for what XLA may do to it.
        precision: As in `jax.lax.conv_general_dilated`.
        preferred_element_type: The dtype of the output and of the sums behind it, as in
            `jax.lax.conv_general_dilated`.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, the kernel spans more than the padded input,
            or the implementation is unknown or cannot compute this, as `"taps"` a
            convolution that is not depthwise.

    Example:
        >>> import jax.numpy as jnp
        >>> attention = jnp.array([[0.7, 0.3], [0.1, 0.9]])
        >>> experts = jnp.ones((2, 3, 4, 8))
        >>> dynamic_conv(jnp.ones((2, 10, 4)), attention, experts).shape
        (2, 10, 8)
    """
    inputs, attention, kernel, bias, spatial_attention = take_arrays(
        inputs=inputs,
        attention=attention,
        kernel=kernel,
        bias=bias,
        spatial_attention=spatial_attention,
        optional=("attention", "bias", "spatial_attention"),
    )
    geometry = check_operands(
        inputs,
        kernel,
        bias,
        stack="num_experts",
        stack_size=kernel.shape[0] if kernel.ndim else 0,
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    check_attentions(inputs, attention, spatial_attention, kernel)
    if bias is not None and attention is not None:
        bias = mix_kernels(attention, bias, precision=precision)
    planned = _PlacedDynamicConv(
        inputs.shape,
        inputs.dtype,
        geometry,
        Numerics(precision, preferred_element_type).settled,
        implementation,
        kernel.shape[0],
        spatial_attention is not None,
    )
    gathers = planned.check()

    def convolve(
        inputs: jax.Array,
        attention: jax.Array | None,
        kernel: jax.Array,
        spatial_attention: jax.Array | None,
    ) -> jax.Array:
        if attention is None and spatial_attention is None:
            only = kernel[0].astype(inputs.dtype)
            return conv_by_one_kernel(inputs, only, geometry, planned.numerics)
        return planned(inputs, attention, kernel, spatial_attention)

    outputs = leave_to_partitioner(
        convolve,
        (inputs, attention, kernel, spatial_attention),
        of_convolution(inputs, kernel, geometry.output_size(inputs.shape[1:-1])),
        stack=kernel,
        gathers=gathers,
    )
    return add_bias(outputs, bias)


def check_attentions(
    inputs: jax.Array,
    attention: jax.Array | None,
    spatial_attention: jax.Array | None,
    kernel: jax.Array,
) -> None:
    """Raises a ValueError unless attentions fit inputs and experts."""
    batch, (num_experts, *size) = inputs.shape[0], kernel.shape[:-2]
    if attention is not None:
        check_attention(attention, batch, num_experts)
    elif num_experts > 1:
        raise ValueError(
            "`attention` (=None) is for a single expert; for those of `kernel` (shape "
            f"{kernel.shape}) it must be (batch, num_experts) = {(batch, num_experts)}"
        )
    expected = (batch, *size)
    if spatial_attention is not None and spatial_attention.shape != expected:
        raise ValueError(
            f"`spatial_attention` (shape {spatial_attention.shape}) must be (batch, "
            f"*kernel_size) = {expected}"
        )
