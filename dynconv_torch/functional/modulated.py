"""The modulated convolution: a style scales the input channels of a sample's kernel.

    W_i = s_i ⊙ W                   over the input channels
    d_i = 1 / √(Σ W_i² + ε)         for each output channel, over all that it sums
    y_i = d_i ⊙ conv(x_i, W_i)

A factor of an input channel may meet the input in place of the kernel, one of an output
channel the output. So there is no kernel per sample: `"scaled"` convolves all samples
with W, and d is the root of a small matrix product. `"fused"` makes the kernels, as the
equations have it, and applies them by one grouped convolution; it is the reference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.geometry import Geometry, PaddingLike
from dynconv_torch.functional.numerics import (
    at_least_float32,
    scale_channels,
    without_autocast,
)
from dynconv_torch.functional.per_sample import (
    add_bias,
    check_operands,
    conv,
    per_sample_conv,
)
from dynconv_torch.functional.tracing import sizes_of

IMPLEMENTATIONS = ("auto", "scaled", "fused")

# Keeps the norm of a kernel off zero.
EPSILON = 1e-8


def check_modulation(
    implementation: str, *, demodulate: bool, pre_normalize: bool
) -> None:
    """Checks the options of a modulated convolution.

    Raises:
        ValueError: If the implementation is unknown, or there is a normalisation that
            nothing undoes.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"`implementation` (={implementation!r}) must be one of "
            f"{', '.join(map(repr, IMPLEMENTATIONS))}"
        )
    check_normalization(demodulate=demodulate, pre_normalize=pre_normalize)


def check_normalization(*, demodulate: bool, pre_normalize: bool) -> None:
    """Raises a ValueError if there is a normalisation that nothing undoes."""
    if pre_normalize and not demodulate:
        raise ValueError(
            "`pre_normalize` (=True) needs `demodulate=True`, which undoes the change "
            "of scale; leave it off where the kernel is not demodulated"
        )


def check_styles(
    styles: Tensor, gain: Tensor | float, batch: int, in_channels: int
) -> None:
    """Raises a ValueError unless there is a style, and a gain, for every channel."""
    expected = (batch, in_channels)
    if sizes_of(styles) != expected:
        raise ValueError(
            f"`styles` (shape {sizes_of(styles)}) must be (batch, in_channels) = "
            f"{expected}"
        )
    shape = sizes_of(gain) if isinstance(gain, Tensor) else ()
    if shape not in ((), (in_channels,), expected):
        raise ValueError(
            f"`gain` (shape {shape}) must be a number, or have the shape "
            f"(in_channels,) = {(in_channels,)} or (batch, in_channels) = {expected}"
        )


def unit_power(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """Returns a tensor over its root mean square along some axes."""
    mean = tensor.square().mean(tuple(axes), keepdim=True)
    return tensor * torch.rsqrt(mean + EPSILON)


def _by_group(styles: Float[Tensor, "batch in_channels"], geometry: Geometry) -> Tensor:
    """Returns the style that each weight of a kernel meets, (B, O, C/g, ...)."""
    groups = geometry.groups
    split = styles.unflatten(1, (groups, geometry.in_channels // groups))
    repeated = split.repeat_interleave(geometry.out_channels // groups, dim=1)
    return repeated.reshape(*repeated.shape, *(1,) * geometry.rank)


def modulated_kernels(
    weight: Float[Tensor, "#batch out_channels in_per_group *window"],
    styles: Float[Tensor, "batch in_channels"],
    gain: Float[Tensor, "batch in_channels"],
    geometry: Geometry,
    *,
    demodulate: bool,
) -> Float[Tensor, "batch out_channels in_per_group *window"]:
    """Returns the kernel of each sample, as the equations have it; for `"fused"`.

    Args:
        weight: One kernel, or one of each sample, in float32 at least.
        styles: The factors of the input channels, in the same dtype.
        gain: Those after the demodulation.
        geometry: The convolution.
        demodulate: Whether there is one.
    """
    kernels = weight * _by_group(styles, geometry)
    if demodulate:
        axes = tuple(range(2, kernels.ndim))
        norms = kernels.square().sum(axes, keepdim=True)
        kernels = kernels * torch.rsqrt(norms + EPSILON)
    return kernels * _by_group(gain, geometry)


def demodulation(
    squares: Float[Tensor, "batch parts"],
    power: Float[Tensor, "out_channels parts_per_group"],
    groups: int,
) -> Float[Tensor, "batch out_channels"]:
    """Returns d, one over the norms of the modulated kernels.

    Args:
        squares: The squared styles of the input channels, in float32 at least; or of
            further parts that a kernel's square is a sum of, those of a group together.
        power: Σ W² over the taps, of each part, in the same dtype.
        groups: The number of channel groups.

    Returns:
        d, in that dtype.
    """
    with without_autocast(squares.device):
        if groups == 1:
            sums = squares @ power.T
        else:
            squares = squares.unflatten(1, (groups, -1))
            power = power.unflatten(0, (groups, -1))
            sums = torch.einsum("bgc,goc->bgo", squares, power).flatten(1)
    # A sum of products, unlike one of squares, may be less than 0 by rounding.
    return torch.rsqrt(sums.clamp(min=0) + EPSILON)


def modulated_conv(
    input: Float[Tensor, "batch in_channels *spatial"],
    styles: Shaped[Tensor, "batch in_channels"],
    weight: Float[Tensor, "out_channels in_per_group *window"],
    bias: Float[Tensor, "out_channels"] | None = None,
    *,
    demodulate: bool = True,
    pre_normalize: bool = False,
    gain: Tensor | float = 1.0,
    stride: int | Sequence[int] = 1,
    padding: PaddingLike = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    implementation: str = "auto",
) -> Float[Tensor, "batch out_channels *out_spatial"]:
    """Convolves every sample with a kernel whose input channels its style scales.

    Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020,
    section 2.2.

    Args:
        input: The samples, with 1, 2 or 3 spatial dimensions.
        styles: The factors of the input channels.
        weight: The kernel of all samples, of the dtype of `input`.
        bias: Added to the outputs, or None.
        demodulate: Whether each output channel of a sample's kernel is divided by its
            norm. A layer that makes an image of features is published without.
        pre_normalize: Whether style and kernel are brought to a mean square of 1 first,
            as in StyleGAN3. Demodulation undoes it but for ε; numbers in between stay
            small, for narrow dtypes. Each style is normalised alone, those of a batch
            together in the authors' code.
        gain: Multiplies the kernels after they were demodulated: a number, or one of
            each input channel, (C,) or (B, C). The input gain of StyleGAN3, among
            others.
        stride: An int, or one per spatial dimension.
        padding: `"same"` (with a stride of 1), `"valid"`, `"tf_same"` (for any stride,
            as TensorFlow pads), an int, or one int or (low, high) pair per spatial
            dimension.
        dilation: An int, or one per spatial dimension.
        groups: It must divide the channels of the input and of the output.
        implementation: `"scaled"`, which scales inputs and outputs of one convolution;
            `"fused"`, a kernel for each sample and one grouped convolution; or
            `"auto"`, which is `"scaled"`. All compute the same.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, the kernel spans more than the padded input,
            the implementation is unknown, or `pre_normalize` is on where `demodulate`
            is off.

    Example:
        >>> images, styles = torch.ones(2, 4, 9, 7), torch.ones(2, 4)
        >>> weight = torch.ones(8, 4, 3, 3)
        >>> modulated_conv(images, styles, weight, stride=2, padding=1).shape
        torch.Size([2, 8, 5, 4])
    """
    check_modulation(implementation, demodulate=demodulate, pre_normalize=pre_normalize)
    check_tensors(
        input=input, styles=styles, weight=weight, bias=bias, optional=("bias",)
    )
    options: dict[str, Any] = dict(
        stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    geometry = check_operands(input, weight, bias, stack=None, **options)
    wide = at_least_float32(styles.dtype, weight.dtype)
    styles, own = styles.to(wide), weight.to(wide)
    gain = gain.to(styles) if isinstance(gain, Tensor) else gain
    check_styles(styles, gain, sizes_of(input)[0], geometry.in_channels)
    if pre_normalize:
        styles = unit_power(styles, (1,))
        own = unit_power(own, range(1, own.ndim))
    if implementation == "fused":
        gain = torch.ones_like(styles) * gain
        kernels = modulated_kernels(
            own[None], styles, gain, geometry, demodulate=demodulate
        ).to(weight.dtype)
        output = per_sample_conv(input, kernels, implementation="grouped", **options)
    else:
        scaled = scale_channels(input, styles * gain)
        output = conv(scaled, own.to(weight.dtype), geometry, groups)
        if demodulate:
            power = own.square().sum(tuple(range(2, own.ndim)))
            coefficients = demodulation(styles.square(), power, groups)
            output = scale_channels(output, coefficients)
    return add_bias(output, None if bias is None else bias[None])
