"""The dynamic convolution: experts mixed per sample, then applied to that sample.

    W(x_i) = Σ_k a_ik W_k        b(x_i) = Σ_k a_ik b_k        y_i = conv(x_i, W(x_i))

Convolution is linear in its kernel, so the mixture may be taken before the convolution
(one kernel per sample, see `per_sample.py`) or after it (`"experts"`: one dense
convolution to K·O outputs, then their weighted sum). The second does K times the
arithmetic but never writes a kernel per sample. With spatial attention s_i the kernel
is s_i ⊙ W(x_i), each tap weighted as a whole; that is for the first only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.choice import check_implementation, choose
from dynconv_torch.functional.geometry import Geometry, PaddingLike
from dynconv_torch.functional.per_sample import (
    Convolve,
    add_bias,
    check_operands,
    conv,
    per_sample_conv,
)
from dynconv_torch.functional.tracing import sizes_of


def mix_kernels(
    attention: Shaped[Tensor, "batch experts"],
    weight: Float[Tensor, "experts *kernel"],
) -> Float[Tensor, "batch *kernel"]:
    """Mixes stacked experts into one tensor per sample, Σ_k a_ik W_k.

    Args:
        attention: The weights. They are cast to the dtype of `weight`.
        weight: Kernels, or biases.

    Returns:
        The mixtures, in the dtype of `weight`.

    Raises:
        ValueError: If the two do not agree on K, or the kernels are not floating.

    Example:
        >>> mix_kernels(torch.full((2, 4), 0.25), torch.ones(4, 16, 8, 3, 3)).shape
        torch.Size([2, 16, 8, 3, 3])
    """
    check_tensors(attention=attention, weight=weight)
    if attention.ndim != 2 or sizes_of(attention)[1] != sizes_of(weight)[0]:
        raise ValueError(
            f"`attention` (shape {sizes_of(attention)}) must be (batch, "
            f"num_experts) with the {sizes_of(weight)[0]} experts of `weight` (shape "
            f"{sizes_of(weight)})"
        )
    if not weight.is_floating_point():
        raise ValueError(
            f"`weight` ({weight.dtype}) must be floating, to be mixed; cast it to "
            "float32"
        )
    mixed = attention.to(weight.dtype) @ weight.flatten(1)
    return mixed.unflatten(1, weight.shape[1:])


def merge_experts(weight: Tensor, groups: int) -> Tensor:
    """Makes of experts (K, O, C/g, *k) one kernel with g·K·O/g outputs, in that order.

    A group's outputs stay together.
    """
    return weight.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)


def conv_by_experts(
    input: Float[Tensor, "batch in_channels *spatial"],
    attention: Shaped[Tensor, "batch experts"],
    merged: Tensor,
    geometry: Geometry,
    convolve: Convolve = conv,
) -> Float[Tensor, "batch out_channels *out_spatial"]:
    """Applies all experts to all samples, then sums by attention.

    Args:
        input: The samples.
        attention: The weights of the experts.
        merged: The experts as one kernel, whose outputs are (g, K, O/g).
        geometry: The convolution.
        convolve: What convolves with one kernel.

    Returns:
        The outputs.
    """
    output = convolve(input, merged, geometry, geometry.groups)
    output = output.unflatten(1, (geometry.groups, attention.shape[1], -1))
    mixed = torch.einsum("bk,bgk...->bg...", attention.to(output.dtype), output)
    return mixed.flatten(1, 2)


def check_attention(attention: Tensor, batch: int, num_experts: int) -> None:
    """Raises a ValueError unless `attention` has the shape (B, K)."""
    expected = (batch, num_experts)
    if sizes_of(attention) != expected:
        raise ValueError(
            f"`attention` (shape {sizes_of(attention)}) must be (batch, "
            f"num_experts) = {expected}"
        )


def dynamic_conv(
    input: Float[Tensor, "batch in_channels *spatial"],
    attention: Shaped[Tensor, "batch experts"] | None,
    weight: Float[Tensor, "experts out_channels in_per_group *window"],
    bias: Float[Tensor, "experts out_channels"] | None = None,
    *,
    spatial_attention: Shaped[Tensor, "batch *window"] | None = None,
    stride: int | Sequence[int] = 1,
    padding: PaddingLike = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    implementation: str = "auto",
) -> Float[Tensor, "batch out_channels *out_spatial"]:
    """Convolves every sample with its own mixture of experts.

    Args:
        input: The samples, with 1, 2 or 3 spatial dimensions.
        attention: The weight of each expert for each sample. The rows need not sum to
            1. None is for a single expert, whose weight is then 1.
        weight: The experts, of the dtype of `input`.
        bias: The bias of each expert, or None.
        spatial_attention: One more weight for each sample and tap, which multiplies the
            mixed kernel; None is 1. With neither attention the kernel is the same for
            all samples, and it is a convolution like any other.
        stride: An int, or one per spatial dimension.
        padding: `"same"` (with a stride of 1), `"valid"`, `"tf_same"` (for any stride,
            as TensorFlow pads), an int, or one int or (low, high) pair per spatial
            dimension.
        dilation: An int, or one per spatial dimension.
        groups: It must divide the channels of the input and of the output.
        implementation: `"auto"`, `"loop"`, `"grouped"`, `"patches"` or, without spatial
            attention, `"experts"`. All compute the same; `"auto"` takes the one that it
            estimates to be the fastest, or one that leaves the batch open where that is
            what a program is traced for.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, the kernel spans more than the padded input,
            or the implementation is unknown or cannot compute this, or not leave open
            what is being exported.

    Example:
        >>> attention = torch.tensor([[0.7, 0.3], [0.1, 0.9]])
        >>> experts = torch.ones(2, 8, 4, 3)
        >>> dynamic_conv(torch.ones(2, 4, 10), attention, experts, padding=1).shape
        torch.Size([2, 8, 10])
    """
    check_implementation(implementation)
    check_tensors(
        input=input,
        attention=attention,
        weight=weight,
        bias=bias,
        spatial_attention=spatial_attention,
        optional=("attention", "bias", "spatial_attention"),
    )
    check_attentions(input, attention, spatial_attention, weight)
    options: dict[str, Any] = dict(
        stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    num_experts = sizes_of(weight)[0]
    geometry = check_operands(
        input, weight, bias, stack="num_experts", stack_size=num_experts, **options
    )
    if bias is not None and attention is not None:
        bias = mix_kernels(attention, bias)
    has_taps = spatial_attention is not None
    if has_taps and implementation == "experts":
        raise ValueError(
            "`implementation` (='experts') convolves all samples with the same "
            "kernels, which `spatial_attention` forbids; those that can compute this "
            "are 'auto', 'loop', 'grouped', 'patches'"
        )
    if attention is None and not has_taps:
        output = conv(input, weight[0], geometry, geometry.groups)
        return add_bias(output, bias)
    form = choose(
        implementation,
        geometry,
        input,
        *(each for each in (attention, spatial_attention, weight) if each is not None),
        num_experts=None if has_taps else num_experts,
    )
    if form == "experts":
        assert attention is not None
        merged = merge_experts(weight, geometry.groups)
        output = conv_by_experts(input, attention, merged, geometry)
        return add_bias(output, bias)
    mixed = weight[:1] if attention is None else mix_kernels(attention, weight)
    if spatial_attention is not None:
        # In the wider dtype of the two: the gradient of a tap sums C/g · O products.
        mixed = (mixed * spatial_attention[:, None, None]).to(mixed.dtype)
    output = per_sample_conv(input, mixed, None, implementation=form, **options)
    return add_bias(output, bias)


def check_attentions(
    input: Tensor,
    attention: Tensor | None,
    spatial_attention: Tensor | None,
    weight: Tensor,
) -> None:
    """Raises a ValueError unless attentions fit an input and experts."""
    batch, num_experts = sizes_of(input)[0], sizes_of(weight)[0]
    if attention is not None:
        check_attention(attention, batch, num_experts)
    elif num_experts > 1:
        raise ValueError(
            "`attention` (=None) is for a single expert; for those of `weight` (shape "
            f"{sizes_of(weight)}) it must be (batch, num_experts) = "
            f"{(batch, num_experts)}"
        )
    expected = (batch, *sizes_of(weight)[3:])
    if spatial_attention is not None and sizes_of(spatial_attention) != expected:
        raise ValueError(
            f"`spatial_attention` (shape {sizes_of(spatial_attention)}) must be "
            f"(batch, *kernel_size) = {expected}"
        )
