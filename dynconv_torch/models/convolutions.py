"""Which convolutions of a network are dynamic, and where their attention comes from.

Networks build their layers with `Convolutions`, which knows the choice of the user and,
for each convolution, its role. Some members of the family take their attention from
outside (`needs_attention`); all such layers of a block share the block's `routing_fn`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from dynconv_torch import routing
from dynconv_torch.functional.checks import check_dtype
from dynconv_torch.layers.given_attention import needs_attention, needs_context
from dynconv_torch.layers.same_conv import SameConv2d

Role = Literal["stem", "body", "downsample", "head"]

# Which convolutions are dynamic.
Dynamic = str | int | tuple[str, int]


def check_dynamic(dynamic: Any, stages: int) -> None:
    """Raises a ValueError unless `dynamic` says which convolutions are dynamic.

    Example:
        >>> check_dynamic("pointwise", stages=4)
        >>> check_dynamic(("pointwise", 3), stages=4)
    """
    match dynamic:
        case "paper" | "all" | "pointwise":
            return
        case int(last) | ("pointwise", int(last)):
            if not isinstance(last, bool) and 1 <= last <= stages:
                return
    raise ValueError(
        f"`dynamic` (={dynamic!r}) must be 'paper', 'all', 'pointwise' or an "
        f"int from 1 to {stages}, the number of last stages; or the last two together, "
        "as ('pointwise', 1)"
    )


def check_dynamic_has_conv(options: Mapping[str, Any], stages: int) -> None:
    """Raises a ValueError where `dynamic` is among the options, and no `conv`.

    The network would be static, in silence. That there is to be none, the option
    `conv=None` says.

    Args:
        options: Those of a network that is static by default.
        stages: How many stages the network has.

    Example:
        >>> check_dynamic_has_conv({"conv": None, "dynamic": 1}, stages=4)
    """
    if "dynamic" in options and "conv" not in options:
        check_dynamic(options["dynamic"], stages)
        raise ValueError(
            f"`dynamic` (={options['dynamic']!r}) says which convolutions are dynamic, "
            "but there is no `conv`, and without it all are static; choose one, such "
            "as `conv=DynamicConv2d`, or `conv='dynamic'` of `create_model`"
        )


def is_dynamic(
    dynamic: Dynamic, *, kernel_size: int, role: Role, stage: int, stages: int
) -> bool:
    """Returns whether `dynamic` says so of a convolution; see `Convolutions`.

    Args:
        dynamic: Which convolutions are dynamic.
        kernel_size: The side of its kernel.
        role: What it is to the network.
        stage: Which stage it is in, from 1.
        stages: How many stages the network has.

    Example:
        >>> is_dynamic("paper", kernel_size=7, role="stem", stage=0, stages=4)
        False
    """
    is_pointwise = role == "body" and kernel_size == 1
    match dynamic:
        case "all":
            return True
        case "paper":
            return role in ("body", "head")
        case int(last):
            return role == "body" and stage > stages - last
        case (_, int(last)):
            return is_pointwise and stage > stages - last
        case _:
            return is_pointwise


class Convolutions:
    """Builds the layers of one network: each convolution static or dynamic.

    A convolution has a role: `"stem"` reads the images, `"body"` is in a block,
    `"downsample"` is on a block's shortcut, `"head"` is after the last block. `dynamic`
    says which are dynamic:

    - `"paper"`: body and head, as the papers of the family have it;
    - `"all"`: stem and shortcuts too;
    - `"pointwise"`: the 1×1 convolutions of the body;
    - an int n: the body of the last n stages;
    - `("pointwise", n)`: of these the 1×1 convolutions.

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
        dynamic: Dynamic,
        *,
        stages: int,
        padding: Any = None,
        norm_options: Mapping[str, Any] = MappingProxyType({}),
        init: Literal[
            "torchvision", "efficientnet", "convnext", "pytorch"
        ] = "torchvision",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Keeps the choice.

        Args:
            conv: Builds a dynamic convolution, with the signature of `nn.Conv2d`; None
                makes all static.
            dynamic: Which convolutions `conv` builds.
            stages: How many stages the network has.
            padding: Of convolutions that do not say theirs, as in `nn.Conv2d`, or
                `"tf_same"`; None pads by kernel_size // 2 on every side.
            norm_options: Of every batch norm.
            init: How kernels are drawn that are static: from N(0, 2 / fan_out), where
                the fan-out is that of all groups or, for `"efficientnet"`, of one. The
                latter holds for CondConv too, expert by expert, and draws its routers
                from U(±1/√(fan_in + fan_out)). With `"convnext"` from N(0, 0.02²).
                Biases are 0. With `"pytorch"` both are as PyTorch draws them.
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
        check_dynamic(dynamic, stages)
        check_dtype(dtype)
        self.conv = conv
        self.dynamic = dynamic
        self.stages = stages
        self.shared: dict[str, Any] = dict(device=device, dtype=dtype)
        self.padding = padding
        self.norm_options = norm_options
        self.init = init
        self.num_dynamic = 0

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
        bias: bool = False,
        in_basic_block: bool = False,
        static_bias: bool = False,
        context_channels: int | None = None,
    ) -> Any:
        """Builds a square convolution.

        Args:
            in_channels: C, the number of input channels.
            out_channels: O, the number of output channels.
            kernel_size: The side of the kernel.
            stride: The step between windows.
            padding: As in `nn.Conv2d`, or `"tf_same"`; None takes that of the network.
            groups: The number of channel groups.
            role: What the convolution is to the network.
            stage: Which stage it is in, from 1.
            bias: Whether it has a bias.
            in_basic_block: Whether it is one of the two of a basic block, for which a
                dynamic convolution may have `basic_block_options`.
            static_bias: Whether it has a bias if it is static; a dynamic one has none.
            context_channels: The size of what steers the block, of which a dynamic
                convolution that needs a context is told.
        """
        if padding is None:
            padding = kernel_size // 2 if self.padding is None else self.padding
        options: dict[str, Any] = dict(
            stride=stride,
            padding=padding,
            groups=groups,
            bias=bias,
            **self.shared,
        )
        if self.conv is not None and is_dynamic(
            self.dynamic,
            kernel_size=kernel_size,
            role=role,
            stage=stage,
            stages=self.stages,
        ):
            self.num_dynamic += 1
            # Whoever builds the layers may have wrapped the class in a partial.
            layer_class = getattr(self.conv, "func", self.conv)
            if needs_context(layer_class):
                options["context_channels"] = context_channels
            if in_basic_block:
                own = getattr(layer_class, "basic_block_options", {})
                chosen = getattr(self.conv, "keywords", {})
                options.update((k, v) for k, v in own.items() if k not in chosen)
            layer = self.conv(in_channels, out_channels, kernel_size, **options)
            is_drawn = self.init == "efficientnet" and needs_attention(layer)
        else:
            options["bias"] = bias or static_bias
            layer = static_conv(in_channels, out_channels, kernel_size, **options)
            is_drawn = self.init != "pytorch"
            if is_drawn and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if is_drawn:
            fan_out = kernel_size**2 * out_channels
            if self.init == "efficientnet":
                fan_out //= groups
            is_convnext = self.init == "convnext"
            deviation = 0.02 if is_convnext else (2 / fan_out) ** 0.5
            nn.init.normal_(layer.weight, std=deviation)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        return layer

    def norm(self, channels: int, **options) -> nn.BatchNorm2d:
        """Builds a batch norm; the options are those of `nn.BatchNorm2d`."""
        return nn.BatchNorm2d(
            channels, **{**self.norm_options, **options}, **self.shared
        )

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
            if needs_attention(part)
        ]
        counts = {part.num_experts for part in parts}
        if len(counts) > 1:
            raise ValueError(
                f"the convolutions of a block have {sorted(counts)} experts; they "
                "share one attention, so `num_experts` must be the same for all"
            )
        for num_experts in counts:
            router = routing.SigmoidRouter(in_channels, num_experts, **self.shared)
            if self.init == "efficientnet":
                bound = (in_channels + num_experts) ** -0.5
                nn.init.uniform_(router.weight, -bound, bound)
                nn.init.zeros_(router.bias)
            return router
        return None

    def check_used(self) -> None:
        """Raises a ValueError if there was a `conv` and no place for it."""
        if self.conv is not None and not self.num_dynamic:
            raise ValueError(
                f"`dynamic` (={self.dynamic!r}) makes no convolution of this network "
                "dynamic; choose another, or leave `conv` out"
            )


def static_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    padding: Any,
    **options,
) -> nn.Conv2d:
    """Returns an `nn.Conv2d`, or one that pads as TensorFlow does."""
    if padding == "tf_same":
        return SameConv2d(in_channels, out_channels, kernel_size, **options)
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, **options)
