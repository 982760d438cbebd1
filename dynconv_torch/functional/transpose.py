"""The transposed convolution: every sample spread by a kernel of its own.

    y_i[p] = Σ_j Σ_t x_i[j] W_i[t]    over all j, t with j·stride + t·dilation = p + low

The forms are those of `per_sample.py` and `dynamic.py`, with PyTorch's transposed
convolution in the place of its convolution.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float, Num, Shaped
from torch import Tensor

from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.choice import check_implementation, choose
from dynconv_torch.functional.dynamic import (
    check_attention,
    conv_by_experts,
    mix_kernels,
)
from dynconv_torch.functional.geometry import Geometry, PaddingLike
from dynconv_torch.functional.patches import conv_by_patches
from dynconv_torch.functional.per_sample import (
    add_bias,
    check_operands,
    conv_by_form,
)
from dynconv_torch.functional.tracing import sizes_of
from dynconv_torch.functional.transpose_geometry import TransposeGeometry
from dynconv_torch.functional.windows import pad


def conv_transpose(
    input: Tensor, weight: Tensor, geometry: TransposeGeometry, groups: int
) -> Tensor:
    """Applies one kernel, by the transposed convolution of PyTorch for the rank.

    Args:
        input: Shape (B, C', *S).
        weight: Shape (C', O'/groups, *k).
        geometry: Where the stride, padding and dilation come from; C' and O' may be
            multiples of its channels.
        groups: The number of channel groups of this convolution.

    Returns:
        Shape (B, O', *S_out).
    """
    function = getattr(F, f"conv_transpose{geometry.rank}d")
    stride, dilation = geometry.stride, geometry.dilation
    if all(0 <= low == high for low, high in geometry.padding):
        padding = tuple(low for low, _ in geometry.padding)
        extra = geometry.output_padding
        return function(input, weight, None, stride, padding, extra, groups, dilation)
    full = function(input, weight, None, stride, 0, 0, groups, dilation)
    crops = [
        (-low, extra - high)
        for (low, high), extra in zip(
            geometry.padding, geometry.output_padding, strict=True
        )
    ]
    return pad(full, crops)


def conv_transpose_by_patches(
    input: Num[Tensor, "batch in_channels *spatial"],
    weight: Num[Tensor, "batch in_channels out_per_group *window"],
    geometry: TransposeGeometry,
) -> Num[Tensor, "batch out_channels *out_spatial"]:
    """Convolves samples with kernels of their own, as one product.

    It is the convolution of the input, spread by the stride, with the kernel turned
    over. The zeros between the pixels are gathered and multiplied too.
    """
    rank = geometry.rank
    for axis, step in enumerate(geometry.stride, start=2):
        if step > 1:  # each pixel, and the zeros that follow it
            trailing = (0,) * 2 * (input.ndim - axis - 1)
            spread = F.pad(input.unsqueeze(axis + 1), (*trailing, 0, step - 1))
            input = spread.flatten(axis, axis + 1)
    padding = tuple(
        (extent - 1 - low, extent - 1 - high + extra - (step - 1))
        for (low, high), extent, extra, step in zip(
            geometry.padding,
            geometry.extent,
            geometry.output_padding,
            geometry.stride,
            strict=True,
        )
    )
    plain = Geometry.create(
        geometry.in_channels,
        geometry.out_channels,
        geometry.kernel_size,
        rank=rank,
        padding=padding,
        dilation=geometry.dilation,
        groups=geometry.groups,
    )
    # (B, C, O/g, *k) -> (B, O, C/g, *k)
    turned = weight.unflatten(1, (geometry.groups, -1)).transpose(2, 3).flatten(1, 2)
    return conv_by_patches(input, turned.flip(*range(3, rank + 3)), plain)


def _conv_by_form(
    form: str, input: Tensor, weight: Tensor, geometry: TransposeGeometry
) -> Tensor:
    return conv_by_form(
        form, input, weight, geometry, conv_transpose, conv_transpose_by_patches
    )


def _merge_experts(weight: Tensor) -> Tensor:
    """Makes of experts (K, C, O/g, *k) one kernel with K·O/g outputs a group."""
    return weight.transpose(0, 1).flatten(1, 2)


def per_sample_conv_transpose(
    input: Num[Tensor, "batch in_channels *spatial"],
    weight: Num[Tensor, "batch in_channels out_per_group *window"],
    bias: Num[Tensor, "batch out_channels"] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: PaddingLike = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    implementation: str = "auto",
) -> Num[Tensor, "batch out_channels *out_spatial"]:
    """Applies to every sample the transposed convolution with its own kernel.

    Args:
        input: The samples, with 1, 2 or 3 spatial dimensions.
        weight: The kernel of each sample, of the same dtype.
        bias: The bias of each sample, or None.
        stride: An int, or one per spatial dimension.
        padding: What is cropped from the full output: an int, or one int or (low, high)
            pair per spatial dimension. A negative number appends zeros.
        output_padding: How much larger the output is at the high end: an int, or one
            per spatial dimension, smaller than the stride or the dilation.
        dilation: An int, or one per spatial dimension.
        groups: It must divide the channels of the input and of the output.
        implementation: `"auto"`, `"loop"`, `"grouped"` or `"patches"`, as in
            `per_sample_conv`. All compute the same.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, nothing is left of the output, the output
            padding is too large, or the implementation is unknown or is `"experts"`,
            which needs the attention (see `dynamic_conv_transpose`).

    Example:
        >>> import torch
        >>> images = torch.ones(2, 4, 5, 4)
        >>> kernels = torch.ones(2, 4, 8, 3, 3)
        >>> per_sample_conv_transpose(images, kernels, stride=2, padding=1).shape
        torch.Size([2, 8, 9, 7])
    """
    check_implementation(implementation)
    check_tensors(
        input=input, weight=weight, bias=bias, optional=("bias",), may_be_complex=True
    )
    geometry = check_operands(
        input,
        weight,
        bias,
        stack="batch",
        stack_size=sizes_of(input)[0],
        geometry_type=TransposeGeometry,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
    )
    form = choose(implementation, geometry, input, weight)
    return add_bias(_conv_by_form(form, input, weight, geometry), bias)


def dynamic_conv_transpose(
    input: Float[Tensor, "batch in_channels *spatial"],
    attention: Shaped[Tensor, "batch experts"],
    weight: Float[Tensor, "experts in_channels out_per_group *window"],
    bias: Float[Tensor, "experts out_channels"] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: PaddingLike = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    implementation: str = "auto",
) -> Float[Tensor, "batch out_channels *out_spatial"]:
    """Applies the transposed convolution with a sample's own mixture of experts.

    Args:
        input: The samples, with 1, 2 or 3 spatial dimensions.
        attention: The weight of each expert for each sample. The rows need not sum to
            1.
        weight: The experts, of the dtype of `input`.
        bias: The bias of each expert, or None.
        stride: An int, or one per spatial dimension.
        padding: What is cropped from the full output, as in
            `per_sample_conv_transpose`.
        output_padding: As in `per_sample_conv_transpose`.
        dilation: An int, or one per spatial dimension.
        groups: It must divide the channels of the input and of the output.
        implementation: `"auto"`, `"loop"`, `"grouped"`, `"patches"` or `"experts"`, as
            in `dynamic_conv`. All compute the same.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, nothing is left of the output, the output
            padding is too large, or the implementation is unknown.

    Example:
        >>> import torch
        >>> attention = torch.tensor([[0.7, 0.3], [0.1, 0.9]])
        >>> experts = torch.ones(2, 4, 8, 4)
        >>> input = torch.ones(2, 4, 10)
        >>> dynamic_conv_transpose(input, attention, experts, stride=2, padding=1).shape
        torch.Size([2, 8, 20])
    """
    check_implementation(implementation)
    check_tensors(
        input=input, attention=attention, weight=weight, bias=bias, optional=("bias",)
    )
    check_attention(attention, sizes_of(input)[0], sizes_of(weight)[0])
    geometry = check_operands(
        input,
        weight,
        bias,
        stack="num_experts",
        stack_size=sizes_of(weight)[0],
        geometry_type=TransposeGeometry,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
    )
    if bias is not None:
        bias = mix_kernels(attention, bias)
    operands = input, attention, weight
    num_experts = sizes_of(weight)[0]
    form = choose(implementation, geometry, *operands, num_experts=num_experts)
    if form == "experts":
        merged = _merge_experts(weight)
        output = conv_by_experts(input, attention, merged, geometry, conv_transpose)
    else:
        mixed = mix_kernels(attention, weight)
        output = _conv_by_form(form, input, mixed, geometry)
    return add_bias(output, bias)
