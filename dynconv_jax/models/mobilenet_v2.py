"""MobileNetV2, with static or dynamic convolutions."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float

from dynconv_jax.functional.activations import relu6
from dynconv_jax.functional.checks import check_choice, check_positive, check_rate
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.layers.given_attention import RoutedSequential, route
from dynconv_jax.models.convolutions import (
    Convolutions,
    Dynamic,
    check_dynamic_has_conv,
)
from dynconv_jax.models.drop_path import DropPath
from dynconv_jax.models.grad_checkpointing import Checkpointing
from dynconv_jax.models.heads import HEADS, dynamic_head
from dynconv_jax.models.images import check_images, global_average_pool
from dynconv_jax.models.layer_groups import LayerGroups
from dynconv_jax.models.options import check_options

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
    activation: Callable[[jax.Array], jax.Array] | None,
    in_features: int,
    out_features: int,
    *place: int,
    **options: Any,
) -> RoutedSequential:
    """Returns convolution → batch norm → activation, if there is one.

    The other arguments are the convolution's.
    """
    layers: list[Any] = [
        make(in_features, out_features, *place, **options),
        make.norm(out_features),
    ]
    return RoutedSequential(*layers, *([] if activation is None else [activation]))


class InvertedResidual(nnx.Module):
    """Expand by a 1×1 convolution, 3×3 depthwise, project by a 1×1 convolution.

    Attributes:
        conv: The layers; without the first where there is nothing to expand.
        routing_fn: Answers the attention for those that need one, or None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int,
        expansion: int,
        *,
        stage: int,
        drop_path_rate: float,
        is_flat: bool = False,
        make: Convolutions,
    ):
        """Builds the block.

        Args:
            in_features: The number of input channels.
            out_features: The number of output channels.
            strides: The step of the depthwise convolution.
            expansion: How many times wider the depthwise convolution is.
            stage: The stage of the network, from 1.
            drop_path_rate: The share of samples whose branch is dropped in training.
            is_flat: Whether all layers are in one sequence, without sequences of a
                convolution, its norm and its activation in it.
            make: Builds the layers.
        """
        hidden = in_features * expansion
        layers: list[Any] = []
        if expansion != 1:
            layers.append(
                conv_norm_activation(make, relu6, in_features, hidden, 1, stage=stage)
            )
        layers.append(
            conv_norm_activation(
                make, relu6, hidden, hidden, 3, strides, groups=hidden, stage=stage
            )
        )
        layers.append(make(hidden, out_features, 1, stage=stage))
        layers.append(make.norm(out_features))
        if is_flat:
            layers = [
                part
                for layer in layers
                for part in (
                    layer.layers if isinstance(layer, RoutedSequential) else (layer,)
                )
            ]
        self.conv = RoutedSequential(*layers)
        self.has_shortcut = strides == 1 and in_features == out_features
        self.drop_path = DropPath(drop_path_rate, make.shared["rngs"])
        self.routing_fn = make.router(in_features, self.conv)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the block to (B, H, W, in_features)."""
        outputs = self.conv(inputs, route(self.routing_fn, inputs))
        return inputs + self.drop_path(outputs) if self.has_shortcut else outputs


class MobileNetV2Options(TypedDict, total=False):
    """The options of `MobileNetV2`, for builders of published networks."""

    stages: Sequence[tuple[int, int, int, int]]
    conv: Callable[..., Any] | None
    dynamic: Dynamic
    width_mult: float
    in_features: int
    head: Literal["linear", "dynamic"]
    layout: Layout
    dropout: float
    drop_path_rate: float
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: Required[nnx.Rngs]


class MobileNetV2(Checkpointing):
    """MobileNetV2: stem, seven stages of inverted residuals, a 1×1 convolution, a head.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
    table 2. The parameters are named and drawn as torchvision's.

    Attributes:
        features: The stem, the blocks, and the last convolution.
        classifier: Dropout and the head. With `layout="flat"` the last convolution is
            `conv`.

    Example:
        >>> def logits(images):
        ...     return MobileNetV2(10, width_mult=0.25, rngs=nnx.Rngs(0))(images)
        >>> jax.eval_shape(logits, jnp.ones((2, 40, 33, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        stages: Sequence[tuple[int, int, int, int]] = STAGES,
        conv: Callable[..., Any] | None = None,
        dynamic: Dynamic = "paper",
        width_mult: float = 1.0,
        in_features: int = 3,
        head: Literal["linear", "dynamic"] = "linear",
        layout: Layout = "torchvision",
        dropout: float = 0.2,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            num_classes: The number of logits.
            stages: Of each stage the expansion, the output channels, the number of
                blocks, and the stride of the first.
            conv: Builds the dynamic convolutions, with the signature of `nnx.Conv`,
                such as `DynamicConv` or `functools.partial(DynamicConv, num_experts=8)`
                (also one without a router, that takes the attention of its block);
                None makes all static.
            dynamic: Which convolutions are dynamic: `"paper"` (all but the stem),
                `"all"`, `"pointwise"` (the 1×1 convolutions of the blocks), an int n,
                the blocks of the last n stages, or `("pointwise", n)`.
            width_mult: Multiplies all widths; they are rounded to multiples of 8, and
                the last convolution is never narrower than at 1.
            in_features: The number of channels of the images.
            head: `"linear"`, or `"dynamic"` for a `DynamicClassifier`.
            layout: How parameters are named: as `"torchvision"`'s, or `"flat"`, as in
                Li et al.'s checkpoints of decomposition: the layers of a block are all
                in one row, and the last convolution is `conv`, beside `features`.
            dropout: The rate of the dropout before the head. The keys come from the
                stream `dropout` of `rngs`, as those of the next.
            drop_path_rate: Of n blocks, counted from 0, block i is skipped in training
                by a share of i / n of this; one without a shortcut never is.
            dtype: The dtype of the computation; None infers it.
            param_dtype: The dtype of the parameters.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range.
        """
        self.in_features = positive_int("in_features", in_features)
        self.num_classes = positive_int("num_classes", num_classes)
        check_positive("width_mult", width_mult)
        check_choice("head", head, HEADS)
        check_choice("layout", layout, LAYOUTS)
        check_rate("dropout", dropout)
        check_rate("drop_path_rate", drop_path_rate)
        make = Convolutions(
            conv,
            dynamic,
            stages=len(stages),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

        total = sum(depth for _, _, depth, _ in stages)
        width = make_divisible(32 * width_mult)
        features: list[Any] = [
            conv_norm_activation(make, relu6, in_features, width, 3, 2, role="stem")
        ]
        for stage, (expansion, channels, depth, first) in enumerate(stages, start=1):
            channels = make_divisible(channels * width_mult)
            for index in range(depth):
                strides = first if index == 0 else 1
                features.append(
                    InvertedResidual(
                        width,
                        channels,
                        strides,
                        expansion,
                        stage=stage,
                        drop_path_rate=drop_path_rate * (len(features) - 1) / total,
                        is_flat=layout == "flat",
                        make=make,
                    )
                )
                width = channels
        last = make_divisible(1280 * max(1.0, width_mult))
        conv_last = conv_norm_activation(make, relu6, width, last, 1, role="head")
        self.layout = layout
        if layout == "flat":
            self.conv = conv_last
        else:
            features.append(conv_last)
        self.features = nnx.Sequential(*features)
        self.stem_routing_fn = make.router(in_features, features[0])
        self.head_routing_fn = make.router(width, conv_last)
        drawn: dict[str, Any] = dict(
            kernel_init=nnx.initializers.normal(0.01),
            bias_init=nnx.initializers.zeros_init(),
            **make.shared,
        )
        if head == "dynamic":
            self.classifier = dynamic_head(last, num_classes, dropout, **drawn)
        else:
            # Without dropout there is no random state to carry through every jit.
            drop = nnx.Dropout(dropout, rngs=rngs if dropout else None)
            linear = nnx.Linear(last, num_classes, **drawn)
            self.classifier = nnx.Sequential(drop, linear)

    def __call__(
        self, inputs: Float[jax.Array, "batch height width in_features"]
    ) -> Float[jax.Array, "batch classes"]:
        """Classifies images.

        Args:
            inputs: The images.

        Returns:
            The logits.

        Raises:
            ValueError: If the inputs do not fit the network.
        """
        check_images(inputs, self.in_features)
        stem, *blocks = self.features.layers
        head = self.conv if self.layout == "flat" else blocks.pop()
        x = stem(inputs, route(self.stem_routing_fn, inputs))
        for block in blocks:
            x = self._call(block, x)
        x = head(x, route(self.head_routing_fn, x))
        return self.classifier(global_average_pool(x))

    def _layer_groups(self) -> LayerGroups:
        """The stem, each block, the last with the convolution after it; the head."""
        layers = [f"features.{index}" for index in range(len(self.features.layers))]
        if self.layout == "flat":
            layers.append("conv")
        blocks = [(name,) for name in layers[1:-2]]
        end = *layers[-2:], "head_routing_fn"
        return [("features.0", "stem_routing_fn"), *blocks, end, ("classifier",)]


def mobilenet_v2(
    num_classes: int = 1000, **options: Unpack[MobileNetV2Options]
) -> MobileNetV2:
    """Returns MobileNetV2; the options are those of `MobileNetV2`.

    Example:
        >>> from dynconv_jax import DynamicConv
        >>> net = nnx.eval_shape(
        ...     lambda: mobilenet_v2(10, conv=DynamicConv, rngs=nnx.Rngs(0))
        ... )
        >>> net.features.layers[18].layers[0].kernel.shape
        (4, 1, 1, 320, 1280)
    """
    check_options(options, MobileNetV2)
    check_dynamic_has_conv(options, stages=len(options.get("stages", STAGES)))
    return MobileNetV2(num_classes, **options)
