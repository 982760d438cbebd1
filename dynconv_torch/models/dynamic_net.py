"""DynamicNet: the small reference network of dynamic convolutions."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_dtype, check_positive
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.layers.dynamic_conv import DynamicConv2d
from dynconv_torch.layers.dynamic_conv_block import DynamicConvBlock
from dynconv_torch.models.grad_checkpointing import Checkpointing
from dynconv_torch.models.images import check_images, global_average_pool

# The channels of the stem and of the three blocks.
WIDTHS = (32, 64, 128, 256)


def scaled_widths(widths: Sequence[int], width_mult: float) -> list[int]:
    """Multiplies numbers of channels and rounds them, halves upwards, to 1 at least.

    Raises:
        TypeError: If `width_mult` is not a number.
        ValueError: If it is not positive and finite.

    Example:
        >>> scaled_widths(WIDTHS, 0.29)
        [9, 19, 37, 74]
    """
    check_positive("width_mult", width_mult)
    return [max(1, math.floor(width * width_mult + 0.5)) for width in widths]


class DynamicNet(Checkpointing):
    """A static stem, three strided dynamic blocks, a pooled linear head.

    The stem is a 3×3 convolution to 32 channels, batch norm and ReLU; the blocks are
    3×3, stride 2, with 64, 128 and 256 channels; `width_mult` multiplies all four.
    Padding is 1 throughout.

    Attributes:
        stem: The convolution, batch norm and ReLU.
        stage1: The first `DynamicConvBlock`; `stage2` and `stage3` follow.
        fc: The linear head.

    Example:
        >>> net = DynamicNet()
        >>> logits = net(torch.ones(2, 3, 64, 64), verbose=True)
        input: (2, 3, 64, 64)
        stem: (2, 32, 64, 64)
        s1: (2, 64, 32, 32)
        s2: (2, 128, 16, 16)
        s3: (2, 256, 8, 8)
        out: (2, 10)
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        num_experts: int | None = None,
        temperature: float | None = None,
        *,
        conv: Callable[..., Any] | None = DynamicConv2d,
        reduction: int | None = None,
        top_k: int | None = None,
        router_dropout: float | None = None,
        router_noise: float | None = None,
        implementation: str | None = None,
        width_mult: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the network.

        Args:
            in_channels: The number of input channels.
            num_classes: The number of logits.
            num_experts: K of every dynamic convolution; 4 by default. This option and
                the six others of routers and implementation are for `DynamicConv2d`.
            temperature: The initial temperature of every router; 1 by default.
            conv: Builds the convolutions of the blocks, with the signature of
                `torch.nn.Conv2d`; None makes them static. The options of a
                `functools.partial` of `DynamicConv2d` win over those here.
            reduction: Of every router, see `Router`; 4 by default.
            top_k: Of every router, see `Router`.
            router_dropout: The dropout rate of every router; 0 by default.
            router_noise: The noise on the logits of every router; 0 by default.
            implementation: Of every dynamic convolution, see `DynamicConv2d`; `"auto"`
                by default.
            width_mult: Multiplies the widths of stem and blocks, which are rounded to
                the nearest whole number of channels (halves upwards), but never to 0.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range, or an option is for no convolution.
        """
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        positive_int("num_classes", num_classes)
        widths = scaled_widths(WIDTHS, width_mult)
        check_dtype(dtype)

        options = dict(
            num_experts=num_experts,
            temperature=temperature,
            reduction=reduction,
            top_k=top_k,
            router_dropout=router_dropout,
            router_noise=router_noise,
            implementation=implementation,
        )
        given = {name: each for name, each in options.items() if each is not None}
        if given and getattr(conv, "func", conv) is not DynamicConv2d:
            name, each = next(iter(given.items()))
            raise ValueError(
                f"`{name}` (={each!r}) is an option of DynamicConv2d, not of `conv` "
                f"(={conv!r}); give options of another convolution to itself, by "
                "`functools.partial`, or by the `conv_options` of `create_model`"
            )
        if conv is None:
            conv = nn.Conv2d
        elif given and getattr(conv, "func", conv) is DynamicConv2d:
            # What a partial of the layer has of its own wins.
            given.update(getattr(conv, "keywords", {}))
            conv = functools.partial(conv, **given)

        def block(in_channels: int, out_channels: int) -> DynamicConvBlock:
            return DynamicConvBlock(
                in_channels,
                out_channels,
                3,
                stride=2,
                padding=1,
                conv=conv,
                device=device,
                dtype=dtype,
            )

        self.stem = nn.Sequential(
            nn.Conv2d(
                in_channels,
                widths[0],
                3,
                padding=1,
                bias=False,
                device=device,
                dtype=dtype,
            ),
            nn.BatchNorm2d(widths[0], device=device, dtype=dtype),
            nn.ReLU(),
        )
        self.stage1 = block(widths[0], widths[1])
        self.stage2 = block(widths[1], widths[2])
        self.stage3 = block(widths[2], widths[3])
        self.fc = nn.Linear(widths[3], num_classes, device=device, dtype=dtype)

    def forward(self, x: Tensor, *, verbose: bool = False) -> Tensor:
        """Classifies images.

        Args:
            x: Shape (B, in_channels, H, W).
            verbose: Print the shape after every stage.

        Returns:
            Logits, shape (B, num_classes).

        Raises:
            ValueError: If the input does not fit the network.
        """
        check_images(x, self.in_channels)

        def show(name: str, x: Tensor) -> Tensor:
            if verbose:
                print(f"{name}: {tuple(x.shape)}")
            return x

        x = show("input", x)
        x = show("stem", self.stem(x))
        x = show("s1", self._call(self.stage1, x))
        x = show("s2", self._call(self.stage2, x))
        x = show("s3", self._call(self.stage3, x))
        return show("out", self.fc(global_average_pool(x)))
