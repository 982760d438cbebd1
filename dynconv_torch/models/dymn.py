"""DyMN: MobileNetV3 for sounds, whose blocks are steered by a context."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice, check_positive, check_rate
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.layers.context_conv import ContextConv2d
from dynconv_torch.layers.context_generator import ContextGenerator
from dynconv_torch.layers.coordinate_attention import CoordinateGate
from dynconv_torch.layers.dynamic_relu import DynamicReLU
from dynconv_torch.layers.given_attention import apply, route
from dynconv_torch.models.convolutions import Convolutions
from dynconv_torch.models.grad_checkpointing import Checkpointing
from dynconv_torch.models.images import check_images
from dynconv_torch.models.mobilenet_v2 import conv_norm_activation, make_divisible
from dynconv_torch.models.mobilenet_v3 import (
    LARGE,
    NORM_OPTIONS,
    BlockSpec,
    InvertedResidual,
    block_specs,
)
from dynconv_torch.models.options import check_options

# What a context has features for: a share of the expanded channels, within bounds that
# are of width 1.
CONTEXT_SHARE = 4
CONTEXT_BOUNDS = 32, 128

WIDTHS = {"dymn04": 0.4, "dymn10": 1.0, "dymn20": 2.0}


class DynamicBlock(nn.Module):
    """Expand, depthwise, dynamic ReLU, coordinate gates, project; a shortcut.

    Attributes:
        context_gen: The `ContextGenerator`, which sees the input of the block.
        exp_conv: The 1×1 convolution that widens; `exp_norm` follows. Both are None
            where there is nothing to widen.
        depth_conv: The depthwise convolution; `depth_norm` and `depth_act` follow.
        proj_conv: The 1×1 convolution behind the gates; `proj_norm` follows.
    """

    def __init__(
        self,
        in_channels: int,
        spec: BlockSpec,
        *,
        context_channels: int,
        stage: int,
        make: Convolutions,
    ):
        """Builds the block.

        Args:
            in_channels: The number of input channels.
            spec: The block, at the width of the network.
            context_channels: The number of features of the context.
            stage: The number of the block, from 1.
            make: Builds the layers.
        """
        super().__init__()
        hidden = spec.expanded_channels
        steered: dict[str, Any] = dict(stage=stage, context_channels=context_channels)
        is_widened = hidden != in_channels
        self.exp_conv = make(in_channels, hidden, 1, **steered) if is_widened else None
        self.exp_norm = make.norm(hidden) if is_widened else None
        self.exp_act = nn.Hardswish() if spec.is_hard_swish else nn.ReLU()
        self.depth_conv = make(
            hidden, hidden, spec.kernel_size, spec.stride, groups=hidden, **steered
        )
        self.depth_norm = make.norm(hidden)
        self.depth_act = DynamicReLU(
            hidden, context_channels=context_channels, **make.shared
        )
        self.gate = CoordinateGate()
        self.proj_conv = make(hidden, spec.channels, 1, **steered)
        self.proj_norm = make.norm(spec.channels)
        self.context_gen = ContextGenerator(
            in_channels, context_channels, hidden, stride=spec.stride, **make.shared
        )
        self.has_shortcut = spec.stride == 1 and in_channels == spec.channels
        self.routing_fn = make.router(
            in_channels, self.exp_conv, self.depth_conv, self.proj_conv
        )

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to (B, in_channels, F, T)."""
        vector, rows, columns = self.context_gen(x)
        given = route(self.routing_fn, x), vector
        y = x
        if self.exp_conv is not None and self.exp_norm is not None:
            y = self.exp_act(self.exp_norm(apply(self.exp_conv, y, *given)))
        y = self.depth_norm(apply(self.depth_conv, y, *given))
        y = self.gate(self.depth_act(y, vector), rows, columns)
        y = self.proj_norm(apply(self.proj_conv, y, *given))
        return x + y if self.has_shortcut else y


class DyMNOptions(TypedDict, total=False):
    """The options of `DyMN`, for builders of published networks."""

    blocks: Sequence[BlockSpec | tuple[Any, ...]]
    conv: Callable[..., Any] | None
    dynamic: str | int
    context_in: str
    width_mult: float
    in_channels: int
    dropout: float
    device: torch.device | str | None
    dtype: torch.dtype | None


class DyMN(Checkpointing):
    """DyMN: a stem, fifteen blocks of MobileNetV3 made dynamic, a head of two layers.

    Schmid et al., "Dynamic Convolutional Neural Networks as Efficient Pre-trained Audio
    Models", TASLP 2024. Inputs are log-mel spectrograms (B, 1, mel, time), of any
    length. The parameters are named and drawn as the authors' (EfficientAT).

    Checkpoints do not hold the temperature of the attention: write it with
    `set_temperature`, 1 for weights of AudioSet, where it starts here, 30 for those of
    ImageNet. In training it falls by `two_slope_temperature`.

    Attributes:
        in_c: The 3×3 convolution of the stem, stride 2, its norm, hard swish.
        layers: The blocks.
        out_c: The 1×1 convolution after the blocks, its norm, hard swish.
        classifier: Pooling, a linear layer, hard swish, dropout, the linear head.

    Example:
        >>> net = DyMN(10, blocks=LARGE[:2]).eval()
        >>> net(torch.ones(2, 1, 40, 33)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 527,
        *,
        blocks: Sequence[BlockSpec | tuple[Any, ...]] = LARGE,
        conv: Callable[..., Any] | None = ContextConv2d,
        dynamic: str | int = "paper",
        context_in: str = "all",
        width_mult: float = 1.0,
        in_channels: int = 1,
        dropout: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the network.

        Args:
            num_classes: The number of logits.
            blocks: What is between the stem and the last convolution, `BlockSpec`s or
                tuples of the same entries; at least one. By default those of
                MobileNetV3-Large, whose squeeze-and-excitation none has here.
            conv: Builds the dynamic convolutions, with the signature of `nn.Conv2d`:
                `ContextConv2d`, or `functools.partial(ContextConv2d, num_experts=8)`,
                which the context of a block steers, or any other; None makes all
                static.
            dynamic: Which convolutions of the blocks are dynamic: `"paper"` or `"all"`,
                all of them, `"pointwise"`, the 1×1 ones, or an int n, those of the last
                n blocks. The stem and the last convolution are static.
            context_in: Which blocks look at their input and are dynamic: `"all"`, or
                `"squeeze"`, those alone that have squeeze-and-excitation in
                MobileNetV3, as the networks that the authors call `replace_se`. The
                others are its inverted residuals.
            width_mult: Multiplies all widths; they are rounded to multiples of 8.
            in_channels: The number of channels of the inputs.
            dropout: The rate of the dropout before the last layer.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range, or there are no blocks.
        """
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        positive_int("num_classes", num_classes)
        check_positive("width_mult", width_mult)
        check_rate("dropout", dropout)
        check_choice("context_in", context_in, ("all", "squeeze"))
        specs = [spec.at_width(width_mult) for spec in block_specs(blocks)]
        options: dict[str, Any] = dict(
            stages=len(specs),
            norm_options=NORM_OPTIONS,
            device=device,
            dtype=dtype,
        )
        make = Convolutions(conv, dynamic, **options)
        static = Convolutions(None, "paper", **options)

        width = make_divisible(16 * width_mult)
        self.in_c = conv_norm_activation(
            static, nn.Hardswish(), in_channels, width, 3, 2, role="stem"
        )
        layers = []
        for stage, spec in enumerate(specs, start=1):
            if context_in == "all" or spec.has_squeeze:
                context_channels = _context_size(spec.expanded_channels, width_mult)
                block = DynamicBlock(
                    width,
                    spec,
                    context_channels=context_channels,
                    stage=stage,
                    make=make,
                )
            else:
                block = InvertedResidual(
                    width, spec, stage=stage, drop_path_rate=0.0, make=static
                )
            layers.append(block)
            width = spec.channels
        self.layers = nn.ModuleList(layers)
        last, hidden = 6 * width, make_divisible(1280 * width_mult)
        self.out_c = conv_norm_activation(static, nn.Hardswish(), width, last, 1)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(last, hidden, device=device, dtype=dtype),
            nn.Hardswish(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes, device=device, dtype=dtype),
        )
        for layer in self.classifier:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        make.check_used()

    def forward(
        self, x: Float[Tensor, "batch in_channels mel time"]
    ) -> Float[Tensor, "batch classes"]:
        """Tags sounds.

        Args:
            x: The log-mel spectrograms.

        Returns:
            The logits, one for each class; sounds may have several.

        Raises:
            ValueError: If the input does not fit the network.
        """
        check_images(x, self.in_channels)
        x = self.in_c(x)
        for block in self.layers:
            x = self._call(block, x)
        return self.classifier(self.out_c(x))


def _context_size(expanded_channels: int, width_mult: float) -> int:
    """Returns how many features the context of a block has."""
    low, high = (make_divisible(bound * width_mult) for bound in CONTEXT_BOUNDS)
    return min(max(make_divisible(expanded_channels // CONTEXT_SHARE), low), high)


def _variant(name: str, num_classes: int, options: Mapping[str, Any]) -> DyMN:
    """Builds a published network."""
    check_options(options, DyMN)
    return DyMN(num_classes, **{"width_mult": WIDTHS[name], **options})


def dymn04(num_classes: int = 527, **options: Unpack[DyMNOptions]) -> DyMN:
    """Returns DyMN of 0.4 times the width; 2 million parameters.

    Args:
        num_classes: The number of logits.
        **options: The options of `DyMN`.

    Example:
        >>> net = dymn04(10, device="meta")
        >>> net.layers[14].proj_conv.weight.shape
        torch.Size([1, 1, 4, 24576])
    """
    return _variant("dymn04", num_classes, options)


def dymn10(num_classes: int = 527, **options: Unpack[DyMNOptions]) -> DyMN:
    """Returns DyMN; 10.5 million parameters. See `dymn04`."""
    return _variant("dymn10", num_classes, options)


def dymn20(num_classes: int = 527, **options: Unpack[DyMNOptions]) -> DyMN:
    """Returns DyMN of twice the width; 40 million parameters. See `dymn04`."""
    return _variant("dymn20", num_classes, options)
