"""ConvNeXt, with static or dynamic convolutions."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_rate
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.layers.given_attention import needs_attention
from dynconv_torch.models.convolutions import Convolutions
from dynconv_torch.models.drop_path import DropPath
from dynconv_torch.models.grad_checkpointing import Blocks
from dynconv_torch.models.images import check_images, global_average_pool


class LayerNorm2d(nn.LayerNorm):
    """`nn.LayerNorm` over the channels of images.

    Example:
        >>> LayerNorm2d(8)(torch.ones(2, 8, 7, 6)).shape
        torch.Size([2, 8, 7, 6])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises each pixel of (B, C, H, W)."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """A 7×7 depthwise convolution, then two 1×1, beside a shortcut.

    Attributes:
        gamma: What scales the branch, shape (1, C, 1, 1).
    """

    def __init__(
        self,
        channels: int,
        *,
        stage: int,
        drop_path_rate: float,
        layer_scale: float,
        make: Convolutions,
    ):
        """Builds the block.

        Args:
            channels: The number of channels.
            stage: The stage of the network, from 1.
            drop_path_rate: The share of samples whose branch is dropped in training.
            layer_scale: The initial value of `gamma`.
            make: Builds the layers.
        """
        super().__init__()
        place: dict[str, Any] = dict(stage=stage, bias=True)
        self.dwconv = make(channels, channels, 7, groups=channels, **place)
        self.norm = LayerNorm2d(channels, eps=1e-6, **make.shared)
        self.pwconv1 = make(channels, 4 * channels, 1, **place)
        self.pwconv2 = make(4 * channels, channels, 1, **place)
        scales = torch.full((1, channels, 1, 1), layer_scale, **make.shared)
        self.gamma = nn.Parameter(scales)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to (B, channels, H, W)."""
        y = self.pwconv1(self.norm(self.dwconv(x)))
        y = self.pwconv2(F.gelu(y))
        return x + self.drop_path(self.gamma * y)


class ConvNeXtOptions(TypedDict, total=False):
    """The options of `ConvNeXt`, for builders of published networks."""

    conv: Callable[..., Any] | None
    dynamic: str | int
    in_channels: int
    drop_path_rate: float
    layer_scale: float
    device: torch.device | str | None
    dtype: torch.dtype | None


class ConvNeXt(nn.Module):
    """ConvNeXt: patches, four stages of blocks with patches of 2×2 between, a head.

    Liu et al., "A ConvNet for the 2020s", CVPR 2022. The 1×1 layers of blocks are
    convolutions here, and not linear layers.

    Attributes:
        downsample_layers: What is before each stage: the stem, and then a norm and a
            convolution of stride 2.
        stages: The blocks of each stage.
        norm: What normalises the pooled features.
        head: The linear head.

    Example:
        >>> net = ConvNeXt((1, 1, 1, 1), (8, 8, 16, 16), 10)
        >>> net(torch.ones(2, 3, 64, 33)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int = 1000,
        *,
        conv: Callable[..., Any] | None = None,
        dynamic: str | int = "paper",
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the network.

        Args:
            depths: How many blocks each of the four stages has.
            widths: How many channels each has.
            num_classes: The number of logits.
            conv: Builds the dynamic convolutions, with the signature of `nn.Conv2d`,
                such as `DynamicConv2d`; None makes all static.
            dynamic: Which convolutions are dynamic: `"paper"` (all but the stem),
                `"all"`, `"pointwise"` (the 1×1 convolutions of the blocks), or an int
                n, those of the last n stages and before each.
            in_channels: The number of channels of the images.
            drop_path_rate: The share of samples that skip the last block in training.
                Block i of n, counted from 0, is skipped by i / (n - 1) of it.
            layer_scale: What scales the branch of each block at first.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range, `conv` takes its attention from
                outside, or no convolution is dynamic.
        """
        super().__init__()
        for name, counts in (("depths", depths), ("widths", widths)):
            if len(counts) != 4:
                raise ValueError(f"`{name}` (={counts!r}) must have four entries")
        depths = [positive_int("depths", depth) for depth in depths]
        widths = [positive_int("widths", width) for width in widths]
        self.in_channels = positive_int("in_channels", in_channels)
        positive_int("num_classes", num_classes)
        check_rate("drop_path_rate", drop_path_rate)
        if needs_attention(getattr(conv, "func", conv)):
            raise ValueError(
                "`conv` takes its attention from outside, and the blocks of ConvNeXt "
                "have no router; choose one with a router of its own, such as "
                "`DynamicConv2d`"
            )
        make = Convolutions(
            conv,
            dynamic,
            stages=4,
            init="convnext",
            device=device,
            dtype=dtype,
        )

        place: dict[str, Any] = dict(padding=0, bias=True)
        shared: dict[str, Any] = dict(eps=1e-6, **make.shared)
        stem = make(in_channels, widths[0], 4, 4, role="stem", **place)
        before = [nn.Sequential(stem, LayerNorm2d(widths[0], **shared))]
        for stage, (width, following) in enumerate(itertools.pairwise(widths), start=2):
            norm = LayerNorm2d(width, **shared)
            patches = make(width, following, 2, 2, stage=stage, **place)
            before.append(nn.Sequential(norm, patches))
        self.downsample_layers = nn.ModuleList(before)
        stages, count = [], 0
        rows = zip(depths, widths, strict=True)
        for stage, (depth, width) in enumerate(rows, start=1):
            blocks = []
            for _ in range(depth):
                rate = drop_path_rate * count / max(1, sum(depths) - 1)
                blocks.append(
                    Block(
                        width,
                        stage=stage,
                        drop_path_rate=rate,
                        layer_scale=layer_scale,
                        make=make,
                    )
                )
                count += 1
            stages.append(Blocks(*blocks))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(widths[-1], **shared)
        self.head = nn.Linear(widths[-1], num_classes, **make.shared)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
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
        for before, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(before(x))
        return self.head(self.norm(global_average_pool(x)))
