"""Small PyTorch modules of every member of the family, and inputs for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import dynconv_torch
from dynconv_torch.functional import Geometry
from dynconv_torch.models.convolutions import Convolutions
from dynconv_torch.models.dymn import DynamicBlock
from dynconv_torch.models.mobilenet_v3 import BlockSpec

CHANNELS = 4
SPATIAL = {1: (9,), 2: (9, 7), 3: (5, 4, 6)}


class OfWarehouse(nn.Module):
    """A layer of a warehouse, and the warehouse."""

    def __init__(self, rank: int, **options: Any):
        """Builds both; the options are those of the layer."""
        super().__init__()
        geometry = Geometry.create(CHANNELS, 6, 3, rank=rank, stride=2, padding=1)
        self.warehouse = dynconv_torch.KernelWarehouse([geometry])
        layer = getattr(dynconv_torch, f"WarehouseConv{rank}d")
        self.conv = layer(self.warehouse, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer."""
        return self.conv(x)


class Routed(nn.Module):
    """A CondConv and the router that it needs."""

    def __init__(self, rank: int, **options: Any):
        """Builds both; the options are those of the convolution."""
        super().__init__()
        self.routing_fn = dynconv_torch.SigmoidRouter(CHANNELS, 3)
        layer = getattr(dynconv_torch, f"CondConv{rank}d")
        self.conv = layer(CHANNELS, 6, 3, num_experts=3, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the convolution."""
        return self.conv(x, self.routing_fn(x))


class Styled(nn.Module):
    """A layer with latents, which the means of its inputs are here."""

    def __init__(self, name: str, rank: int, *arguments: Any, **options: Any):
        """Builds the layer; the arguments are those of its class."""
        super().__init__()
        cls = getattr(dynconv_torch, f"{name}{rank}d")
        self.pixels = tuple(range(-rank, 0))
        self.conv = cls(CHANNELS, *arguments, style_channels=CHANNELS, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer."""
        return self.conv(x, x.mean(self.pixels))


def _steered() -> nn.Module:
    """A block of DyMN: all that a context steers."""
    make = Convolutions(dynconv_torch.ContextConv2d, "paper", stages=1)
    spec = BlockSpec(3, 8, 6, 2, True)
    return DynamicBlock(CHANNELS, spec, context_channels=5, stage=1, make=make)


def _layer(name: str, rank: int, *arguments: Any, **options: Any) -> Callable:
    cls = getattr(dynconv_torch, f"{name}{rank}d")
    return lambda: cls(CHANNELS, *arguments, **options)


# What builds a module, and the rank of its input.
MEMBERS: dict[str, tuple[Callable[[], nn.Module], int]] = {}
for _rank in (1, 2, 3):
    MEMBERS |= {
        f"dynamic {_rank}d": (
            _layer("DynamicConv", _rank, 6, 3, stride=2, padding=1, bias=True),
            _rank,
        ),
        f"transposed {_rank}d": (
            _layer("DynamicConvTranspose", _rank, 6, 3, stride=2, padding=1, bias=True),
            _rank,
        ),
        f"condconv {_rank}d": (
            lambda rank=_rank: Routed(rank, stride=2, padding="same"),
            _rank,
        ),
        f"odconv {_rank}d": (_layer("ODConv", _rank, 6, 3, padding=1), _rank),
        f"modulated {_rank}d": (
            lambda rank=_rank: Styled("ModulatedConv", rank, 6, 3, stride=2, padding=1),
            _rank,
        ),
        f"warehouse {_rank}d": (lambda rank=_rank: OfWarehouse(rank), _rank),
        f"decomposed {_rank}d": (
            _layer("DecomposedConv", _rank, 6, 3, stride=2, padding="tf_same", pool=2),
            _rank,
        ),
    }
VARIANTS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "depthwise, top-k": (
        _layer("DynamicConv", 2, 4, 3, groups=4, padding=1, top_k=2),
        2,
    ),
    "uneven, grouped, dilated": (
        _layer(
            *("DynamicConv", 2, 6, (3, 2)),
            groups=2,
            padding=((0, 2), (1, -1)),
            dilation=(1, 2),
        ),
        2,
    ),
    "padded as TensorFlow": (
        _layer("DynamicConv", 2, 6, 3, stride=2, padding="tf_same"),
        2,
    ),
    "odconv, layer norm": (_layer("ODConv", 2, 6, 3, norm="layer"), 2),
    "odconv, pointwise, no norm": (_layer("ODConv", 2, 6, 1, norm="none"), 2),
    "odconv, one expert": (_layer("ODConv", 2, 6, 3, num_experts=1), 2),
    "odconv, static": (_layer("ODConv", 2, 6, 1, num_experts=1), 2),
    "decomposed, uneven": (
        _layer("DecomposedConv", 2, 6, (2, 3), padding=((0, 1), (1, 1))),
        2,
    ),
    "modulated, grouped, normalised": (
        lambda: Styled(
            *("ModulatedConv", 2, 6, 3),
            groups=2,
            padding="same",
            bias=True,
            pre_normalize=True,
            magnitude_momentum=0.5,
        ),
        2,
    ),
    "modulated, to an image": (
        lambda: Styled("ModulatedConv", 2, 3, 1, demodulate=False, bias=True),
        2,
    ),
    "adaptive": (lambda: Styled("AdaptiveConv", 2, 6, 3, stride=2, padding=1), 2),
    "adaptive, grouped": (
        lambda: Styled("AdaptiveConv", 2, 6, (1, 3), groups=2, bias=True),
        2,
    ),
    "warehouse, layer norm": (lambda: OfWarehouse(2, norm="layer", bias=True), 2),
    "fd": (
        _layer("FDConv", 2, 6, 3, padding=1, bias=True, min_channels=2, num_experts=3),
        2,
    ),
    "fd, pointwise, grouped, no norm": (
        _layer(
            *("FDConv", 2, 6, 1),
            groups=2,
            min_channels=2,
            num_experts=3,
            norm="none",
        ),
        2,
    ),
    "frequency": (
        _layer("FrequencyDynamicConv", 2, 6, 3, stride=2, padding=1, bias=True),
        2,
    ),
    "time, grouped": (
        _layer(
            *("FrequencyDynamicConv", 2, 6, (3, 2)),
            groups=2,
            padding="tf_same",
            axis="time",
        ),
        2,
    ),
    "steered 2d": (_steered, 2),
    "block": (lambda: dynconv_torch.DynamicConvBlock(CHANNELS, 6, 3), 2),
    "routed block": (
        lambda: dynconv_torch.DynamicConvBlock(
            CHANNELS, 6, 3, conv=dynconv_torch.CondConv2d
        ),
        2,
    ),
}
NET = "net", (lambda: dynconv_torch.DynamicNet(CHANNELS, width_mult=0.25), 2)
ALL = {**MEMBERS, **VARIANTS, NET[0]: NET[1]}


def build(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """Builds a module of `ALL` with lively biases and norms, for evaluation."""
    module = ALL[name][0]()
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.ndim == 1 and value.is_floating_point():
                value.normal_()
    return module.to(dtype).eval()


def images(
    name: str, batch: int, dtype: torch.dtype = torch.float64, larger: int = 0
) -> Tensor:
    """Draws an input of a module of `ALL`, larger than usual by some pixels."""
    spatial = [size + larger for size in SPATIAL[ALL[name][1]]]
    return torch.randn(batch, CHANNELS, *spatial, dtype=dtype)
