"""The adaptive convolution: experts mixed by an attention, then modulated by a style.

    W_i = s_i ⊙ Σ_k a_ik W_k        over the input channels
    d_i = 1 / √(Σ W_i² + ε)         for each output channel, over all that it sums
    y_i = d_i ⊙ conv(x_i, W_i)

The style scales inputs and d outputs of a dynamic convolution, as in `modulated.py`; so
its forms serve, and no more kernels are made than theirs. The square of a mixture is a
sum over pairs of experts, Σ_kl a_ik a_il (W_k ⊙ W_l), whose products are summed over
the taps once for all samples. `"fused"` makes the kernels, as the equations have it,
and applies them by one grouped convolution; it is the reference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.choice import check_implementation
from dynconv_torch.functional.dynamic import check_attentions, dynamic_conv, mix_kernels
from dynconv_torch.functional.geometry import Geometry, PaddingLike
from dynconv_torch.functional.modulated import (
    check_styles,
    demodulation,
    modulated_kernels,
)
from dynconv_torch.functional.numerics import (
    at_least_float32,
    scale_channels,
    without_autocast,
)
from dynconv_torch.functional.per_sample import (
    add_bias,
    check_operands,
    per_sample_conv,
)
from dynconv_torch.functional.tracing import sizes_of


def check_adaptation(implementation: str) -> None:
    """Raises a ValueError unless an implementation is known."""
    if implementation != "fused":
        check_implementation(implementation)


def _of_mixtures(
    styles: Tensor, attention: Tensor | None, weight: Tensor, geometry: Geometry
) -> Tensor:
    """Returns d, one over the norms of the modulated mixtures, (B, O)."""
    num_experts, taps = sizes_of(weight)[0], tuple(range(3, weight.ndim))
    pairs, weights = [], []
    for index in range(num_experts):
        products = weight[index] * weight[index:]
        pairs.append(products.sum(taps) if taps else products)
        if attention is not None:
            own = attention[:, index : index + 1] * attention[:, index:]
            # Each pair stands for two, but that of an expert with itself.
            weights.append(torch.cat((own[:, :1], 2 * own[:, 1:]), dim=1))
    # (O, P, C/g) for P pairs; each is a part of the square, beside the channels.
    power = torch.cat(pairs).transpose(0, 1).flatten(1)
    squares = styles.square()
    if attention is not None:
        groups = geometry.groups
        split = squares.unflatten(1, (groups, 1, geometry.in_channels // groups))
        by_pair = torch.cat(weights, dim=1)[:, None, :, None]
        squares = (split * by_pair).flatten(1)
    return demodulation(squares, power, geometry.groups)


def adaptive_conv(
    input: Float[Tensor, "batch in_channels *spatial"],
    styles: Shaped[Tensor, "batch in_channels"],
    attention: Shaped[Tensor, "batch experts"] | None,
    weight: Float[Tensor, "experts out_channels in_per_group *window"],
    bias: Float[Tensor, "experts out_channels"] | None = None,
    *,
    demodulate: bool = True,
    gain: Tensor | float = 1.0,
    stride: int | Sequence[int] = 1,
    padding: PaddingLike = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    implementation: str = "auto",
) -> Float[Tensor, "batch out_channels *out_spatial"]:
    """Convolves every sample with a mixture of experts that its style modulates.

    Kang et al., "Scaling up GANs for Text-to-Image Synthesis" (GigaGAN), CVPR 2023,
    on sample-adaptive kernel selection.

    Args:
        input: The samples, with 1, 2 or 3 spatial dimensions.
        styles: The factors of the input channels.
        attention: The weight of each expert for each sample; None is for a single
            expert, whose weight is then 1.
        weight: The experts, of the dtype of `input`.
        bias: The bias of each expert, mixed and added to the outputs, or None.
        demodulate: Whether each output channel of a sample's kernel is divided by its
            norm.
        gain: Multiplies the kernels after they were demodulated: a number, or one of
            each input channel, (C,) or (B, C).
        stride: An int, or one per spatial dimension.
        padding: `"same"` (with a stride of 1), `"valid"`, `"tf_same"` (for any stride,
            as TensorFlow pads), an int, or one int or (low, high) pair per spatial
            dimension.
        dilation: An int, or one per spatial dimension.
        groups: It must divide the channels of the input and of the output.
        implementation: That of `dynamic_conv`, which a scaled input goes through; or
            `"fused"`, the modulated kernel of each sample and one grouped convolution.
            All compute the same.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, the kernel spans more than the padded input,
            or the implementation is unknown or cannot compute this, or not leave open
            what is being exported.

    Example:
        >>> images, styles = torch.ones(2, 4, 9, 7), torch.ones(2, 4)
        >>> attention = torch.tensor([[0.7, 0.3], [0.1, 0.9]])
        >>> experts = torch.ones(2, 8, 4, 3, 3)
        >>> adaptive_conv(images, styles, attention, experts, padding=1).shape
        torch.Size([2, 8, 9, 7])
    """
    check_adaptation(implementation)
    check_tensors(
        input=input,
        styles=styles,
        attention=attention,
        weight=weight,
        bias=bias,
        optional=("attention", "bias"),
    )
    options: dict[str, Any] = dict(
        stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    batch, num_experts = sizes_of(input)[0], sizes_of(weight)[0]
    geometry = check_operands(
        input, weight, bias, stack="num_experts", stack_size=num_experts, **options
    )
    wide = at_least_float32(styles.dtype, weight.dtype)
    check_attentions(input, attention, None, weight)
    if attention is not None:
        attention = attention.to(wide)
        bias = None if bias is None else mix_kernels(attention, bias)
    styles, own = styles.to(wide), weight.to(wide)
    gain = gain.to(styles) if isinstance(gain, Tensor) else gain
    check_styles(styles, gain, batch, geometry.in_channels)
    if implementation == "fused":
        with without_autocast(input.device):
            mixed = own if attention is None else mix_kernels(attention, own)
        gain = torch.ones_like(styles) * gain
        kernels = modulated_kernels(
            mixed, styles, gain, geometry, demodulate=demodulate
        ).to(weight.dtype)
        output = per_sample_conv(input, kernels, implementation="grouped", **options)
        return add_bias(output, bias)
    scaled = scale_channels(input, styles * gain)
    output = dynamic_conv(
        scaled, attention, weight, implementation=implementation, **options
    )
    if demodulate:
        coefficients = _of_mixtures(styles, attention, own, geometry)
        output = scale_channels(output, coefficients)
    return add_bias(output, bias)
