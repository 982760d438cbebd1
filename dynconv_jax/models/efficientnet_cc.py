"""EfficientNet-CondConv: EfficientNet whose last stages are dynamic."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float

from dynconv_jax.functional.checks import check_rate
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.layers.cond_conv import CondConv
from dynconv_jax.layers.given_attention import apply, route
from dynconv_jax.models.convolutions import Convolutions, Dynamic
from dynconv_jax.models.drop_path import DropPath
from dynconv_jax.models.grad_checkpointing import Blocks
from dynconv_jax.models.images import check_images, global_average_pool
from dynconv_jax.models.layer_groups import LayerGroups
from dynconv_jax.models.options import check_options
from dynconv_jax.models.squeeze_excite import excite, squeeze_convs

# The input channels of a block, over the units of its squeeze-and-excitation.
SQUEEZE = 4


class Stage(NamedTuple):
    """One stage: blocks that differ in the stride of the first only.

    Attributes:
        kernel_size: The side of the depthwise kernels.
        strides: The step of the first block.
        expansion: How many times wider the depthwise convolution is; None for a block
            that has no convolution before it.
        features: The number of output channels.
        depth: The number of blocks.
    """

    kernel_size: int
    strides: int
    expansion: int | None
    features: int
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

_linear_init = nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


class SqueezeExcite(nnx.Module):
    """Scales every channel by a sigmoid that sees the mean of all channels."""

    def __init__(self, features: int, hidden_features: int, make: Convolutions):
        """Builds `conv_reduce` and `conv_expand`, 1×1 convolutions."""
        convs = squeeze_convs(features, hidden_features, make)
        self.conv_reduce, self.conv_expand = convs

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the gates to (B, H, W, features)."""
        convs = self.conv_reduce, self.conv_expand
        return excite(inputs, *convs, jax.nn.silu, jax.nn.sigmoid)


class SeparableBlock(nnx.Module):
    """Depthwise convolution, squeeze-and-excitation, 1×1 convolution; a shortcut."""

    def __init__(
        self,
        in_features: int,
        spec: Stage,
        strides: int,
        *,
        stage: int,
        drop_path_rate: float,
        make: Convolutions,
    ):
        """Builds the block.

        Args:
            in_features: The number of input channels.
            spec: The stage that it is in.
            strides: The step of the depthwise convolution.
            stage: The number of the stage, from 1.
            drop_path_rate: The share of samples whose branch is dropped in training.
            make: Builds the layers.
        """
        self.conv_dw = make(
            in_features,
            in_features,
            spec.kernel_size,
            strides,
            groups=in_features,
            stage=stage,
        )
        self.bn1 = make.norm(in_features)
        self.se = SqueezeExcite(in_features, round(in_features / SQUEEZE), make)
        self.conv_pw = make(in_features, spec.features, 1, stage=stage)
        self.bn2 = make.norm(spec.features)
        self.has_shortcut = strides == 1 and in_features == spec.features
        self.drop_path = DropPath(drop_path_rate, make.shared["rngs"])
        self.routing_fn = make.router(in_features, self.conv_dw, self.conv_pw)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the block to (B, H, W, in_features)."""
        attention = route(self.routing_fn, inputs)
        x = jax.nn.silu(self.bn1(apply(self.conv_dw, inputs, attention)))
        x = self.bn2(apply(self.conv_pw, self.se(x), attention))
        return inputs + self.drop_path(x) if self.has_shortcut else x


class InvertedResidual(nnx.Module):
    """A 1×1 convolution that widens, then what `SeparableBlock` has."""

    def __init__(
        self,
        in_features: int,
        spec: Stage,
        strides: int,
        *,
        stage: int,
        drop_path_rate: float,
        make: Convolutions,
    ):
        """Builds the block; the arguments are those of `SeparableBlock`."""
        assert spec.expansion is not None
        hidden = in_features * spec.expansion
        self.conv_pw = make(in_features, hidden, 1, stage=stage)
        self.bn1 = make.norm(hidden)
        self.conv_dw = make(
            hidden, hidden, spec.kernel_size, strides, groups=hidden, stage=stage
        )
        self.bn2 = make.norm(hidden)
        self.se = SqueezeExcite(hidden, round(in_features / SQUEEZE), make)
        self.conv_pwl = make(hidden, spec.features, 1, stage=stage)
        self.bn3 = make.norm(spec.features)
        self.has_shortcut = strides == 1 and in_features == spec.features
        self.drop_path = DropPath(drop_path_rate, make.shared["rngs"])
        self.routing_fn = make.router(
            in_features, self.conv_pw, self.conv_dw, self.conv_pwl
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the block to (B, H, W, in_features)."""
        attention = route(self.routing_fn, inputs)
        x = jax.nn.silu(self.bn1(apply(self.conv_pw, inputs, attention)))
        x = jax.nn.silu(self.bn2(apply(self.conv_dw, x, attention)))
        x = self.bn3(apply(self.conv_pwl, self.se(x), attention))
        return inputs + self.drop_path(x) if self.has_shortcut else x


class EfficientNetOptions(TypedDict, total=False):
    """The options of `EfficientNet`, for builders of published networks."""

    stages: Sequence[Stage | tuple]
    conv: Callable[..., Any] | None
    dynamic: Dynamic
    tensorflow: bool
    in_features: int
    stem_features: int
    head_features: int
    dropout: float
    drop_path_rate: float
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: Required[nnx.Rngs]


class EfficientNet(nnx.Module):
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
        >>> def logits(images):
        ...     return EfficientNet(10, stages=STAGES[:3], rngs=nnx.Rngs(0))(images)
        >>> jax.eval_shape(logits, jnp.ones((2, 40, 33, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        stages: Sequence[Stage | tuple] = STAGES,
        conv: Callable[..., Any] | None = None,
        dynamic: Dynamic = 3,
        tensorflow: bool = False,
        in_features: int = 3,
        stem_features: int = 32,
        head_features: int = 1280,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            num_classes: The number of logits.
            stages: What is between the stem and the head, `Stage`s or tuples of the
                same entries.
            conv: Builds the dynamic convolutions, with the signature of `nnx.Conv`,
                such as `functools.partial(CondConv, num_experts=8)`, whose routers the
                blocks then have, or `DynamicConv`, which routes itself; None makes all
                static.
            dynamic: Which convolutions are dynamic: an int n, those of the last n
                stages, as published; `"paper"` (all but the stem), `"all"` or
                `"pointwise"` (the 1×1 convolutions of the blocks).
            tensorflow: Compute as the weights that were trained in TensorFlow expect:
                padding `"SAME"`, and 1e-3 as the epsilon of batch norms.
            in_features: The number of channels of the images.
            stem_features: The number of output channels of the stem.
            head_features: The number of features before the linear head.
            dropout: The rate of the dropout before the linear head. The keys come from
                the stream `dropout` of `rngs`, as those of the next.
            drop_path_rate: Of n blocks, counted from 0, block i is skipped in training
                by a share of i / n of this; one without a shortcut never is.
            dtype: The dtype of the computation; None infers it.
            param_dtype: The dtype of the parameters.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range, or no convolution is dynamic.
        """
        self.in_features = positive_int("in_features", in_features)
        self.num_classes = positive_int("num_classes", num_classes)
        check_rate("dropout", dropout)
        check_rate("drop_path_rate", drop_path_rate)
        specs = [Stage._make(spec) for spec in stages]
        make = Convolutions(
            conv,
            dynamic,
            stages=len(specs),
            padding="SAME" if tensorflow else None,
            norm_options={"epsilon": 1e-3 if tensorflow else 1e-5},
            init="efficientnet",
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

        width = positive_int("stem_features", stem_features)
        self.conv_stem = make(in_features, width, 3, 2, role="stem")
        self.bn1 = make.norm(width)
        self.stem_routing_fn = make.router(in_features, self.conv_stem)
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
                        spec.strides if index == 0 else 1,
                        stage=stage,
                        drop_path_rate=drop_path_rate * count / total,
                        make=make,
                    )
                )
                width = spec.features
                count += 1
            built.append(Blocks(*blocks))
        self.blocks = nnx.Sequential(*built)
        self.conv_head = make(width, head_features, 1, role="head")
        self.bn2 = make.norm(head_features)
        self.head_routing_fn = make.router(width, self.conv_head)
        self.dropout = nnx.Dropout(dropout, rngs=rngs if dropout else None)
        self.classifier = nnx.Linear(
            head_features, num_classes, kernel_init=_linear_init, **make.shared
        )
        make.check_used()

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
        attention = route(self.stem_routing_fn, inputs)
        x = jax.nn.silu(self.bn1(apply(self.conv_stem, inputs, attention)))
        x = self.blocks(x)
        attention = route(self.head_routing_fn, x)
        x = jax.nn.silu(self.bn2(apply(self.conv_head, x, attention)))
        return self.classifier(self.dropout(global_average_pool(x)))

    def _layer_groups(self) -> LayerGroups:
        """The stem, each block, the last with the convolution after it; the head."""
        *blocks, last = [
            f"blocks.{stage}.{index}"
            for stage, blocks in enumerate(self.blocks.layers)
            for index in range(len(blocks.layers))
        ]
        return [
            ("conv_stem", "bn1", "stem_routing_fn"),
            *((block,) for block in blocks),
            (last, "conv_head", "bn2", "head_routing_fn"),
            ("classifier",),
        ]


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
        "conv": functools.partial(CondConv, num_experts=num_experts),
        "tensorflow": tensorflow,
    }
    return EfficientNet(num_classes, **{**published, **options})


def efficientnet_cc_b0_4e(
    num_classes: int = 1000, **options: Unpack[EfficientNetOptions]
) -> EfficientNet:
    """Returns EfficientNet-B0 with CondConv of 4 experts; 13.3 million parameters.

    Args:
        num_classes: The number of logits.
        **options: The options of `EfficientNet`; `rngs` among them.

    Example:
        >>> net = nnx.eval_shape(lambda: efficientnet_cc_b0_4e(10, rngs=nnx.Rngs(0)))
        >>> net.blocks.layers[4].layers[0].conv_pw.kernel.shape
        (4, 1, 1, 80, 480)
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
