"""The per-sample convolution: every sample of a batch with a kernel of its own.

    y_i = conv(x_i, W_i) + b_i

Three equivalent forms. `"loop"` convolves the samples one after the other, which is how
one would write it down. `"grouped"` folds the batch into the channels and convolves
once, with B·g groups, so that each sample meets its own kernel only. `"patches"`
gathers the windows and multiplies (`patches.py`). Which is faster depends on the shape,
and which can be had on whether the batch is known; `"auto"` chooses (`choice.py`).
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Num
from torch import Tensor
from torch._higher_order_ops import scan

from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.choice import check_implementation, choose
from dynconv_torch.functional.geometry import Geometry, PaddingLike
from dynconv_torch.functional.numerics import check_same_dtype
from dynconv_torch.functional.patches import conv_by_patches
from dynconv_torch.functional.tracing import (
    can_scan,
    has_open_size,
    sizes_of,
)
from dynconv_torch.functional.windows import pad_for

GeometryType = TypeVar("GeometryType", bound=Geometry)


def check_operands(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stack: str | None,
    stack_size: int = 1,
    geometry_type: type[GeometryType] = Geometry,
    **options,
) -> GeometryType:
    """Checks kernels against an input and returns their common geometry.

    Args:
        input: Shape (B, C, *S).
        weight: Shape (stack_size, *weight_shape), as the geometry has it.
        bias: Shape (stack_size, O), or None.
        stack: What the leading axis of the weight is, for the messages; None if there
            is one kernel and one bias, without that axis.
        stack_size: The size that axis must have.
        geometry_type: What to create.
        **options: Its `stride`, `padding`, `dilation`, `groups` and so on.

    Raises:
        ValueError: If shapes or dtypes do not fit one another.
    """
    shape, weight_shape = sizes_of(input), sizes_of(weight)
    rank = input.ndim - 2
    if not 1 <= rank <= 3:
        raise ValueError(
            f"`input` (shape {shape}) must be (batch, channels, *spatial) "
            "with 1, 2 or 3 spatial dimensions"
        )
    leading = () if stack is None else (stack_size,)
    named = "" if stack is None else f"{stack}, "
    dimensions = len(leading) + rank + 2
    if weight.ndim != dimensions:
        raise ValueError(
            f"`weight` (shape {weight_shape}) must be ({named}"
            f"{geometry_type.weight_axes}): {dimensions} dimensions for `input` of "
            f"shape {shape}"
        )
    own_shape = weight_shape[len(leading) :]
    geometry = geometry_type.of_weight(shape[1], own_shape, **options)
    expected = (*leading, *geometry.weight_shape)
    if weight_shape != expected:
        raise ValueError(
            f"`weight` (shape {weight_shape}) must have the shape {expected}, "
            f"that is ({named}{geometry.weight_axes}), for `input` of shape "
            f"{shape} and `groups` (={geometry.groups})"
        )
    if bias is not None and sizes_of(bias) != (*leading, geometry.out_channels):
        raise ValueError(
            f"`bias` (shape {sizes_of(bias)}) must be ({named}out_channels) = "
            f"{(*leading, geometry.out_channels)}"
        )
    if bias is not None and bias.is_floating_point() != weight.is_floating_point():
        raise ValueError(
            f"`bias` ({bias.dtype}) must be of the dtype of `weight` ({weight.dtype}); "
            "cast it"
        )
    check_same_dtype("input", input, "weight", weight.dtype)
    geometry.output_size(shape[2:])
    return geometry


def conv(input: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """Convolves with one kernel, by the convolution of PyTorch for the rank.

    Args:
        input: Shape (B, C', *S).
        weight: Shape (O', C'/groups, *k).
        geometry: Where the stride, padding and dilation come from; C' and O' may be
            multiples of its channels.
        groups: The number of channel groups of this convolution.

    Returns:
        Shape (B, O', *S_out).
    """
    is_open = isinstance(geometry.padding, str) and has_open_size(input)
    pairs = () if is_open else geometry.pads(input.shape[2:])
    padding = tuple(low for low, _ in pairs)
    if is_open or any(not 0 <= low == high for low, high in pairs):
        input, padding = pad_for(input, geometry), (0,) * geometry.rank
    # By name, at the time of the call: whoever replaces F.conv2d is heard.
    function = getattr(F, f"conv{geometry.rank}d")
    return function(
        input, weight, None, geometry.stride, padding, geometry.dilation, groups
    )


# (input, weight, geometry, groups) -> output, with one kernel for all samples.
Convolve = Callable[[Tensor, Tensor, Any, int], Tensor]


def conv_by_loop(
    input: Num[Tensor, "batch in_channels *spatial"],
    weight: Num[Tensor, "batch *kernel"],
    geometry: Geometry,
    convolve: Convolve = conv,
) -> Num[Tensor, "batch out_channels *out_spatial"]:
    """Convolves samples with kernels of their own, one by one."""
    if can_scan(input):
        return _conv_by_scan(input, weight, geometry, convolve)
    return torch.cat(
        [
            convolve(sample[None], own_weight, geometry, geometry.groups)
            for sample, own_weight in zip(input, weight, strict=True)
        ]
    )


def _conv_by_scan(
    input: Tensor, weight: Tensor, geometry: Geometry, convolve: Convolve
) -> Tensor:
    """The loop as ONNX's `Scan`, over as many samples as there will be."""

    def step(carry: Tensor, sample: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        own_input, own_weight = sample
        output = convolve(own_input[None], own_weight, geometry, geometry.groups)
        return carry.clone(), output.squeeze(0)

    # A file has no gradients. Nothing is carried on, but something has to be.
    samples = input.detach(), weight.detach()
    return scan(step, input.new_zeros(1), samples)[1]


def conv_by_groups(
    input: Num[Tensor, "batch in_channels *spatial"],
    weight: Num[Tensor, "batch *kernel"],
    geometry: Geometry,
    convolve: Convolve = conv,
) -> Num[Tensor, "batch out_channels *out_spatial"]:
    """Convolves samples with kernels of their own, all at once."""
    batch, _, *spatial = input.shape
    folded = input.reshape(1, batch * geometry.in_channels, *spatial)
    output = convolve(folded, weight.flatten(0, 1), geometry, batch * geometry.groups)
    return output.reshape(batch, geometry.out_channels, *output.shape[2:])


def conv_by_form(
    form: str,
    input: Num[Tensor, "batch in_channels *spatial"],
    weight: Num[Tensor, "batch *kernel"],
    geometry: Geometry,
    convolve: Convolve = conv,
    by_patches: Callable[[Tensor, Tensor, Any], Tensor] = conv_by_patches,
) -> Num[Tensor, "batch out_channels *out_spatial"]:
    """Convolves samples with kernels of their own.

    Args:
        form: `"loop"`, `"grouped"` or `"patches"`.
        input: The samples.
        weight: The kernel of each, as the geometry has it.
        geometry: The convolution.
        convolve: What convolves with one kernel: `conv`, or one of the same arguments.
        by_patches: What convolves by patches.

    Returns:
        The outputs.
    """
    if form == "patches":
        return by_patches(input, weight, geometry)
    if input.shape[0] == 0:
        # No sample, no kernel: any serves, and the empty sum has their gradient.
        return convolve(input, weight.sum(0), geometry, geometry.groups)
    if form == "loop":
        return conv_by_loop(input, weight, geometry, convolve)
    return conv_by_groups(input, weight, geometry, convolve)


def add_bias(
    output: Num[Tensor, "batch out_channels *spatial"],
    bias: Num[Tensor, "#batch out_channels"] | None,
) -> Num[Tensor, "batch out_channels *spatial"]:
    """Adds to each sample a bias of its own, or to all the same."""
    if bias is None:
        return output
    spatial = (1,) * (output.ndim - 2)
    return output + bias.to(output.dtype).reshape(*bias.shape, *spatial)


def per_sample_conv(
    input: Num[Tensor, "batch in_channels *spatial"],
    weight: Num[Tensor, "batch out_channels in_per_group *window"],
    bias: Num[Tensor, "batch out_channels"] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: PaddingLike = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    implementation: str = "auto",
) -> Num[Tensor, "batch out_channels *out_spatial"]:
    """Convolves every sample with its own kernel.

    Args:
        input: The samples, with 1, 2 or 3 spatial dimensions.
        weight: The kernel of each sample, of the same dtype.
        bias: The bias of each sample, or None.
        stride: An int, or one per spatial dimension.
        padding: `"same"` (with a stride of 1), `"valid"`, `"tf_same"` (for any stride,
            as TensorFlow pads), an int, or one int or (low, high) pair per spatial
            dimension.
        dilation: An int, or one per spatial dimension.
        groups: It must divide the channels of the input and of the output.
        implementation: `"auto"`, `"loop"`, `"grouped"` or `"patches"`; the module's
            docstring says how they differ. All compute the same.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, the kernel spans more than the padded input,
            or the implementation is unknown, is `"experts"`, which needs the
            attention (see `dynamic_conv`), or cannot leave open what is being exported.

    Example:
        >>> images = torch.ones(2, 4, 9, 7)
        >>> kernels = torch.ones(2, 8, 4, 3, 3)
        >>> per_sample_conv(images, kernels, stride=2, padding=1).shape
        torch.Size([2, 8, 5, 4])
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
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    form = choose(implementation, geometry, input, weight)
    return add_bias(conv_by_form(form, input, weight, geometry), bias)
