"""The frequency-dynamic convolution: a mixture of experts for each bin of an axis.

    y_i(t, f) = Σ_k a_ik(f) (conv(x_i, W_k) + b_k)(t, f)

The attention goes along one axis of the output, and is the same along the other. As
published, all experts convolve once, and their outputs are mixed (`"experts"`): K times
the arithmetic. But a bin is a one-dimensional convolution along the other axis, of the
rows that its window spans, with one mixed kernel. So the bins of all samples are the
samples of a dynamic convolution, with all the forms that it has.
"""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dynconv_torch.functional.checks import check_choice, check_tensors
from dynconv_torch.functional.choice import check_implementation
from dynconv_torch.functional.dynamic import dynamic_conv, merge_experts
from dynconv_torch.functional.geometry import Geometry, PaddingLike
from dynconv_torch.functional.per_sample import check_operands, conv
from dynconv_torch.functional.tracing import sizes_of
from dynconv_torch.functional.windows import gather_windows, pad_for

# Which spatial axis the attention goes along.
AXES = {"time": 0, "frequency": 1}


def along(geometry: Geometry, position: int) -> Geometry:
    """Returns the one-dimensional geometry of a convolution along one of its axes.

    Example:
        >>> along(Geometry.create(3, 8, (3, 5), rank=2, stride=(1, 2)), 1).stride
        (2,)
    """
    padding = geometry.padding
    return dataclasses.replace(
        geometry,
        kernel_size=(geometry.kernel_size[position],),
        stride=(geometry.stride[position],),
        padding=padding if isinstance(padding, str) else (padding[position],),
        dilation=(geometry.dilation[position],),
    )


def frequency_dynamic_conv(
    input: Float[Tensor, "batch in_channels frames frequencies"],
    attention: Shaped[Tensor, "batch experts bins"],
    weight: Float[Tensor, "experts out_channels in_per_group *window"],
    bias: Float[Tensor, "experts out_channels"] | None = None,
    *,
    axis: str = "frequency",
    stride: int | Sequence[int] = 1,
    padding: PaddingLike = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    implementation: str = "auto",
) -> Float[Tensor, "batch out_channels out_frames out_frequencies"]:
    """Convolves every bin of every sample with a mixture of experts of its own.

    Nam et al., "Frequency Dynamic Convolution", Interspeech 2022, section 3.

    Args:
        input: The samples.
        attention: The weight of each expert for each bin of the output along `axis`.
        weight: The experts, of the dtype of `input`.
        bias: The bias of each expert, or None.
        axis: Where bins differ: `"frequency"`, the last spatial axis, or `"time"`, the
            first.
        stride: An int, or one per spatial dimension.
        padding: `"same"` (with a stride of 1), `"valid"`, `"tf_same"` (for any stride,
            as TensorFlow pads), an int, or one int or (low, high) pair per spatial
            dimension.
        dilation: An int, or one per spatial dimension.
        groups: It must divide the channels of the input and of the output.
        implementation: `"experts"`, one convolution to the outputs of all experts, as
            `"auto"` does; or what `dynamic_conv` has besides, for the bins as samples.
            All compute the same.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, the kernel spans more than the padded input,
            or the axis or the implementation is unknown.

    Example:
        >>> sounds, attention = torch.ones(2, 4, 9, 6), torch.full((2, 3, 6), 1 / 3)
        >>> experts = torch.ones(3, 8, 4, 3, 3)
        >>> frequency_dynamic_conv(sounds, attention, experts, padding=1).shape
        torch.Size([2, 8, 9, 6])
    """
    check_implementation(implementation)
    check_tensors(
        input=input, attention=attention, weight=weight, bias=bias, optional=("bias",)
    )
    check_choice("axis", axis, AXES)
    position = AXES[axis]
    if input.ndim != 4:
        raise ValueError(
            f"`input` (shape {sizes_of(input)}) must be (batch, in_channels, frames, "
            "frequencies)"
        )
    geometry = check_operands(
        input,
        weight,
        bias,
        stack="num_experts",
        stack_size=sizes_of(weight)[0],
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    sizes = sizes_of(input)
    bins = geometry.output_size(sizes[2:])[position]
    expected = (sizes[0], sizes_of(weight)[0], bins)
    if sizes_of(attention) != expected:
        raise ValueError(
            f"`attention` (shape {sizes_of(attention)}) must be (batch, num_experts, "
            f"bins) = {expected}, with the bins of the output along `axis` (={axis!r})"
        )
    if implementation in ("auto", "experts"):
        return _conv_by_experts(input, attention, weight, bias, geometry, position)
    return _conv_by_bins(
        input, attention, weight, bias, geometry, position, implementation
    )


def _conv_by_experts(
    input: Tensor,
    attention: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    position: int,
) -> Tensor:
    """Convolves once, with the outputs of all experts, and mixes these in each bin."""
    groups = geometry.groups
    output = conv(input, merge_experts(weight, groups), geometry, groups)
    output = output.unflatten(1, (groups, attention.shape[1], -1))
    along_bins = "t" if position == 0 else "f"
    weights = attention.to(output.dtype)
    mixed = torch.einsum(f"bk{along_bins},bgkotf->bgotf", weights, output).flatten(1, 2)
    if bias is None:
        return mixed
    own = torch.einsum("bkn,ko->bon", weights, bias.to(output.dtype))
    return mixed + own.unsqueeze(3 - position)


def _conv_by_bins(
    input: Tensor,
    attention: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    position: int,
    implementation: str,
) -> Tensor:
    """Convolves along the other axis, with each bin as a sample of its own."""
    if position == 0:  # the bins go last
        input, weight = input.transpose(2, 3), weight.transpose(3, 4)
    gathering, convolving = along(geometry, position), along(geometry, 1 - position)
    rows = input.transpose(1, 2)  # (B, T, C, F)
    batch, frames, channels, _ = rows.shape
    padded = pad_for(rows.flatten(0, 1), gathering)
    windows = gather_windows(padded, gathering)  # (B·T, k·C, F')
    bins, (taps,), groups = windows.shape[2], gathering.kernel_size, geometry.groups
    # A group's channels stay together, of all taps.
    windows = windows.reshape(batch, frames, taps, groups, channels // groups, bins)
    windows = windows.permute(0, 5, 3, 2, 4, 1)
    experts, outputs, width, length, _ = weight.shape
    output = dynamic_conv(
        windows.reshape(batch * bins, taps * channels, frames),
        attention.transpose(1, 2).flatten(0, 1),
        weight.movedim(4, 2).reshape(experts, outputs, taps * width, length),
        bias,
        stride=convolving.stride,
        padding=convolving.padding,
        dilation=convolving.dilation,
        groups=groups,
        implementation=implementation,
    )
    output = output.unflatten(0, (batch, bins)).movedim(1, 3)  # (B, O, T', F')
    return output.transpose(2, 3) if position == 0 else output
