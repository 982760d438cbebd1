"""MobileNetV2, with static or dynamic convolutions."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice, check_positive, check_rate
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.layers.given_attention import RoutedSequential, route
from dynconv_torch.models.convolutions import (
    Convolutions,
    Dynamic,
    check_dynamic_has_conv,
)
from dynconv_torch.models.drop_path import DropPath
from dynconv_torch.models.grad_checkpointing import Checkpointing
from dynconv_torch.models.heads import HEADS, dynamic_head
from dynconv_torch.models.images import check_images, global_average_pool
from dynconv_torch.models.options import check_options

Layout = Literal["torchvision", "flat"]
LAYOUTS = "torchvision", "flat"

# The paper's: expansion, output channels, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def make_divisible(value: float, divisor: int = 8) -> int:
    """Rounds a number of channels to a multiple, and down by a tenth at the most.

    Example:
        >>> make_divisible(32 * 0.35), make_divisible(24 * 0.75)
        (16, 24)
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def conv_norm_activation(
    make: Convolutions,
    activation: nn.Module | None,
    in_channels: int,
    out_channels: int,
    *place: int,
    **options: Any,
) -> RoutedSequential:
    """Returns convolution → batch norm → activation, if there is one.

    The other arguments are the convolution's.
    """
    layers: list[Any] = [
        make(in_channels, out_channels, *place, **options),
        make.norm(out_channels),
    ]
    return RoutedSequential(*layers, *([] if activation is None else [activation]))


class InvertedResidual(nn.Module):
    """Expand by a 1×1 convolution, 3×3 depthwise, project by a 1×1 convolution.

    Attributes:
        conv: The layers; without the first where there is nothing to expand.
        routing_fn: Answers the attention for those that need one, or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expansion: int,
        *,
        stage: int,
        drop_path_rate: float,
        is_flat: bool = False,
        make: Convolutions,
    ):
        """Builds the block.

        Args:
            in_channels: The number of input channels.
            out_channels: The number of output channels.
            stride: The step of the depthwise convolution.
            expansion: How many times wider the depthwise convolution is.
            stage: The stage of the network, from 1.
            drop_path_rate: The share of samples whose branch is dropped in training.
            is_flat: Whether all layers are in one sequence, without sequences of a
                convolution, its norm and its activation in it.
            make: Builds the layers.
        """
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(
                conv_norm_activation(
                    make, nn.ReLU6(), in_channels, hidden, 1, stage=stage
                )
            )
        layers.append(
            conv_norm_activation(
                make, nn.ReLU6(), hidden, hidden, 3, stride, groups=hidden, stage=stage
            )
        )
        layers.append(make(hidden, out_channels, 1, stage=stage))
        layers.append(make.norm(out_channels))
        if is_flat:
            layers = [
                part
                for layer in layers
                for part in (layer if isinstance(layer, RoutedSequential) else (layer,))
            ]
        self.conv = RoutedSequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.drop_path = DropPath(drop_path_rate)
        self.routing_fn = make.router(in_channels, self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to (B, in_channels, H, W)."""
        y = self.conv(x, route(self.routing_fn, x))
        return x + self.drop_path(y) if self.has_shortcut else y


class MobileNetV2Options(TypedDict, total=False):
    """The options of `MobileNetV2`, for builders of published networks."""

    stages: Sequence[tuple[int, int, int, int]]
    conv: Callable[..., Any] | None
    dynamic: Dynamic
    width_mult: float
    in_channels: int
    head: Literal["linear", "dynamic"]
    layout: Layout
    dropout: float
    drop_path_rate: float
    device: torch.device | str | None
    dtype: torch.dtype | None


class MobileNetV2(Checkpointing):
    """MobileNetV2: stem, seven stages of inverted residuals, a 1×1 convolution, a head.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
    table 2. The parameters are named and drawn as torchvision's.

    Attributes:
        features: The stem, the blocks, and the last convolution.
        classifier: Dropout and the head. With `layout="flat"` the last convolution is
            `conv`.

    Example:
        >>> net = MobileNetV2(10, width_mult=0.25).eval()
        >>> net(torch.ones(2, 3, 40, 33)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        stages: Sequence[tuple[int, int, int, int]] = STAGES,
        conv: Callable[..., Any] | None = None,
        dynamic: Dynamic = "paper",
        width_mult: float = 1.0,
        in_channels: int = 3,
        head: Literal["linear", "dynamic"] = "linear",
        layout: Layout = "torchvision",
        dropout: float = 0.2,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the network.

        Args:
            num_classes: The number of logits.
            stages: Of each stage the expansion, the output channels, the number of
                blocks, and the stride of the first.
            conv: Builds the dynamic convolutions, with the signature of `nn.Conv2d`,
                such as `DynamicConv2d` or `functools.partial(DynamicConv2d,
                num_experts=8)` (also one without a router, that takes the attention of
                its block); None makes all static.
            dynamic: Which convolutions are dynamic: `"paper"` (all but the stem),
                `"all"`, `"pointwise"` (the 1×1 convolutions of the blocks), an int n,
                the blocks of the last n stages, or `("pointwise", n)`.
            width_mult: Multiplies all widths; they are rounded to multiples of 8, and
                the last convolution is never narrower than at 1.
            in_channels: The number of channels of the images.
            head: `"linear"`, or `"dynamic"` for a `DynamicClassifier`.
            layout: How parameters are named: as `"torchvision"`'s, or `"flat"`, as in
                Li et al.'s checkpoints of decomposition: the layers of a block are all
                in one row, and the last convolution is `conv`, beside `features`.
            dropout: The rate of the dropout before the head.
            drop_path_rate: Of n blocks, counted from 0, block i is skipped in training
                by a share of i / n of this; one without a shortcut never is.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range.
        """
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        positive_int("num_classes", num_classes)
        check_positive("width_mult", width_mult)
        check_choice("head", head, HEADS)
        check_choice("layout", layout, LAYOUTS)
        check_rate("dropout", dropout)
        check_rate("drop_path_rate", drop_path_rate)
        make = Convolutions(
            conv, dynamic, stages=len(stages), device=device, dtype=dtype
        )

        total = sum(depth for _, _, depth, _ in stages)
        width = make_divisible(32 * width_mult)
        features: list[nn.Module] = [
            conv_norm_activation(
                make, nn.ReLU6(), in_channels, width, 3, 2, role="stem"
            )
        ]
        for stage, (expansion, channels, depth, first) in enumerate(stages, start=1):
            channels = make_divisible(channels * width_mult)
            for index in range(depth):
                stride = first if index == 0 else 1
                features.append(
                    InvertedResidual(
                        width,
                        channels,
                        stride,
                        expansion,
                        stage=stage,
                        drop_path_rate=drop_path_rate * (len(features) - 1) / total,
                        is_flat=layout == "flat",
                        make=make,
                    )
                )
                width = channels
        last = make_divisible(1280 * max(1.0, width_mult))
        conv_last = conv_norm_activation(make, nn.ReLU6(), width, last, 1, role="head")
        self.layout = layout
        if layout == "flat":
            self.conv = conv_last
        else:
            features.append(conv_last)
        self.features = nn.Sequential(*features)
        self.stem_routing_fn = make.router(in_channels, features[0])
        self.head_routing_fn = make.router(width, conv_last)
        if head == "dynamic":
            self.classifier = dynamic_head(last, num_classes, dropout, **make.shared)
        else:
            linear = nn.Linear(last, num_classes, **make.shared)
            self.classifier = nn.Sequential(nn.Dropout(dropout), linear)
        for part in self.classifier.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.01)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Classifies images.

        Args:
            x: The images.

        Returns:
            The logits.

        Raises:
            ValueError: If the input does not fit the network.
        """
        check_images(x, self.in_channels)
        stem, *blocks = self.features
        head = self.conv if self.layout == "flat" else blocks.pop()
        x = stem(x, route(self.stem_routing_fn, x))
        for block in blocks:
            x = self._call(block, x)
        x = head(x, route(self.head_routing_fn, x))
        return self.classifier(global_average_pool(x))


def mobilenet_v2(
    num_classes: int = 1000, **options: Unpack[MobileNetV2Options]
) -> MobileNetV2:
    """Returns MobileNetV2; the options are those of `MobileNetV2`.

    Example:
        >>> from dynconv_torch import DynamicConv2d
        >>> net = mobilenet_v2(10, conv=DynamicConv2d, device="meta")
        >>> net.features[18][0].weight.shape
        torch.Size([4, 1280, 320, 1, 1])
    """
    check_options(options, MobileNetV2)
    check_dynamic_has_conv(options, stages=len(options.get("stages", STAGES)))
    return MobileNetV2(num_classes, **options)
