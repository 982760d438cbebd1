"""FDYCNN: the convolutions of the FDY-CRNN, for the detection of sounds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice, check_rate, check_tensors
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.functional.tracing import sizes_of
from dynconv_torch.layers.frequency_dynamic_conv import FrequencyDynamicConv2d
from dynconv_torch.layers.given_attention import RoutedSequential, route
from dynconv_torch.models.convolutions import Convolutions
from dynconv_torch.models.dynamic_net import scaled_widths
from dynconv_torch.models.grad_checkpointing import Checkpointing
from dynconv_torch.models.images import global_average_pool

# The channels of each block, and by what it pools frames and frequencies.
WIDTHS = (32, 64, 128, 256, 256, 256, 256)
POOLINGS = ((2, 2), (2, 2), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2))

ACTIVATIONS = ("cg", "glu")


class ChannelGate(nn.Module):
    """Gates of channels: x · sigmoid(linear(x)), or linear(x) · sigmoid(x).

    Attributes:
        linear: The linear layer over the channels.
        activation: `"cg"` (context gating), the first, or `"glu"`.

    Example:
        >>> ChannelGate(4)(torch.ones(2, 4, 9, 7)).shape
        torch.Size([2, 4, 9, 7])
    """

    def __init__(self, channels: int, activation: str = "cg", **options: Any):
        """Builds the gate.

        Args:
            channels: The number of channels.
            activation: One of `ACTIVATIONS`.
            **options: `device` and `dtype`.
        """
        super().__init__()
        self.linear = nn.Linear(channels, channels, **options)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Applies the gate to (B, C, frames, frequencies)."""
        mixed = self.linear(x.movedim(1, -1)).movedim(-1, 1)
        if self.activation == "glu":
            return mixed * torch.sigmoid(x)
        return x * torch.sigmoid(mixed)

    def extra_repr(self) -> str:
        """Returns the arguments of the gate, for its `repr`."""
        return f"activation={self.activation!r}"


class FDYCNN(Checkpointing):
    """The convolutional part of the FDY-CRNN, and a linear head.

    Seven blocks of a 3×3 convolution, batch norm, gates of channels and average
    pooling, of which all but the first are frequency dynamic. They halve the frames
    twice and the frequencies seven times, so that of 128 mel bins one is left. Nam et
    al., "Frequency Dynamic Convolution: Frequency-Adaptive Pattern Recognition for
    Sound Event Detection", Interspeech 2022. There a recurrent network of two layers
    follows, for which `features` gives the input; here the mean over frames and a
    linear layer classify whole recordings.

    Attributes:
        cnn: The layers of all blocks under their published names: `conv0`,
            `batchnorm0`, `cg0`, `dropout0`, `pooling0`, `conv1` and so on.
        fc: The linear head.

    Example:
        >>> net = FDYCNN(num_classes=10, width_mult=0.25)
        >>> net(torch.ones(2, 1, 16, 128)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 1,
        conv: Callable[..., Any] | None = FrequencyDynamicConv2d,
        dynamic: str | int = "paper",
        width_mult: float = 1.0,
        activation: str = "cg",
        dropout: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the network.

        Args:
            num_classes: The number of logits.
            in_channels: The number of channels of the spectrograms.
            conv: Builds the dynamic convolutions, with the signature of `nn.Conv2d`;
                None makes all static, with biases, as published.
            dynamic: Which convolutions are dynamic: `"paper"` (all but the first),
                `"all"`, `"pointwise"` (none), or an int n from 1 to 6, the last n.
            width_mult: Multiplies all widths.
            activation: How channels are gated: `"cg"` (context gating) or `"glu"`.
            dropout: The rate of the dropout in each block.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range.
        """
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        positive_int("num_classes", num_classes)
        check_rate("dropout", dropout)
        check_choice("activation", activation, ACTIVATIONS)
        widths = scaled_widths(WIDTHS, width_mult)
        make = Convolutions(
            conv,
            dynamic,
            stages=len(widths) - 1,
            init="pytorch",
            norm_options={"eps": 1e-3, "momentum": 0.99},
            device=device,
            dtype=dtype,
        )
        self.cnn = RoutedSequential()
        width = in_channels
        for index, (channels, pooling) in enumerate(zip(widths, POOLINGS, strict=True)):
            layer = make(
                width,
                channels,
                3,
                role="body" if index else "stem",
                stage=index,
                static_bias=True,
            )
            parts: dict[str, nn.Module] = {
                "conv": layer,
                "batchnorm": make.norm(channels),
                activation: ChannelGate(channels, activation, **make.shared),
                "dropout": nn.Dropout(dropout),
                "pooling": nn.AvgPool2d(pooling),
            }
            for name, part in parts.items():
                self.cnn.add_module(f"{name}{index}", part)
            self.add_module(f"routing_fn{index}", make.router(width, layer))
            width = channels
        make.check_used()
        self.fc = nn.Linear(width, num_classes, **make.shared)

    def features(self, x: Tensor) -> Tensor:
        """Returns the features of each frame, as the recurrent network takes them.

        Args:
            x: Shape (B, in_channels, frames, frequencies).

        Returns:
            Shape (B, C, frames // 4, frequencies // 128).

        Raises:
            ValueError: If the input does not fit the network.
        """
        check_sounds(x, self.in_channels)
        parts = len(self.cnn) // len(WIDTHS)
        for index in range(len(WIDTHS)):
            block = self.cnn[index * parts : (index + 1) * parts]
            router = getattr(self, f"routing_fn{index}")
            if router is None:
                x = self._call(block, x)
            else:
                x = block(x, route(router, x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Classifies recordings.

        Args:
            x: The spectrograms, shape (B, in_channels, frames, frequencies).

        Returns:
            Logits, shape (B, num_classes).

        Raises:
            ValueError: If the input does not fit the network.
        """
        return self.fc(global_average_pool(self.features(x)))


def check_sounds(x: Tensor, in_channels: int) -> None:
    """Raises an error unless `x` are spectrograms that are large enough."""
    check_tensors(x=x)
    shape = sizes_of(x)
    if x.ndim != 4 or shape[1] != in_channels:
        raise ValueError(
            f"`x` (shape {shape}) must be (batch, in_channels, frames, frequencies) "
            f"with `in_channels` (={in_channels})"
        )
    if shape[2] < 4 or shape[3] < 128:
        raise ValueError(
            f"`x` (shape {shape}) must have at least 4 frames and 128 frequencies, of "
            "which the network leaves one each; compute the spectrograms with more mel "
            "bins"
        )
