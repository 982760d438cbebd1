"""ResNet, with static or dynamic convolutions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice, check_positive, check_rate
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.layers.given_attention import RoutedSequential, apply, route
from dynconv_torch.models.convolutions import (
    Convolutions,
    Dynamic,
    check_dynamic_has_conv,
)
from dynconv_torch.models.drop_path import DropPath
from dynconv_torch.models.grad_checkpointing import Blocks
from dynconv_torch.models.heads import HEADS, dynamic_head
from dynconv_torch.models.images import check_images, global_average_pool
from dynconv_torch.models.options import check_options


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, of the networks of 18 and 34 layers."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        *,
        stage: int,
        drop_path_rate: float = 0.0,
        make: Convolutions,
    ):
        """Builds the block.

        Args:
            in_channels: The number of input channels.
            channels: The number of output channels.
            stride: The step of the first convolution and of the shortcut.
            stage: The stage of the network, from 1.
            drop_path_rate: The share of samples whose branch is dropped in training.
            make: Builds the layers.
        """
        super().__init__()
        place: dict[str, Any] = dict(stage=stage, in_basic_block=True)
        self.conv1 = make(in_channels, channels, 3, stride, **place)
        self.bn1 = make.norm(channels)
        self.conv2 = make(channels, channels, 3, **place)
        self.bn2 = make.norm(channels)
        self.drop_path = DropPath(drop_path_rate)
        self.downsample = _shortcut(in_channels, channels, stride, stage, make)
        self.routing_fn = make.router(
            in_channels, self.conv1, self.conv2, self.downsample
        )

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to (B, in_channels, H, W)."""
        attention = route(self.routing_fn, x)
        y = F.relu(self.bn1(apply(self.conv1, x, attention)))
        y = self.bn2(apply(self.conv2, y, attention))
        if self.downsample is not None:
            x = self.downsample(x, attention)
        return F.relu(self.drop_path(y) + x)


class Bottleneck(nn.Module):
    """Convolutions 1×1, 3×3, 1×1 beside a shortcut, of the networks of 50 and more.

    The stride is on the 3×3 convolution ("V1.5"), as in torchvision, not on the first
    as in the paper.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        *,
        stage: int,
        drop_path_rate: float = 0.0,
        make: Convolutions,
    ):
        """Builds the block; the arguments are those of `BasicBlock`.

        Args:
            in_channels: The number of input channels.
            channels: The width of the 3×3 convolution; a quarter of the output's.
            stride: The step of the 3×3 convolution and of the shortcut.
            stage: The stage of the network, from 1.
            drop_path_rate: The share of samples whose branch is dropped in training.
            make: Builds the layers.
        """
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = make(in_channels, channels, 1, stage=stage)
        self.bn1 = make.norm(channels)
        self.conv2 = make(channels, channels, 3, stride, stage=stage)
        self.bn2 = make.norm(channels)
        self.conv3 = make(channels, out_channels, 1, stage=stage)
        self.bn3 = make.norm(out_channels)
        self.drop_path = DropPath(drop_path_rate)
        self.downsample = _shortcut(in_channels, out_channels, stride, stage, make)
        self.routing_fn = make.router(
            in_channels, self.conv1, self.conv2, self.conv3, self.downsample
        )

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to (B, in_channels, H, W)."""
        attention = route(self.routing_fn, x)
        y = F.relu(self.bn1(apply(self.conv1, x, attention)))
        y = F.relu(self.bn2(apply(self.conv2, y, attention)))
        y = self.bn3(apply(self.conv3, y, attention))
        if self.downsample is not None:
            x = self.downsample(x, attention)
        return F.relu(self.drop_path(y) + x)


def _shortcut(
    in_channels: int, out_channels: int, stride: int, stage: int, make: Convolutions
) -> RoutedSequential | None:
    """Returns what brings a block's input to its output's shape, where they differ."""
    if stride == 1 and in_channels == out_channels:
        return None
    conv = make(in_channels, out_channels, 1, stride, role="downsample", stage=stage)
    return RoutedSequential(conv, make.norm(out_channels))


class ResNetOptions(TypedDict, total=False):
    """The options of `ResNet`, for builders of published networks."""

    conv: Callable[..., Any] | None
    dynamic: Dynamic
    in_channels: int
    head: Literal["linear", "dynamic"]
    head_std: float | None
    dropout: float
    drop_path_rate: float
    device: torch.device | str | None
    dtype: torch.dtype | None


class ResNet(nn.Module):
    """A residual network: stem, four stages of blocks, a pooled linear head.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1. The
    parameters are named and drawn as torchvision's.

    Attributes:
        conv1: The 7×7 convolution of the stem, stride 2; `bn1` follows.
        layer1: The blocks of the first stage; `layer2` to `layer4` follow.
        fc: The linear head, after `dropout`; or `classifier`, a dropout and a
            `DynamicClassifier`.

    Example:
        >>> net = ResNet(BasicBlock, [1, 1, 1, 1], 10)
        >>> net(torch.ones(2, 3, 40, 33)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int = 1000,
        *,
        conv: Callable[..., Any] | None = None,
        dynamic: Dynamic = "paper",
        in_channels: int = 3,
        head: Literal["linear", "dynamic"] = "linear",
        head_std: float | None = None,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the network.

        Args:
            block: `BasicBlock` or `Bottleneck`.
            depths: How many blocks each of the four stages has.
            num_classes: The number of logits.
            conv: Builds the dynamic convolutions, with the signature of `nn.Conv2d`,
                such as `DynamicConv2d` or `functools.partial(DynamicConv2d,
                num_experts=8)` (also one without a router, that takes the attention of
                its block); None makes all static.
            dynamic: Which convolutions are dynamic: `"paper"` (all but the stem and the
                shortcuts), `"all"`, `"pointwise"` (the 1×1 convolutions of the blocks),
                an int n, the blocks of the last n stages, or `("pointwise", n)`.
            in_channels: The number of channels of the images.
            head: `"linear"`, or `"dynamic"` for a `DynamicClassifier`.
            head_std: The standard deviation of the initial weights of a linear head,
                whose bias is then 0; None draws both as `torch.nn.Linear`.
            dropout: The rate of the dropout before the head.
            drop_path_rate: The share of samples that skip the last block in training.
                Block i of n, counted from 0, is skipped by i / (n - 1) of it.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range, or no convolution is dynamic.
        """
        super().__init__()
        if len(depths) != 4:
            raise ValueError(f"`depths` (={depths!r}) must have four entries")
        depths = [positive_int("depths", depth) for depth in depths]
        self.in_channels = positive_int("in_channels", in_channels)
        positive_int("num_classes", num_classes)
        check_choice("head", head, HEADS)
        if head_std is not None:
            check_positive("head_std", head_std)
        check_rate("dropout", dropout)
        check_rate("drop_path_rate", drop_path_rate)
        make = Convolutions(conv, dynamic, stages=4, device=device, dtype=dtype)

        self.conv1 = make(in_channels, 64, 7, 2, role="stem")
        self.bn1 = make.norm(64)
        self.stem_routing_fn = make.router(in_channels, self.conv1)
        stages = []
        width, count = 64, 0
        for stage, depth in enumerate(depths, start=1):
            channels = 32 * 2**stage
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(
                    block(
                        width,
                        channels,
                        stride,
                        stage=stage,
                        drop_path_rate=drop_path_rate * count / (sum(depths) - 1),
                        make=make,
                    )
                )
                width = channels * block.expansion
                count += 1
            stages.append(Blocks(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.head = head
        if head == "dynamic":
            self.classifier = dynamic_head(width, num_classes, dropout, **make.shared)
        else:
            self.dropout = nn.Dropout(dropout)
            self.fc = nn.Linear(width, num_classes, **make.shared)
            if head_std is not None:
                nn.init.normal_(self.fc.weight, std=head_std)
                nn.init.zeros_(self.fc.bias)
        make.check_used()

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
        attention = route(self.stem_routing_fn, x)
        x = F.relu(self.bn1(apply(self.conv1, x, attention)))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        x = global_average_pool(x)
        if self.head == "dynamic":
            return self.classifier(x)
        return self.fc(self.dropout(x))


def _variant(
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    num_classes: int,
    options: Mapping[str, Any],
) -> ResNet:
    """Builds a published network, once its options are known to be some."""
    check_options(options, ResNet, given=("block", "depths"))
    check_dynamic_has_conv(options, stages=4)
    return ResNet(block, depths, num_classes, **options)


def resnet18(num_classes: int = 1000, **options: Unpack[ResNetOptions]) -> ResNet:
    """Returns the ResNet of 18 layers; the options are those of `ResNet`.

    Example:
        >>> import functools
        >>> from dynconv_torch import DynamicConv2d
        >>> conv = functools.partial(DynamicConv2d, num_experts=2)
        >>> net = resnet18(10, conv=conv, device="meta")
        >>> net.layer1[0].conv1.weight.shape
        torch.Size([2, 64, 64, 3, 3])
    """
    return _variant(BasicBlock, (2, 2, 2, 2), num_classes, options)


def resnet34(num_classes: int = 1000, **options: Unpack[ResNetOptions]) -> ResNet:
    """Returns the ResNet of 34 layers; the options are those of `ResNet`.

    Example:
        >>> len(resnet34(10, device="meta").layer3)
        6
    """
    return _variant(BasicBlock, (3, 4, 6, 3), num_classes, options)


def resnet50(num_classes: int = 1000, **options: Unpack[ResNetOptions]) -> ResNet:
    """Returns the ResNet of 50 layers; the options are those of `ResNet`.

    Example:
        >>> resnet50(10, device="meta").fc.weight.shape
        torch.Size([10, 2048])
    """
    return _variant(Bottleneck, (3, 4, 6, 3), num_classes, options)


def resnet101(num_classes: int = 1000, **options: Unpack[ResNetOptions]) -> ResNet:
    """Returns the ResNet of 101 layers; the options are those of `ResNet`.

    Example:
        >>> len(resnet101(10, device="meta").layer3)
        23
    """
    return _variant(Bottleneck, (3, 4, 23, 3), num_classes, options)
