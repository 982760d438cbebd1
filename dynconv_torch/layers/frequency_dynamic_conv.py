"""FrequencyDynamicConv: a kernel for each frequency of a sound."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice
from dynconv_torch.functional.frequency_dynamic import (
    AXES,
    along,
    frequency_dynamic_conv,
)
from dynconv_torch.functional.geometry import Geometry, PaddingLike, positive_int
from dynconv_torch.functional.numerics import (
    at_least_float32,
    call_wide,
    dtypes_of,
    without_autocast,
)
from dynconv_torch.functional.tracing import sizes_of
from dynconv_torch.functional.windows import pad_for
from dynconv_torch.gating import Temperature, attend, record_softmax
from dynconv_torch.layers.attention_norm import attention_norm, normalise
from dynconv_torch.layers.expert_conv import ExpertConvNd
from dynconv_torch.scheduled import HoldsScheduled


class BinAttention(HoldsScheduled):
    """The router of `FrequencyDynamicConv2d`: an attention for each bin of an axis.

        v = mean over the other axis of x       (B, C, F)
        h = relu(norm(conv1d1(v)))              (B, H, F')  H = max(C // r, min_hidden)
        a = softmax(conv1d2(h) / T)             (B, K, F')  those of a bin sum to 1

    `conv1d1` has the window, stride and padding of the layer along the axis, so that
    there is an attention for each bin of the outputs; `conv1d2` has one tap. All of it
    is computed in float32 at least, also under autocast.

    Attributes:
        conv1d1: The convolution C → H along the axis, without bias.
        bn: The norm, if it is `"batch"`, over bins and samples; `ln`, if `"layer"`.
        conv1d2: The convolution H → K of one tap.
        temperature: T, a scalar buffer; write it with `set_temperature`.

    Example:
        >>> geometry = Geometry.create(4, 8, 3, rank=2, padding=1)
        >>> BinAttention(geometry)(torch.ones(2, 4, 9, 7)).shape
        torch.Size([2, 4, 7])
    """

    temperature: Tensor

    def __init__(
        self,
        geometry: Geometry,
        *,
        axis: str = "frequency",
        num_experts: int = 4,
        reduction: int = 4,
        min_hidden: int = 4,
        norm: str = "batch",
        temperature: float = 31.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the router; `FrequencyDynamicConv2d` explains the arguments.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        super().__init__()
        check_choice("axis", axis, AXES)
        position = AXES[axis]
        positive_int("reduction", reduction)
        positive_int("min_hidden", min_hidden)
        self.axis = axis
        self.norm = norm
        self.plane = geometry
        self.geometry = own = along(geometry, position)
        hidden = max(geometry.in_channels // reduction, min_hidden)
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        self.conv1d1 = nn.Conv1d(
            geometry.in_channels,
            hidden,
            own.kernel_size[0],
            own.stride[0],
            dilation=own.dilation[0],
            bias=False,
            **options,
        )
        trunk_norm = attention_norm(norm, hidden, **options)
        if norm == "batch":
            self.bn = trunk_norm
        elif norm == "layer":
            self.ln = trunk_norm
        self.conv1d2 = nn.Conv1d(hidden, num_experts, 1, **options)
        self.hold_scheduled(Temperature, temperature, self.conv1d1.weight.device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the convolutions Kaiming-normal by fan-out; the bias becomes 0."""
        for layer in (self.conv1d1, self.conv1d2):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        assert self.conv1d2.bias is not None
        nn.init.zeros_(self.conv1d2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the attention (B, K, F') for `x` (B, C, frames, frequencies).

        Raises:
            ValueError: In training with `norm="batch"`, if there is one sample with one
                bin.
        """
        self.plane.output_size(sizes_of(x)[2:])  # which refuses what is too small
        other = 3 - AXES[self.axis]
        with without_autocast(x.device):
            dtype = at_least_float32(x.dtype, *dtypes_of(self))
            padded = pad_for(x.mean(other, dtype=dtype), self.geometry)
            hidden = call_wide(self.conv1d1, padded).transpose(1, 2)
            trunk_norm = getattr(self, "bn", getattr(self, "ln", None))
            normed = normalise(trunk_norm, hidden.flatten(0, 1))
            # Of one tap, so that each bin may be a sample.
            logits = call_wide(self.conv1d2, F.relu(normed)[..., None])[..., 0]
            attention = attend(logits, self.temperature)
            record_softmax(self, attention, logits, self.temperature)
            return attention.unflatten(0, hidden.shape[:2]).transpose(1, 2)

    def extra_repr(self) -> str:
        """Returns the arguments of the router, for its `repr`."""
        return f"axis={self.axis!r}, norm={self.norm!r}"


class FrequencyDynamicConv2d(ExpertConvNd):
    """A convolution of sounds whose kernel depends on the frequency.

        a = attention(x)                          (B, K, F')    those of a bin sum to 1
        y(t, f) = Σ_k a_k(f) conv(x, W_k)(t, f)

    A pattern in a spectrogram is another one at another height, and a convolution does
    not see where it is. Here every frequency bin of every sample mixes the experts with
    weights of its own; with `axis="time"` every frame does. Takes the place of
    `torch.nn.Conv2d`, with its argument names, for inputs (batch, channels, frames,
    frequencies). Nam et al., "Frequency Dynamic Convolution: Frequency-Adaptive Pattern
    Recognition for Sound Event Detection", Interspeech 2022, section 3.

    Attributes:
        weight: The experts, shape (K, O, C/g, *kernel_size).
        bias: Their biases, shape (K, O), or None.
        attention: The `BinAttention`; `routing` calls it.

    Example:
        >>> layer = FrequencyDynamicConv2d(4, 8, 3, padding=1)
        >>> sounds = torch.ones(2, 4, 9, 7)
        >>> layer(sounds).shape, layer.routing(sounds).shape
        (torch.Size([2, 8, 9, 7]), torch.Size([2, 4, 7]))
    """

    rank = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: PaddingLike = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
        num_experts: int = 4,
        reduction: int = 4,
        temperature: float = 31.0,
        implementation: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        axis: str = "frequency",
        min_hidden: int = 4,
        norm: str = "batch",
    ):
        """Builds the layer.

        Args:
            in_channels: C, the number of input channels.
            out_channels: O, the number of output channels.
            kernel_size: An int, or one for frames and one for frequencies.
            stride: An int, or one per spatial dimension.
            padding: `"same"` (with a stride of 1), `"valid"`, `"tf_same"` (for any
                stride, as TensorFlow pads), an int, or one int or (low, high) pair per
                spatial dimension.
            dilation: An int, or one per spatial dimension.
            groups: g; it must divide C and O.
            bias: Whether every expert has a bias, mixed as the kernels are.
            num_experts: K.
            reduction: The attention has max(C // reduction, min_hidden) hidden units.
            temperature: The initial T, as published; the authors do not change it. See
                `set_temperature`.
            implementation: How to compute it: `"experts"`, one convolution to the
                outputs of all experts, as `"auto"` does; or `"loop"`, `"grouped"` or
                `"patches"`, for which each bin of a sample is a sample.
            device: Where the parameters are.
            dtype: The dtype of the parameters. Attention is computed in float32 at
                least.
            axis: Along what the kernel changes: `"frequency"`, the last spatial axis,
                or `"time"`, the first.
            min_hidden: How many hidden units there are at least.
            norm: How these are normalised: `"batch"` as published, over the bins of all
                samples, `"layer"` or `"none"`.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range or does not fit the others.
        """
        super().__init__()
        check_choice("axis", axis, AXES)
        self.axis = axis
        self.build_experts(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation),
            *(groups, bias, num_experts, implementation, device, dtype),
        )
        geometry = Geometry.create(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            rank=2,
            **self.geometry_options,
        )
        self.attention = BinAttention(
            geometry,
            axis=axis,
            num_experts=self.num_experts,
            reduction=reduction,
            min_hidden=min_hidden,
            norm=norm,
            temperature=temperature,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        """Draws each expert Kaiming-normal by its own fan-in; biases become 0."""
        for expert in self.weight.data:
            nn.init.kaiming_normal_(expert)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def apply_experts(self, *operands: Any, **options: Any) -> Tensor:
        """Computes the layer, from the arguments of `frequency_dynamic_conv`."""
        return frequency_dynamic_conv(*operands, **options)

    def routing(self, x: Tensor) -> Tensor:
        """Returns the attention over the experts.

        Args:
            x: Shape (B, C, frames, frequencies), or without B.

        Returns:
            Shape (B, K, bins), or (K, bins), for the bins of the output along the axis;
            those of a bin sum to 1.

        Raises:
            ValueError: If the input does not fit the layer.
        """
        if self.is_unbatched(x):
            return self.attention(x[None])[0]
        return self.attention(x)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            x: Shape (B, C, frames, frequencies), or without B for one sample.

        Returns:
            Shape (B, O, out_frames, out_frequencies), or without B.

        Raises:
            ValueError: If the input does not fit the layer.
        """
        if self.is_unbatched(x):
            return self.forward(x[None])[0]
        return self.convolve(x, self.attention(x), axis=self.axis)

    def extra_repr(self) -> str:
        """Returns the arguments of the layer, for its `repr`."""
        return f"{super().extra_repr()}, axis={self.axis!r}"
