"""EfficientNet-CondConv: EfficientNet whose last stages are dynamic."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_rate
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.layers.cond_conv import CondConv2d
from dynconv_torch.layers.given_attention import apply, route
from dynconv_torch.models.convolutions import Convolutions, Dynamic
from dynconv_torch.models.drop_path import DropPath
from dynconv_torch.models.grad_checkpointing import Blocks
from dynconv_torch.models.images import check_images, global_average_pool
from dynconv_torch.models.options import check_options
from dynconv_torch.models.squeeze_excite import excite, squeeze_convs

# The input channels of a block, over the units of its squeeze-and-excitation.
SQUEEZE = 4


class Stage(NamedTuple):
    """One stage: blocks that differ in the stride of the first only.

    Attributes:
        kernel_size: The side of the depthwise kernels.
        stride: The step of the first block.
        expansion: How many times wider the depthwise convolution is; None for a block
            that has no convolution before it.
        channels: The number of output channels.
        depth: The number of blocks.
    """

    kernel_size: int
    stride: int
    expansion: int | None
    channels: int
    depth: int


# Tan & Le, "EfficientNet", ICML 2019, table 1.
STAGES = (
    Stage(3, 1, None, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)


class SqueezeExcite(nn.Module):
    """Scales every channel by a sigmoid that sees the mean of all channels."""

    def __init__(self, channels: int, hidden_channels: int, make: Convolutions):
        """Builds `conv_reduce` and `conv_expand`, 1×1 convolutions."""
        super().__init__()
        convs = squeeze_convs(channels, hidden_channels, make)
        self.conv_reduce, self.conv_expand = convs

    def forward(self, x: Tensor) -> Tensor:
        """Applies the gates to (B, channels, H, W)."""
        return excite(x, self.conv_reduce, self.conv_expand, F.silu, torch.sigmoid)


class SeparableBlock(nn.Module):
    """Depthwise convolution, squeeze-and-excitation, 1×1 convolution; a shortcut."""

    def __init__(
        self,
        in_channels: int,
        spec: Stage,
        stride: int,
        *,
        stage: int,
        drop_path_rate: float,
        make: Convolutions,
    ):
        """Builds the block.

        Args:
            in_channels: The number of input channels.
            spec: The stage that it is in.
            stride: The step of the depthwise convolution.
            stage: The number of the stage, from 1.
            drop_path_rate: The share of samples whose branch is dropped in training.
            make: Builds the layers.
        """
        super().__init__()
        self.conv_dw = make(
            in_channels,
            in_channels,
            spec.kernel_size,
            stride,
            groups=in_channels,
            stage=stage,
        )
        self.bn1 = make.norm(in_channels)
        self.se = SqueezeExcite(in_channels, round(in_channels / SQUEEZE), make)
        self.conv_pw = make(in_channels, spec.channels, 1, stage=stage)
        self.bn2 = make.norm(spec.channels)
        self.has_shortcut = stride == 1 and in_channels == spec.channels
        self.drop_path = DropPath(drop_path_rate)
        self.routing_fn = make.router(in_channels, self.conv_dw, self.conv_pw)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to (B, in_channels, H, W)."""
        attention = route(self.routing_fn, x)
        y = F.silu(self.bn1(apply(self.conv_dw, x, attention)))
        y = self.bn2(apply(self.conv_pw, self.se(y), attention))
        return x + self.drop_path(y) if self.has_shortcut else y


class InvertedResidual(nn.Module):
    """A 1×1 convolution that widens, then what `SeparableBlock` has."""

    def __init__(
        self,
        in_channels: int,
        spec: Stage,
        stride: int,
        *,
        stage: int,
        drop_path_rate: float,
        make: Convolutions,
    ):
        """Builds the block; the arguments are those of `SeparableBlock`."""
        super().__init__()
        assert spec.expansion is not None
        hidden = in_channels * spec.expansion
        self.conv_pw = make(in_channels, hidden, 1, stage=stage)
        self.bn1 = make.norm(hidden)
        self.conv_dw = make(
            hidden, hidden, spec.kernel_size, stride, groups=hidden, stage=stage
        )
        self.bn2 = make.norm(hidden)
        self.se = SqueezeExcite(hidden, round(in_channels / SQUEEZE), make)
        self.conv_pwl = make(hidden, spec.channels, 1, stage=stage)
        self.bn3 = make.norm(spec.channels)
        self.has_shortcut = stride == 1 and in_channels == spec.channels
        self.drop_path = DropPath(drop_path_rate)
        self.routing_fn = make.router(
            in_channels, self.conv_pw, self.conv_dw, self.conv_pwl
        )

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to (B, in_channels, H, W)."""
        attention = route(self.routing_fn, x)
        y = F.silu(self.bn1(apply(self.conv_pw, x, attention)))
        y = F.silu(self.bn2(apply(self.conv_dw, y, attention)))
        y = self.bn3(apply(self.conv_pwl, self.se(y), attention))
        return x + self.drop_path(y) if self.has_shortcut else y


class EfficientNetOptions(TypedDict, total=False):
    """The options of `EfficientNet`, for builders of published networks."""

    stages: Sequence[Stage | tuple]
    conv: Callable[..., Any] | None
    dynamic: Dynamic
    tensorflow: bool
    in_channels: int
    stem_channels: int
    head_channels: int
    dropout: float
    drop_path_rate: float
    device: torch.device | str | None
    dtype: torch.dtype | None


class EfficientNet(nn.Module):
    """EfficientNet, with static or dynamic convolutions.

    Tan & Le, "EfficientNet", ICML 2019; with CondConv in the last three stages, Yang et
    al., "CondConv", NeurIPS 2019, section 4.1. The parameters are named and drawn as
    timm's.

    Attributes:
        conv_stem: The 3×3 convolution of the stem, stride 2; `bn1` follows.
        blocks: The stages, each a sequence of blocks.
        conv_head: The 1×1 convolution after the blocks; `bn2` follows.
        classifier: The linear head.

    Example:
        >>> net = EfficientNet(10, stages=STAGES[:3]).eval()
        >>> net(torch.ones(2, 3, 40, 33)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        stages: Sequence[Stage | tuple] = STAGES,
        conv: Callable[..., Any] | None = None,
        dynamic: Dynamic = 3,
        tensorflow: bool = False,
        in_channels: int = 3,
        stem_channels: int = 32,
        head_channels: int = 1280,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the network.

        Args:
            num_classes: The number of logits.
            stages: What is between the stem and the head, `Stage`s or tuples of the
                same entries.
            conv: Builds the dynamic convolutions, with the signature of `nn.Conv2d`,
                such as `functools.partial(CondConv2d, num_experts=8)`, whose routers
                the blocks then have, or `DynamicConv2d`, which routes itself; None
                makes all static.
            dynamic: Which convolutions are dynamic: an int n, those of the last n
                stages, as published; `"paper"` (all but the stem), `"all"` or
                `"pointwise"` (the 1×1 convolutions of the blocks).
            tensorflow: Compute as the weights that were trained in TensorFlow expect:
                padding `"tf_same"`, and 1e-3 as the epsilon of batch norms.
            in_channels: The number of channels of the images.
            stem_channels: The number of output channels of the stem.
            head_channels: The number of features before the linear head.
            dropout: The rate of the dropout before the linear head.
            drop_path_rate: Of n blocks, counted from 0, block i is skipped in training
                by a share of i / n of this; one without a shortcut never is.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range, or no convolution is dynamic.
        """
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        positive_int("num_classes", num_classes)
        check_rate("dropout", dropout)
        check_rate("drop_path_rate", drop_path_rate)
        specs = [Stage._make(spec) for spec in stages]
        make = Convolutions(
            conv,
            dynamic,
            stages=len(specs),
            padding="tf_same" if tensorflow else None,
            norm_options={"eps": 1e-3 if tensorflow else 1e-5},
            init="efficientnet",
            device=device,
            dtype=dtype,
        )

        width = positive_int("stem_channels", stem_channels)
        self.conv_stem = make(in_channels, width, 3, 2, role="stem")
        self.bn1 = make.norm(width)
        self.stem_routing_fn = make.router(in_channels, self.conv_stem)
        total = sum(spec.depth for spec in specs)
        built = []
        count = 0
        for stage, spec in enumerate(specs, start=1):
            block = SeparableBlock if spec.expansion is None else InvertedResidual
            blocks = []
            for index in range(positive_int("depth", spec.depth)):
                blocks.append(
                    block(
                        width,
                        spec,
                        spec.stride if index == 0 else 1,
                        stage=stage,
                        drop_path_rate=drop_path_rate * count / total,
                        make=make,
                    )
                )
                width = spec.channels
                count += 1
            built.append(Blocks(*blocks))
        self.blocks = nn.Sequential(*built)
        self.conv_head = make(width, head_channels, 1, role="head")
        self.bn2 = make.norm(head_channels)
        self.head_routing_fn = make.router(width, self.conv_head)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head_channels, num_classes, **make.shared)
        bound = num_classes**-0.5
        nn.init.uniform_(self.classifier.weight, -bound, bound)
        nn.init.zeros_(self.classifier.bias)
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
        x = F.silu(self.bn1(apply(self.conv_stem, x, attention)))
        x = self.blocks(x)
        attention = route(self.head_routing_fn, x)
        x = F.silu(self.bn2(apply(self.conv_head, x, attention)))
        return self.classifier(self.dropout(global_average_pool(x)))


def _variant(
    num_classes: int,
    num_experts: int,
    options: Mapping[str, Any],
    *,
    depth: float = 1.0,
    tensorflow: bool = False,
) -> EfficientNet:
    """Builds a published network: so many experts, and depths multiplied."""
    check_options(options, EfficientNet)
    published = {
        "stages": [
            spec._replace(depth=math.ceil(spec.depth * depth)) for spec in STAGES
        ],
        "conv": functools.partial(CondConv2d, num_experts=num_experts),
        "tensorflow": tensorflow,
    }
    return EfficientNet(num_classes, **{**published, **options})


def efficientnet_cc_b0_4e(
    num_classes: int = 1000, **options: Unpack[EfficientNetOptions]
) -> EfficientNet:
    """Returns EfficientNet-B0 with CondConv of 4 experts; 13.3 million parameters.

    Args:
        num_classes: The number of logits.
        **options: The options of `EfficientNet`.

    Example:
        >>> net = efficientnet_cc_b0_4e(10, device="meta")
        >>> net.blocks[4][0].conv_pw.weight.shape
        torch.Size([4, 38400])
    """
    return _variant(num_classes, 4, options)


def efficientnet_cc_b0_8e(
    num_classes: int = 1000, **options: Unpack[EfficientNetOptions]
) -> EfficientNet:
    """Returns EfficientNet-B0 with CondConv of 8 experts; 24 million parameters.

    See `efficientnet_cc_b0_4e`.
    """
    return _variant(num_classes, 8, options)


def efficientnet_cc_b1_8e(
    num_classes: int = 1000, **options: Unpack[EfficientNetOptions]
) -> EfficientNet:
    """Returns EfficientNet-B1 with CondConv of 8 experts; 39.7 million parameters.

    See `efficientnet_cc_b0_4e`.
    """
    return _variant(num_classes, 8, options, depth=1.1)


def tf_efficientnet_cc_b0_4e(
    num_classes: int = 1000, **options: Unpack[EfficientNetOptions]
) -> EfficientNet:
    """Returns `efficientnet_cc_b0_4e` for weights that were trained in TensorFlow."""
    return _variant(num_classes, 4, options, tensorflow=True)


def tf_efficientnet_cc_b0_8e(
    num_classes: int = 1000, **options: Unpack[EfficientNetOptions]
) -> EfficientNet:
    """Returns `efficientnet_cc_b0_8e` for weights that were trained in TensorFlow."""
    return _variant(num_classes, 8, options, tensorflow=True)


def tf_efficientnet_cc_b1_8e(
    num_classes: int = 1000, **options: Unpack[EfficientNetOptions]
) -> EfficientNet:
    """Returns `efficientnet_cc_b1_8e` for weights that were trained in TensorFlow."""
    return _variant(num_classes, 8, options, depth=1.1, tensorflow=True)
