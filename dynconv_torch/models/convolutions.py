"""Which convolutions of a network are dynamic, and where their attention comes from.

Networks build their layers with `Convolutions`, which knows the choice of the user and,
for each convolution, its role. Some members of the family take their attention from
outside (`needs_attention`); all such layers of a block share the block's `routing_fn`.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynconv_torch import routing

Role = Literal["stem", "body", "downsample", "head"]

CHOICES = ("paper", "all", "pointwise")


class Convolutions:
    """Builds the layers of one network: each convolution static or dynamic.

    A convolution has a role: `"stem"` reads the images, `"body"` is in a block,
    `"downsample"` is on a block's shortcut, `"head"` is after the last block. `dynamic`
    says which are dynamic:

    - `"paper"`: body and head, as the papers of the family have it;
    - `"all"`: stem and shortcuts too;
    - `"pointwise"`: the 1×1 convolutions of the body;
    - an int n: the body of the last n stages.

    Example:
        >>> from dynconv_torch.layers import DynamicConv2d
        >>> make = Convolutions(DynamicConv2d, "paper", stages=4)
        >>> type(make(3, 8, 7, 2, role="stem")).__name__
        'Conv2d'
        >>> type(make(8, 8, 3, stage=1)).__name__
        'DynamicConv2d'
    """

    def __init__(
        self,
        conv: Callable[..., Any] | None,
        dynamic: str | int,
        *,
        stages: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Keeps the choice.

        Args:
            conv: Builds a dynamic convolution, with the signature of `nn.Conv2d`; None
                makes all static.
            dynamic: Which convolutions `conv` builds.
            stages: How many stages the network has.
            device: Where the parameters are.
            dtype: The dtype of every parameter.

        Raises:
            TypeError: If `conv` is not callable.
            ValueError: If `dynamic` is no choice.
        """
        if conv is not None and not callable(conv):
            raise TypeError(
                f"`conv` (={conv!r}) must be a callable with the signature of "
                "`nn.Conv2d`, or None; names of convolutions are for `create_model`"
            )
        is_count = isinstance(dynamic, int) and not isinstance(dynamic, bool)
        if dynamic not in (range(1, stages + 1) if is_count else CHOICES):
            raise ValueError(
                f"`dynamic` (={dynamic!r}) must be 'paper', 'all', 'pointwise' or an "
                f"int from 1 to {stages}, the number of last stages"
            )
        self.conv = conv
        self.dynamic = dynamic
        self.stages = stages
        self.shared: dict[str, Any] = dict(device=device, dtype=dtype)
        self.num_dynamic = 0

    def is_dynamic(self, kernel_size: int, role: Role, stage: int) -> bool:
        """Returns whether `dynamic` says so of the convolution."""
        if self.dynamic == "all":
            return True
        if self.dynamic == "paper":
            return role in ("body", "head")
        if self.dynamic == "pointwise":
            return role == "body" and kernel_size == 1
        return role == "body" and stage > self.stages - int(self.dynamic)

    def __call__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        padding: Any = None,
        groups: int = 1,
        role: Role = "body",
        stage: int = 0,
    ) -> Any:
        """Builds a square convolution without bias.

        Args:
            in_channels: C, the number of input channels.
            out_channels: O, the number of output channels.
            kernel_size: The side of the kernel.
            stride: The step between windows.
            padding: As in `nn.Conv2d`; None pads by kernel_size // 2 on every side.
            groups: The number of channel groups.
            role: What the convolution is to the network.
            stage: Which stage it is in, from 1.
        """
        options: dict[str, Any] = dict(
            stride=stride,
            padding=kernel_size // 2 if padding is None else padding,
            groups=groups,
            bias=False,
            **self.shared,
        )
        if self.conv is not None and self.is_dynamic(kernel_size, role, stage):
            self.num_dynamic += 1
            return self.conv(in_channels, out_channels, kernel_size, **options)
        layer = nn.Conv2d(in_channels, out_channels, kernel_size, **options)
        # As torchvision draws the convolutions of its networks.
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return layer

    def norm(self, channels: int, **options) -> nn.BatchNorm2d:
        """Builds a batch norm; the options are those of `nn.BatchNorm2d`."""
        return nn.BatchNorm2d(channels, **options, **self.shared)

    def router(self, in_channels: int, *layers: nn.Module | None) -> nn.Module | None:
        """Builds the `routing_fn` that those of `layers` share which need one, if any.

        Args:
            in_channels: The number of channels of what the router is to see.
            *layers: Convolutions, sequences of them, or None.

        Raises:
            ValueError: If they differ in their number of experts.
        """
        parts: list[Any] = [
            part
            for layer in layers
            if layer is not None
            for part in layer.modules()
            if getattr(part, "needs_attention", False)
        ]
        counts = {part.num_experts for part in parts}
        if len(counts) > 1:
            raise ValueError(
                f"the convolutions of a block have {sorted(counts)} experts; they "
                "share one attention, so `num_experts` must be the same for all"
            )
        for num_experts in counts:
            router = routing.SigmoidRouter  # pyright: ignore[reportAttributeAccessIssue]
            return router(in_channels, num_experts, **self.shared)
        return None

    def check_used(self) -> None:
        """Raises a ValueError if there was a `conv` and no place for it."""
        if self.conv is not None and not self.num_dynamic:
            raise ValueError(
                f"`dynamic` (={self.dynamic!r}) makes no convolution of this network "
                "dynamic; choose another, or leave `conv` out"
            )


def route(routing_fn: nn.Module | None, x: Tensor) -> Tensor | None:
    """Returns the attention of a router, or None where there is no router."""
    return None if routing_fn is None else routing_fn(x)


def apply(layer: Any, x: Tensor, attention: Tensor | None) -> Tensor:
    """Applies a layer, with the attention if it takes that from outside.

    Example:
        >>> apply(nn.ReLU(), torch.tensor([-1.0, 2.0]), None).tolist()
        [0.0, 2.0]
    """
    if isinstance(layer, RoutedSequential) or getattr(layer, "needs_attention", False):
        return layer(x, attention)
    return layer(x)


class RoutedSequential(nn.Sequential):
    """Layers in a row; those that take their attention from outside are given it.

    Example:
        >>> layers = RoutedSequential(nn.Linear(3, 8), nn.ReLU())
        >>> layers(torch.ones(2, 3)).shape
        torch.Size([2, 8])
    """

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """Applies the layers in turn."""
        for layer in self:
            x = apply(layer, x, attention)
        return x
