"""ODConv: attention along all four dimensions of the kernel space."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice
from dynconv_torch.functional.geometry import PaddingLike, positive_int
from dynconv_torch.functional.numerics import (
    call_wide,
    dtypes_of,
    scale_channels,
    without_autocast,
)
from dynconv_torch.functional.pooling import spatial_mean
from dynconv_torch.gating import Temperature, attend, record_softmax
from dynconv_torch.initializers import INITS, Init, kaiming_fan_out
from dynconv_torch.layers.attention_norm import attention_norm, normalise
from dynconv_torch.layers.expert_conv import ExpertConvNd
from dynconv_torch.scheduled import HoldsScheduled


class Attentions(NamedTuple):
    """The four attentions of an `ODConv2d`; an absent one is None, and counts as 1.

    Attributes:
        channel: Shape (B, C), the weights of the input channels.
        filter: Shape (B, O), those of the filters; absent where each channel has one.
        spatial: Shape (B, *k), those of the taps; absent where there is one.
        kernel: Shape (B, K), those of the experts; absent where there is one.
    """

    channel: Tensor
    filter: Tensor | None
    spatial: Tensor | None
    kernel: Tensor | None

    def of_one(self) -> Self:
        """Returns those of the first sample, without a batch."""
        return self._make(None if each is None else each[0] for each in self)


class ODAttention(HoldsScheduled):
    """The router of `ODConv2d`: one trunk, and a head for each attention.

        h = relu(norm(fc · mean over *S of x))    (B, A)    A = max(C // r, min_hidden)
        channel, filter, spatial = sigmoid((head · h + b) / T)
        kernel = softmax((head · h + b) / T)

    All of it is computed in float32 at least, also under autocast.

    Attributes:
        fc: The 1×1 convolution C → A, without bias.
        bn: The norm of the trunk, if it is `"batch"`; `ln`, if it is `"layer"`.
        channel_fc: The head A → C, a 1×1 convolution; `filter_fc` A → O, `spatial_fc`
            A → taps and `kernel_fc` A → K are None where they are absent.
        temperature: T, a scalar buffer; write it with `set_temperature`.

    Example:
        >>> attention = ODAttention(3, 8, (3, 3))
        >>> attention(torch.ones(2, 3, 9, 7)).spatial.shape
        torch.Size([2, 3, 3])
    """

    temperature: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        *,
        groups: int = 1,
        num_experts: int = 4,
        reduction: int = 16,
        min_hidden: int = 16,
        norm: str = "batch",
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the router; `ODConv2d` explains the arguments.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        super().__init__()
        positive_int("reduction", reduction)
        positive_int("min_hidden", min_hidden)
        self.kernel_size = kernel_size
        self.norm = norm
        hidden = max(in_channels // reduction, min_hidden)
        taps = math.prod(kernel_size)
        pointwise = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel_size) - 1]
        options: dict[str, Any] = dict(device=device, dtype=dtype)

        def head(size: int, is_present: bool) -> nn.Module | None:
            return pointwise(hidden, size, 1, **options) if is_present else None

        self.fc = pointwise(in_channels, hidden, 1, bias=False, **options)
        trunk_norm = attention_norm(norm, hidden, **options)
        if norm == "batch":
            self.bn = trunk_norm
        elif norm == "layer":
            self.ln = trunk_norm
        self.channel_fc = pointwise(hidden, in_channels, 1, **options)
        has_filters = not groups == in_channels == out_channels
        self.filter_fc = head(out_channels, has_filters)
        self.spatial_fc = head(taps, taps > 1)
        self.kernel_fc = head(num_experts, num_experts > 1)
        self.hold_scheduled(Temperature, temperature, self.fc.weight.device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the linear layers Kaiming-normal by fan-out; their biases become 0."""
        for layer in self.children():
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                kaiming_fan_out(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Attentions:
        """Returns the attentions for `x` (B, C, *S).

        Raises:
            ValueError: In training with `norm="batch"`, if there is one sample.
        """
        with without_autocast(x.device):
            return self._of_pooled(spatial_mean(x, *dtypes_of(self)))

    def _of_pooled(self, pooled: Tensor) -> Attentions:
        """Returns the attentions for pooled inputs (B, C)."""
        trunk_norm = getattr(self, "bn", getattr(self, "ln", None))
        normed = normalise(trunk_norm, self._of_one_pixel(self.fc, pooled))
        hidden = self._activate(normed)

        def gate(head: nn.Module | None) -> Tensor | None:
            if head is None:
                return None
            logits = self._of_one_pixel(head, hidden)
            is_of_experts = head is self.kernel_fc
            return self._mixture(logits) if is_of_experts else self._gates(logits)

        channel, taps = gate(self.channel_fc), gate(self.spatial_fc)
        assert channel is not None
        return Attentions(
            channel=channel,
            filter=gate(self.filter_fc),
            spatial=None if taps is None else taps.unflatten(1, self.kernel_size),
            kernel=gate(self.kernel_fc),
        )

    # What a member with other gates has otherwise.
    def _activate(self, hidden: Tensor) -> Tensor:
        return F.relu(hidden)

    def _gates(self, logits: Tensor) -> Tensor:
        """Returns the factors of channels, filters or taps."""
        return torch.sigmoid(logits / self.temperature.to(logits))

    def _mixture(self, logits: Tensor) -> Tensor:
        """Returns, and records, the weights of the experts."""
        attention = attend(logits, self.temperature)
        record_softmax(self, attention, logits, self.temperature)
        return attention

    def _of_one_pixel(self, layer: nn.Module, features: Tensor) -> Tensor:
        """Applies a 1×1 convolution to features (B, I)."""
        ones = (1,) * len(self.kernel_size)
        return call_wide(layer, features.unflatten(1, (-1, *ones))).flatten(1)

    def extra_repr(self) -> str:
        """Returns the arguments of the router, for its `repr`."""
        return f"norm={self.norm!r}"


class ODConvNd(ExpertConvNd):
    """What the omni-dimensional convolutions of all ranks share."""

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
        reduction: int = 16,
        temperature: float = 1.0,
        implementation: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        min_hidden: int = 16,
        norm: str = "batch",
        init: Init = "default",
    ):
        """Builds the layer.

        Args:
            in_channels: C, the number of input channels.
            out_channels: O, the number of output channels.
            kernel_size: An int, or one per spatial dimension.
            stride: An int, or one per spatial dimension.
            padding: `"same"` (with a stride of 1), `"valid"`, an int, or one int or
                (low, high) pair per spatial dimension.
            dilation: An int, or one per spatial dimension.
            groups: g; it must divide C and O.
            bias: Whether every expert has a bias, mixed as the kernels are and weighed
                by the filters' attention; published layers have none.
            num_experts: K; with 1 there is no attention over experts.
            reduction: The trunk has max(C // reduction, min_hidden) units.
            temperature: The initial T. Published schedules let it fall from 30 to 1
                over the first 10 epochs; see `set_temperature`.
            implementation: How to compute it: `"auto"`, `"loop"`, `"grouped"`,
                `"patches"` or, where there is one tap, `"experts"`; see
                `dynconv_torch.dynamic_conv`.
            device: Where the parameters are.
            dtype: The dtype of the parameters. Attention is computed in float32 at
                least.
            min_hidden: How many units the trunk has at least.
            norm: How the trunk is normalised: `"batch"` as published, which needs more
                than one sample in training, `"layer"` or `"none"`.
            init: `"default"` or `"published"`, which are the same here.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range or does not fit the others.
        """
        super().__init__()
        check_choice("init", init, INITS)
        self.build_experts(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation),
            *(groups, bias, num_experts, implementation, device, dtype),
        )
        self.attention = ODAttention(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            groups=self.groups,
            num_experts=self.num_experts,
            reduction=reduction,
            min_hidden=min_hidden,
            norm=norm,
            temperature=temperature,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        """Draws each expert Kaiming-normal by its own fan-out; biases become 0."""
        for expert in self.weight.data:
            kaiming_fan_out(expert)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def attentions(self, x: Tensor) -> Attentions:
        """Returns the four attentions.

        Args:
            x: Shape (B, C, *S), or (C, *S).

        Returns:
            Each of shape (B, ...), or without B, or None where it is absent.

        Raises:
            ValueError: If the input does not fit the layer.
        """
        if not self.is_unbatched(x):
            return self.attention(x)
        return self.attention(x[None]).of_one()

    def routing(self, x: Tensor) -> Tensor:
        """Returns the attention over the experts alone.

        Args:
            x: Shape (B, C, *S), or (C, *S).

        Returns:
            Shape (B, K), or (K,); rows sum to 1.

        Raises:
            ValueError: If the input does not fit the layer.
        """
        channel, *_, kernel = self.attentions(x)
        return torch.ones_like(channel[..., :1]) if kernel is None else kernel

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            x: Shape (B, C, *S), or (C, *S) for one sample without a batch.

        Returns:
            Shape (B, O, *S_out), or (O, *S_out).

        Raises:
            ValueError: If the input does not fit the layer, or if in training there is
                one sample and `norm="batch"`.
        """
        if self.is_unbatched(x):
            return self.forward(x[None])[0]
        attentions = self.attention(x)
        output = self.convolve(
            scale_channels(x, attentions.channel),
            attentions.kernel,
            spatial_attention=attentions.spatial,
        )
        if attentions.filter is None:
            return output
        return scale_channels(output, attentions.filter)


class ODConv1d(ODConvNd):
    """A 1-D convolution with attention along each dimension of its kernel.

    Takes the place of `torch.nn.Conv1d`; see `ODConv2d`.

    Example:
        >>> ODConv1d(3, 8, 3, padding="same")(torch.ones(2, 3, 10)).shape
        torch.Size([2, 8, 10])
    """

    rank = 1


class ODConv2d(ODConvNd):
    """A 2-D convolution with attention along each dimension of its kernel.

        y = filter ⊙ conv(channel ⊙ x, Σ_n kernel_n · spatial ⊙ W_n)

    Every sample has weights for its input channels, for the filters, for the taps and
    for the K experts. Takes the place of `torch.nn.Conv2d`, with its argument names; a
    bias is one of the experts', and published layers have none. With one tap and one
    expert the kernel is the same for all samples, and is applied as such. Li et al.,
    "Omni-Dimensional Dynamic Convolution", ICLR 2022, section 3.

    Attributes:
        weight: The experts, shape (K, O, C/g, *kernel_size).
        attention: The `ODAttention`; `attentions` calls it.

    Example:
        >>> layer = ODConv2d(3, 8, 3, stride=2, padding=1)
        >>> images = torch.ones(2, 3, 9, 7)
        >>> layer(images).shape
        torch.Size([2, 8, 5, 4])
        >>> layer.attentions(images).channel.shape, layer.routing(images).shape
        (torch.Size([2, 3]), torch.Size([2, 4]))
    """

    rank = 2


class ODConv3d(ODConvNd):
    """A 3-D convolution with attention along each dimension of its kernel.

    Takes the place of `torch.nn.Conv3d`; see `ODConv2d`.

    Example:
        >>> ODConv3d(3, 8, 1, stride=2)(torch.ones(2, 3, 4, 4, 4)).shape
        torch.Size([2, 8, 2, 2, 2])
    """

    rank = 3
