"""MobileNetV3, with static or dynamic convolutions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dynconv_torch.functional.activations import hard_sigmoid
from dynconv_torch.functional.checks import check_positive, check_rate
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.layers.given_attention import RoutedSequential, route
from dynconv_torch.models.convolutions import Convolutions, check_dynamic_has_conv
from dynconv_torch.models.drop_path import DropPath
from dynconv_torch.models.grad_checkpointing import Checkpointing
from dynconv_torch.models.images import check_images, global_average_pool
from dynconv_torch.models.mobilenet_v2 import conv_norm_activation, make_divisible
from dynconv_torch.models.options import check_options
from dynconv_torch.models.squeeze_excite import excite, squeeze_convs

# The expanded channels of a block, over the units of its squeeze-and-excitation.
SQUEEZE = 4

NORM_OPTIONS: dict[str, Any] = {"eps": 1e-3, "momentum": 0.01}


class BlockSpec(NamedTuple):
    """One block, at width 1.

    Attributes:
        kernel_size: The side of the depthwise kernel.
        expanded_channels: The number of channels of the depthwise convolution.
        channels: The number of output channels.
        stride: The step of the depthwise convolution.
        is_hard_swish: Whether the activations are hard swishes, and not ReLUs.
        has_squeeze: Whether there is squeeze-and-excitation.
    """

    kernel_size: int
    expanded_channels: int
    channels: int
    stride: int
    is_hard_swish: bool
    has_squeeze: bool = False

    def at_width(self, width_mult: float) -> "BlockSpec":
        """Returns the block with its widths multiplied, in multiples of 8."""
        return self._replace(
            expanded_channels=make_divisible(self.expanded_channels * width_mult),
            channels=make_divisible(self.channels * width_mult),
        )


def block_specs(blocks: Any) -> list[BlockSpec]:
    """Returns the blocks of an argument `blocks`.

    Raises:
        TypeError: If it is no sequence of `BlockSpec`s or tuples with their fields.
        ValueError: If it is empty.

    Example:
        >>> block_specs([(3, 16, 16, 1, False)])[0].has_squeeze
        False
    """
    try:
        specs = [BlockSpec(*spec) for spec in blocks]
    except TypeError as error:
        raise TypeError(
            f"`blocks` (={blocks!r}) must be `BlockSpec`s, or tuples of "
            f"{BlockSpec._fields}"
        ) from error
    if not specs:
        raise ValueError(f"`blocks` (={blocks!r}) must have one block at least")
    return specs


# Howard et al., "Searching for MobileNetV3", ICCV 2019, tables 1 and 2.
LARGE = (
    BlockSpec(3, 16, 16, 1, False),
    BlockSpec(3, 64, 24, 2, False),
    BlockSpec(3, 72, 24, 1, False),
    BlockSpec(5, 72, 40, 2, False, True),
    BlockSpec(5, 120, 40, 1, False, True),
    BlockSpec(5, 120, 40, 1, False, True),
    BlockSpec(3, 240, 80, 2, True),
    BlockSpec(3, 200, 80, 1, True),
    BlockSpec(3, 184, 80, 1, True),
    BlockSpec(3, 184, 80, 1, True),
    BlockSpec(3, 480, 112, 1, True, True),
    BlockSpec(3, 672, 112, 1, True, True),
    BlockSpec(5, 672, 160, 2, True, True),
    BlockSpec(5, 960, 160, 1, True, True),
    BlockSpec(5, 960, 160, 1, True, True),
)
SMALL = (
    BlockSpec(3, 16, 16, 2, False, True),
    BlockSpec(3, 72, 24, 2, False),
    BlockSpec(3, 88, 24, 1, False),
    BlockSpec(5, 96, 40, 2, True, True),
    BlockSpec(5, 240, 40, 1, True, True),
    BlockSpec(5, 240, 40, 1, True, True),
    BlockSpec(5, 120, 48, 1, True, True),
    BlockSpec(5, 144, 48, 1, True, True),
    BlockSpec(5, 288, 96, 2, True, True),
    BlockSpec(5, 576, 96, 1, True, True),
    BlockSpec(5, 576, 96, 1, True, True),
)


class SqueezeExcitation(nn.Module):
    """Scales every channel by a hard sigmoid that sees the mean of all channels."""

    def __init__(self, channels: int, make: Convolutions):
        """Builds `fc1` and `fc2`, 1×1 convolutions."""
        super().__init__()
        hidden = make_divisible(channels // SQUEEZE)
        self.fc1, self.fc2 = squeeze_convs(channels, hidden, make)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the gates to (B, channels, H, W)."""
        return excite(x, self.fc1, self.fc2, F.relu, hard_sigmoid)


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze-and-excitation, project; a shortcut.

    Attributes:
        block: The layers; without the first where there is nothing to expand.
        routing_fn: Answers the attention for those that need one, or None.
    """

    def __init__(
        self,
        in_channels: int,
        spec: BlockSpec,
        *,
        stage: int,
        drop_path_rate: float,
        make: Convolutions,
    ):
        """Builds the block.

        Args:
            in_channels: The number of input channels.
            spec: The block, at the width of the network.
            stage: The number of the block, from 1.
            drop_path_rate: The share of samples whose branch is dropped in training.
            make: Builds the layers.
        """
        super().__init__()
        activation = nn.Hardswish() if spec.is_hard_swish else nn.ReLU()
        hidden = spec.expanded_channels
        layers: list[nn.Module] = []
        if hidden != in_channels:
            layers.append(
                conv_norm_activation(
                    make, activation, in_channels, hidden, 1, stage=stage
                )
            )
        place = hidden, hidden, spec.kernel_size, spec.stride
        layers.append(
            conv_norm_activation(make, activation, *place, groups=hidden, stage=stage)
        )
        if spec.has_squeeze:
            layers.append(SqueezeExcitation(hidden, make))
        layers.append(
            conv_norm_activation(make, None, hidden, spec.channels, 1, stage=stage)
        )
        self.block = RoutedSequential(*layers)
        self.has_shortcut = spec.stride == 1 and in_channels == spec.channels
        self.drop_path = DropPath(drop_path_rate)
        self.routing_fn = make.router(in_channels, self.block)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to (B, in_channels, H, W)."""
        y = self.block(x, route(self.routing_fn, x))
        return x + self.drop_path(y) if self.has_shortcut else y


class MobileNetV3Options(TypedDict, total=False):
    """The options of `MobileNetV3`, for builders of published networks."""

    blocks: Sequence[BlockSpec | tuple[Any, ...]]
    head_channels: int
    conv: Callable[..., Any] | None
    dynamic: str | int
    width_mult: float
    in_channels: int
    dropout: float
    drop_path_rate: float
    device: torch.device | str | None
    dtype: torch.dtype | None


class MobileNetV3(Checkpointing):
    """MobileNetV3: a stem, inverted residuals, a 1×1 convolution, a head of two layers.

    Howard et al., "Searching for MobileNetV3", ICCV 2019. The parameters are named and
    drawn as torchvision's.

    Attributes:
        features: The stem, the blocks, and the last convolution.
        classifier: A linear layer, hard swish, dropout, the linear head.

    Example:
        >>> net = MobileNetV3(10, blocks=SMALL[:2]).eval()
        >>> net(torch.ones(2, 3, 40, 33)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        blocks: Sequence[BlockSpec | tuple[Any, ...]] = LARGE,
        head_channels: int = 1280,
        conv: Callable[..., Any] | None = None,
        dynamic: str | int = "paper",
        width_mult: float = 1.0,
        in_channels: int = 3,
        dropout: float = 0.2,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the network.

        Args:
            num_classes: The number of logits.
            blocks: What is between the stem and the last convolution, `BlockSpec`s or
                tuples of the same entries; at least one.
            head_channels: The number of features before the linear head.
            conv: Builds the dynamic convolutions, with the signature of `nn.Conv2d`,
                such as `DynamicConv2d` or `functools.partial(DynamicConv2d,
                num_experts=8)` (also one without a router, that takes the attention of
                its block); None makes all static.
            dynamic: Which convolutions are dynamic: `"paper"` (all but the stem),
                `"all"`, `"pointwise"` (the 1×1 convolutions of the blocks), or an int
                n, the last n blocks. Squeeze-and-excitation is static.
            width_mult: Multiplies all widths; they are rounded to multiples of 8.
            in_channels: The number of channels of the images.
            dropout: The rate of the dropout before the head.
            drop_path_rate: Of n blocks, counted from 0, block i is skipped in training
                by a share of i / n of this; one without a shortcut never is.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range, or there are no blocks.
        """
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        positive_int("num_classes", num_classes)
        positive_int("head_channels", head_channels)
        check_positive("width_mult", width_mult)
        check_rate("dropout", dropout)
        check_rate("drop_path_rate", drop_path_rate)
        specs = [spec.at_width(width_mult) for spec in block_specs(blocks)]
        make = Convolutions(
            conv,
            dynamic,
            stages=len(specs),
            norm_options=NORM_OPTIONS,
            device=device,
            dtype=dtype,
        )

        width = make_divisible(16 * width_mult)
        features: list[nn.Module] = [
            conv_norm_activation(
                make, nn.Hardswish(), in_channels, width, 3, 2, role="stem"
            )
        ]
        for stage, spec in enumerate(specs, start=1):
            features.append(
                InvertedResidual(
                    width,
                    spec,
                    stage=stage,
                    drop_path_rate=drop_path_rate * (stage - 1) / len(specs),
                    make=make,
                )
            )
            width = spec.channels
        last = 6 * width
        features.append(
            conv_norm_activation(make, nn.Hardswish(), width, last, 1, role="head")
        )
        self.features = nn.Sequential(*features)
        self.stem_routing_fn = make.router(in_channels, features[0])
        self.head_routing_fn = make.router(width, features[-1])
        hidden = make_divisible(head_channels * width_mult)
        self.classifier = nn.Sequential(
            nn.Linear(last, hidden, device=device, dtype=dtype),
            nn.Hardswish(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes, device=device, dtype=dtype),
        )
        for layer in self.classifier:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

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
        stem, *blocks, head = self.features
        x = stem(x, route(self.stem_routing_fn, x))
        for block in blocks:
            x = self._call(block, x)
        x = head(x, route(self.head_routing_fn, x))
        return self.classifier(global_average_pool(x))


def _variant(
    num_classes: int, options: Mapping[str, Any], **published: Any
) -> MobileNetV3:
    """Builds a published network."""
    check_options(options, MobileNetV3)
    blocks = options.get("blocks", published["blocks"])
    check_dynamic_has_conv(options, stages=len(block_specs(blocks)))
    return MobileNetV3(num_classes, **{**published, **options})


def mobilenet_v3_large(
    num_classes: int = 1000, **options: Unpack[MobileNetV3Options]
) -> MobileNetV3:
    """Returns MobileNetV3-Large; the options are those of `MobileNetV3`.

    Example:
        >>> from dynconv_torch import DynamicConv2d
        >>> net = mobilenet_v3_large(10, conv=DynamicConv2d, device="meta")
        >>> net.features[16][0].weight.shape
        torch.Size([4, 960, 160, 1, 1])
    """
    return _variant(num_classes, options, blocks=LARGE, head_channels=1280)


def mobilenet_v3_small(
    num_classes: int = 1000, **options: Unpack[MobileNetV3Options]
) -> MobileNetV3:
    """Returns MobileNetV3-Small; see `mobilenet_v3_large`."""
    return _variant(num_classes, options, blocks=SMALL, head_channels=1024)
