"""Which convolutions of a network are dynamic, and where their attention comes from.

Networks build their layers with `Convolutions`, which knows the choice of the user and,
for each convolution, its role. Some members of the family take their attention from
outside (`needs_attention`); all such layers of a block share the block's `routing_fn`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dynconv_jax import routing
from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.checks import check_dtypes
from dynconv_jax.functional.static import few_channel_conv
from dynconv_jax.initializers import (
    kaiming_fan_out,
    torch_bias_init,
    torch_kernel_init,
)
from dynconv_jax.layers.batch_norm import BatchNorm
from dynconv_jax.layers.given_attention import needs_attention, needs_context

# U(±1/√(fan_in + fan_out)), as the routers of CondConv's networks are drawn.
router_kernel_init = nnx.initializers.variance_scaling(1 / 6, "fan_avg", "uniform")


def fan_out_of_a_group(groups: int) -> nnx.Initializer:
    """Returns N(0, 2 / fan_out) for a fan-out of one of so many groups of channels."""
    return nnx.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")


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
            "as `conv=DynamicConv`, or `conv='dynamic'` of `create_model`"
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
        >>> from dynconv_jax.layers import DynamicConv
        >>> make = Convolutions(DynamicConv, "paper", stages=4, rngs=nnx.Rngs(0))
        >>> type(make(3, 8, 7, 2, role="stem")).__name__
        'Conv'
        >>> type(make(8, 8, 3, stage=1)).__name__
        'DynamicConv'
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
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Keeps the choice.

        Args:
            conv: Builds a dynamic convolution, with the signature of `nnx.Conv`; None
                makes all static.
            dynamic: Which convolutions `conv` builds.
            stages: How many stages the network has.
            padding: Of convolutions that do not say theirs, as in `nnx.Conv`; None pads
                by kernel_size // 2 on every side.
            norm_options: Of every batch norm.
            init: How kernels are drawn that are static: from N(0, 2 / fan_out), where
                the fan-out is that of all groups or, for `"efficientnet"`, of one. The
                latter holds for CondConv too, expert by expert, and draws its routers
                from U(±1/√(fan_in + fan_out)). With `"convnext"` from N(0, 0.02²).
                Biases are 0. With `"pytorch"` both are as PyTorch draws them.
            dtype: The dtype of the computation of every layer; None infers it.
            param_dtype: The dtype of every parameter.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If `conv` is not callable.
            ValueError: If `dynamic` is no choice.
        """
        if conv is not None and not callable(conv):
            raise TypeError(
                f"`conv` (={conv!r}) must be a callable with the signature of "
                "`nnx.Conv`, or None; names of convolutions are for `create_model`"
            )
        check_dynamic(dynamic, stages)
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
        self.conv = conv
        self.dynamic = dynamic
        self.stages = stages
        self.shared: dict[str, Any] = dict(
            dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.padding = padding
        self.norm_options = norm_options
        self.init = init
        self.num_dynamic = 0

    def __call__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        strides: int = 1,
        *,
        padding: Any = None,
        groups: int = 1,
        role: Role = "body",
        stage: int = 0,
        use_bias: bool = False,
        in_basic_block: bool = False,
        static_bias: bool = False,
        context_features: int | None = None,
    ) -> Any:
        """Builds a square convolution.

        Args:
            in_features: C, the number of input channels.
            out_features: O, the number of output channels.
            kernel_size: The side of the kernel.
            strides: The step between windows.
            padding: As in `nnx.Conv`; None takes that of the network.
            groups: The number of channel groups.
            role: What the convolution is to the network.
            stage: Which stage it is in, from 1.
            use_bias: Whether it has a bias.
            in_basic_block: Whether it is one of the two of a basic block, for which a
                dynamic convolution may have `basic_block_options`.
            static_bias: Whether it has a bias if it is static; a dynamic one has none.
            context_features: The size of what steers the block, of which a dynamic
                convolution that needs a context is told.
        """
        if padding is None:
            padding = kernel_size // 2 if self.padding is None else self.padding
        options: dict[str, Any] = dict(
            padding=padding,
            feature_group_count=groups,
            use_bias=use_bias,
            **self.shared,
        )
        place = in_features, out_features, (kernel_size, kernel_size), strides
        is_efficient = self.init == "efficientnet"
        kernel_init = fan_out_of_a_group(groups) if is_efficient else kaiming_fan_out
        if self.init == "convnext":
            kernel_init = nnx.initializers.normal(0.02)
        if self.init == "pytorch":
            kernel_init = torch_kernel_init
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
                options["context_features"] = context_features
            if is_efficient and needs_attention(layer_class):
                options["kernel_init"] = kernel_init
            if in_basic_block:
                own = getattr(layer_class, "basic_block_options", {})
                chosen = getattr(self.conv, "keywords", {})
                options.update((k, v) for k, v in own.items() if k not in chosen)
            return self.conv(*place, **options)
        options["use_bias"] = use_bias or static_bias
        if role == "stem":
            options["conv_general_dilated"] = few_channel_conv
        if self.init == "pytorch":
            fan_in = kernel_size**2 * in_features // groups
            options["bias_init"] = torch_bias_init(fan_in)
        return nnx.Conv(*place, kernel_init=kernel_init, **options)

    def norm(self, features: int, **options) -> BatchNorm:
        """Builds a batch norm; the options are those of `BatchNorm`."""
        return BatchNorm(features, **{**self.norm_options, **options}, **self.shared)

    def router(self, in_features: int, *layers: Any) -> nnx.Module | None:
        """Builds the `routing_fn` that those of `layers` share which need one, if any.

        Args:
            in_features: The number of channels of what the router is to see.
            *layers: Convolutions, sequences of them, or anything else.

        Raises:
            ValueError: If they differ in their number of experts.
        """
        parts: list[Any] = [
            part
            for layer in layers
            if isinstance(layer, nnx.Module)
            for _, part in nnx.iter_modules(layer)
            if needs_attention(part)
        ]
        counts = {part.num_experts for part in parts}
        if len(counts) > 1:
            raise ValueError(
                f"the convolutions of a block have {sorted(counts)} experts; they "
                "share one attention, so `num_experts` must be the same for all"
            )
        options: dict[str, Any] = dict(self.shared)
        if self.init == "efficientnet":
            options.update(
                kernel_init=router_kernel_init, bias_init=nnx.initializers.zeros
            )
        for num_experts in counts:
            return routing.SigmoidRouter(in_features, num_experts, **options)
        return None

    def check_used(self) -> None:
        """Raises a ValueError if there was a `conv` and no place for it."""
        if self.conv is not None and not self.num_dynamic:
            raise ValueError(
                f"`dynamic` (={self.dynamic!r}) makes no convolution of this network "
                "dynamic; choose another, or leave `conv` out"
            )
