"""MobileNetV3, with static or dynamic convolutions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float

from dynconv_jax.functional.activations import hard_sigmoid, hard_swish, relu
from dynconv_jax.functional.checks import check_positive, check_rate
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.layers.given_attention import RoutedSequential, route
from dynconv_jax.models.convolutions import Convolutions, check_dynamic_has_conv
from dynconv_jax.models.drop_path import DropPath
from dynconv_jax.models.grad_checkpointing import Checkpointing
from dynconv_jax.models.images import check_images, global_average_pool
from dynconv_jax.models.layer_groups import LayerGroups
from dynconv_jax.models.mobilenet_v2 import conv_norm_activation, make_divisible
from dynconv_jax.models.options import check_options
from dynconv_jax.models.squeeze_excite import excite, squeeze_convs

# The expanded channels of a block, over the units of its squeeze-and-excitation.
SQUEEZE = 4

NORM_OPTIONS: dict[str, Any] = {"epsilon": 1e-3, "momentum": 0.99}


class BlockSpec(NamedTuple):
    """One block, at width 1.

    Attributes:
        kernel_size: The side of the depthwise kernel.
        expanded_features: The number of channels of the depthwise convolution.
        features: The number of output channels.
        strides: The step of the depthwise convolution.
        is_hard_swish: Whether the activations are hard swishes, and not ReLUs.
        has_squeeze: Whether there is squeeze-and-excitation.
    """

    kernel_size: int
    expanded_features: int
    features: int
    strides: int
    is_hard_swish: bool
    has_squeeze: bool = False

    def at_width(self, width_mult: float) -> "BlockSpec":
        """Returns the block with its widths multiplied, in multiples of 8."""
        return self._replace(
            expanded_features=make_divisible(self.expanded_features * width_mult),
            features=make_divisible(self.features * width_mult),
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


class SqueezeExcitation(nnx.Module):
    """Scales every channel by a hard sigmoid that sees the mean of all channels."""

    def __init__(self, features: int, make: Convolutions):
        """Builds `fc1` and `fc2`, 1×1 convolutions."""
        hidden = make_divisible(features // SQUEEZE)
        self.fc1, self.fc2 = squeeze_convs(features, hidden, make)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the gates to (B, H, W, features)."""
        return excite(inputs, self.fc1, self.fc2, relu, hard_sigmoid)


class InvertedResidual(nnx.Module):
    """Expand, depthwise, squeeze-and-excitation, project; a shortcut.

    Attributes:
        block: The layers; without the first where there is nothing to expand.
        routing_fn: Answers the attention for those that need one, or None.
    """

    def __init__(
        self,
        in_features: int,
        spec: BlockSpec,
        *,
        stage: int,
        drop_path_rate: float,
        make: Convolutions,
    ):
        """Builds the block.

        Args:
            in_features: The number of input channels.
            spec: The block, at the width of the network.
            stage: The number of the block, from 1.
            drop_path_rate: The share of samples whose branch is dropped in training.
            make: Builds the layers.
        """
        activation = hard_swish if spec.is_hard_swish else relu
        hidden = spec.expanded_features
        layers: list[Any] = []
        if hidden != in_features:
            layers.append(
                conv_norm_activation(
                    make, activation, in_features, hidden, 1, stage=stage
                )
            )
        place = hidden, hidden, spec.kernel_size, spec.strides
        layers.append(
            conv_norm_activation(make, activation, *place, groups=hidden, stage=stage)
        )
        if spec.has_squeeze:
            layers.append(SqueezeExcitation(hidden, make))
        layers.append(
            conv_norm_activation(make, None, hidden, spec.features, 1, stage=stage)
        )
        self.block = RoutedSequential(*layers)
        self.has_shortcut = spec.strides == 1 and in_features == spec.features
        self.drop_path = DropPath(drop_path_rate, make.shared["rngs"])
        self.routing_fn = make.router(in_features, self.block)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the block to (B, H, W, in_features)."""
        outputs = self.block(inputs, route(self.routing_fn, inputs))
        return inputs + self.drop_path(outputs) if self.has_shortcut else outputs


class MobileNetV3Options(TypedDict, total=False):
    """The options of `MobileNetV3`, for builders of published networks."""

    blocks: Sequence[BlockSpec | tuple[Any, ...]]
    head_features: int
    conv: Callable[..., Any] | None
    dynamic: str | int
    width_mult: float
    in_features: int
    dropout: float
    drop_path_rate: float
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: Required[nnx.Rngs]


class MobileNetV3(Checkpointing):
    """MobileNetV3: a stem, inverted residuals, a 1×1 convolution, a head of two layers.

    Howard et al., "Searching for MobileNetV3", ICCV 2019. The parameters are named and
    drawn as torchvision's.

    Attributes:
        features: The stem, the blocks, and the last convolution.
        classifier: A linear layer, hard swish, dropout, the linear head.

    Example:
        >>> def logits(images):
        ...     return MobileNetV3(10, blocks=SMALL[:2], rngs=nnx.Rngs(0))(images)
        >>> jax.eval_shape(logits, jnp.ones((2, 40, 33, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        blocks: Sequence[BlockSpec | tuple[Any, ...]] = LARGE,
        head_features: int = 1280,
        conv: Callable[..., Any] | None = None,
        dynamic: str | int = "paper",
        width_mult: float = 1.0,
        in_features: int = 3,
        dropout: float = 0.2,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            num_classes: The number of logits.
            blocks: What is between the stem and the last convolution, `BlockSpec`s or
                tuples of the same entries; at least one.
            head_features: The number of features before the linear head.
            conv: Builds the dynamic convolutions, with the signature of `nnx.Conv`,
                such as `DynamicConv` or `functools.partial(DynamicConv, num_experts=8)`
                (also one without a router, that takes the attention of its block);
                None makes all static.
            dynamic: Which convolutions are dynamic: `"paper"` (all but the stem),
                `"all"`, `"pointwise"` (the 1×1 convolutions of the blocks), or an int
                n, the last n blocks. Squeeze-and-excitation is static.
            width_mult: Multiplies all widths; they are rounded to multiples of 8.
            in_features: The number of channels of the images.
            dropout: The rate of the dropout before the head. The keys come from the
                stream `dropout` of `rngs`, as those of the next.
            drop_path_rate: Of n blocks, counted from 0, block i is skipped in training
                by a share of i / n of this; one without a shortcut never is.
            dtype: The dtype of the computation; None infers it.
            param_dtype: The dtype of the parameters.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range, or there are no blocks.
        """
        self.in_features = positive_int("in_features", in_features)
        self.num_classes = positive_int("num_classes", num_classes)
        positive_int("head_features", head_features)
        check_positive("width_mult", width_mult)
        check_rate("dropout", dropout)
        check_rate("drop_path_rate", drop_path_rate)
        specs = [spec.at_width(width_mult) for spec in block_specs(blocks)]
        make = Convolutions(
            conv,
            dynamic,
            stages=len(specs),
            norm_options=NORM_OPTIONS,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

        width = make_divisible(16 * width_mult)
        features: list[Any] = [
            conv_norm_activation(
                make, hard_swish, in_features, width, 3, 2, role="stem"
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
            width = spec.features
        last = 6 * width
        features.append(
            conv_norm_activation(make, hard_swish, width, last, 1, role="head")
        )
        self.features = nnx.Sequential(*features)
        self.stem_routing_fn = make.router(in_features, features[0])
        self.head_routing_fn = make.router(width, features[-1])
        hidden, init = make_divisible(head_features * width_mult), _linear_init
        self.classifier = nnx.Sequential(
            nnx.Linear(last, hidden, kernel_init=init, **make.shared),
            hard_swish,
            # Without dropout there is no random state to carry through every jit.
            nnx.Dropout(dropout, rngs=rngs if dropout else None),
            nnx.Linear(hidden, num_classes, kernel_init=init, **make.shared),
        )

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
        stem, *blocks, head = self.features.layers
        x = stem(inputs, route(self.stem_routing_fn, inputs))
        for block in blocks:
            x = self._call(block, x)
        x = head(x, route(self.head_routing_fn, x))
        return self.classifier(global_average_pool(x))

    def _layer_groups(self) -> LayerGroups:
        """The stem, each block, the last with what is between it and the head."""
        last = len(self.features.layers) - 1
        blocks = [(f"features.{index}",) for index in range(1, last - 1)]
        end = f"features.{last - 1}", f"features.{last}", "head_routing_fn"
        return [
            ("features.0", "stem_routing_fn"),
            *blocks,
            (*end, "classifier.0"),
            ("classifier.3",),
        ]


_linear_init = nnx.initializers.normal(0.01)


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
        >>> from dynconv_jax import DynamicConv
        >>> net = nnx.eval_shape(
        ...     lambda: mobilenet_v3_large(10, conv=DynamicConv, rngs=nnx.Rngs(0))
        ... )
        >>> net.features.layers[16].layers[0].kernel.shape
        (4, 1, 1, 160, 960)
    """
    return _variant(num_classes, options, blocks=LARGE, head_features=1280)


def mobilenet_v3_small(
    num_classes: int = 1000, **options: Unpack[MobileNetV3Options]
) -> MobileNetV3:
    """Returns MobileNetV3-Small; see `mobilenet_v3_large`."""
    return _variant(num_classes, options, blocks=SMALL, head_features=1024)
