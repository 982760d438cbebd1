"""DyMN: MobileNetV3 for sounds, whose blocks are steered by a context."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float

from dynconv_jax.functional.activations import hard_swish, relu
from dynconv_jax.functional.checks import check_choice, check_positive, check_rate
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.layers.context_conv import ContextConv
from dynconv_jax.layers.context_generator import ContextGenerator
from dynconv_jax.layers.coordinate_attention import CoordinateGate
from dynconv_jax.layers.dynamic_relu import DynamicReLU
from dynconv_jax.layers.given_attention import apply, route
from dynconv_jax.models.convolutions import Convolutions
from dynconv_jax.models.grad_checkpointing import Checkpointing
from dynconv_jax.models.images import check_images, global_average_pool
from dynconv_jax.models.layer_groups import LayerGroups
from dynconv_jax.models.mobilenet_v2 import conv_norm_activation, make_divisible
from dynconv_jax.models.mobilenet_v3 import (
    LARGE,
    NORM_OPTIONS,
    BlockSpec,
    InvertedResidual,
    block_specs,
)
from dynconv_jax.models.options import check_options

# What a context has features for: a share of the expanded channels, within bounds that
# are of width 1.
CONTEXT_SHARE = 4
CONTEXT_BOUNDS = 32, 128

WIDTHS = {"dymn04": 0.4, "dymn10": 1.0, "dymn20": 2.0}


class DynamicBlock(nnx.Module):
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
        in_features: int,
        spec: BlockSpec,
        *,
        context_features: int,
        stage: int,
        make: Convolutions,
    ):
        """Builds the block.

        Args:
            in_features: The number of input channels.
            spec: The block, at the width of the network.
            context_features: The number of features of the context.
            stage: The number of the block, from 1.
            make: Builds the layers.
        """
        hidden = spec.expanded_features
        steered: dict[str, Any] = dict(stage=stage, context_features=context_features)
        is_widened = hidden != in_features
        self.exp_conv = make(in_features, hidden, 1, **steered) if is_widened else None
        self.exp_norm = make.norm(hidden) if is_widened else None
        self.exp_act = hard_swish if spec.is_hard_swish else relu
        self.depth_conv = make(
            hidden, hidden, spec.kernel_size, spec.strides, groups=hidden, **steered
        )
        self.depth_norm = make.norm(hidden)
        self.depth_act = DynamicReLU(
            hidden, context_features=context_features, **make.shared
        )
        self.gate = CoordinateGate()
        self.proj_conv = make(hidden, spec.features, 1, **steered)
        self.proj_norm = make.norm(spec.features)
        self.context_gen = ContextGenerator(
            in_features, context_features, hidden, strides=spec.strides, **make.shared
        )
        self.has_shortcut = spec.strides == 1 and in_features == spec.features
        self.routing_fn = make.router(
            in_features, self.exp_conv, self.depth_conv, self.proj_conv
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the block to (B, F, T, in_features)."""
        vector, rows, columns = self.context_gen(inputs)
        given = route(self.routing_fn, inputs), vector
        x = inputs
        if self.exp_conv is not None and self.exp_norm is not None:
            x = self.exp_act(self.exp_norm(apply(self.exp_conv, x, *given)))
        x = self.depth_norm(apply(self.depth_conv, x, *given))
        x = self.gate(self.depth_act(x, vector), rows, columns)
        x = self.proj_norm(apply(self.proj_conv, x, *given))
        return inputs + x if self.has_shortcut else x


class DyMNOptions(TypedDict, total=False):
    """The options of `DyMN`, for builders of published networks."""

    blocks: Sequence[BlockSpec | tuple[Any, ...]]
    conv: Callable[..., Any] | None
    dynamic: str | int
    context_in: str
    width_mult: float
    in_features: int
    dropout: float
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: Required[nnx.Rngs]


class DyMN(Checkpointing):
    """DyMN: a stem, fifteen blocks of MobileNetV3 made dynamic, a head of two layers.

    Schmid et al., "Dynamic Convolutional Neural Networks as Efficient Pre-trained Audio
    Models", TASLP 2024. Inputs are log-mel spectrograms (B, mel, time, 1), of any
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
        >>> def logits(sounds):
        ...     return DyMN(10, blocks=LARGE[:2], rngs=nnx.Rngs(0))(sounds)
        >>> jax.eval_shape(logits, jnp.ones((2, 40, 33, 1))).shape
        (2, 10)
    """

    def __init__(
        self,
        num_classes: int = 527,
        *,
        blocks: Sequence[BlockSpec | tuple[Any, ...]] = LARGE,
        conv: Callable[..., Any] | None = ContextConv,
        dynamic: str | int = "paper",
        context_in: str = "all",
        width_mult: float = 1.0,
        in_features: int = 1,
        dropout: float = 0.2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            num_classes: The number of logits.
            blocks: What is between the stem and the last convolution, `BlockSpec`s or
                tuples of the same entries; at least one. By default those of
                MobileNetV3-Large, whose squeeze-and-excitation none has here.
            conv: Builds the dynamic convolutions, with the signature of `nnx.Conv`:
                `ContextConv`, or `functools.partial(ContextConv, num_experts=8)`, which
                the context of a block steers, or any other; None makes all static.
            dynamic: Which convolutions of the blocks are dynamic: `"paper"` or `"all"`,
                all of them, `"pointwise"`, the 1×1 ones, or an int n, those of the last
                n blocks. The stem and the last convolution are static.
            context_in: Which blocks look at their input and are dynamic: `"all"`, or
                `"squeeze"`, those alone that have squeeze-and-excitation in
                MobileNetV3, as the networks that the authors call `replace_se`. The
                others are its inverted residuals.
            width_mult: Multiplies all widths; they are rounded to multiples of 8.
            in_features: The number of channels of the inputs.
            dropout: The rate of the dropout before the last layer. The keys come from
                the stream `dropout` of `rngs`.
            dtype: The dtype of the computation; None infers it.
            param_dtype: The dtype of the parameters.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range, or there are no blocks.
        """
        self.in_features = positive_int("in_features", in_features)
        self.num_classes = positive_int("num_classes", num_classes)
        check_positive("width_mult", width_mult)
        check_rate("dropout", dropout)
        check_choice("context_in", context_in, ("all", "squeeze"))
        specs = [spec.at_width(width_mult) for spec in block_specs(blocks)]
        options: dict[str, Any] = dict(
            stages=len(specs),
            norm_options=NORM_OPTIONS,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        make = Convolutions(conv, dynamic, **options)
        static = Convolutions(None, "paper", **options)

        width = make_divisible(16 * width_mult)
        self.in_c = conv_norm_activation(
            static, hard_swish, in_features, width, 3, 2, role="stem"
        )
        layers = []
        for stage, spec in enumerate(specs, start=1):
            if context_in == "all" or spec.has_squeeze:
                context_features = _context_size(spec.expanded_features, width_mult)
                block = DynamicBlock(
                    width,
                    spec,
                    context_features=context_features,
                    stage=stage,
                    make=make,
                )
            else:
                block = InvertedResidual(
                    width, spec, stage=stage, drop_path_rate=0.0, make=static
                )
            layers.append(block)
            width = spec.features
        self.layers = nnx.List(layers)
        last, hidden = 6 * width, make_divisible(1280 * width_mult)
        self.out_c = conv_norm_activation(static, hard_swish, width, last, 1)
        init = nnx.initializers.normal(0.01)
        # Where PyTorch's has two steps, pooling has one: its place is kept.
        self.classifier = nnx.Sequential(
            global_average_pool,
            _keep,
            nnx.Linear(last, hidden, kernel_init=init, **make.shared),
            hard_swish,
            nnx.Dropout(dropout, rngs=rngs if dropout else None),
            nnx.Linear(hidden, num_classes, kernel_init=init, **make.shared),
        )
        make.check_used()

    def __call__(
        self, inputs: Float[jax.Array, "batch mel time in_features"]
    ) -> Float[jax.Array, "batch classes"]:
        """Tags sounds.

        Args:
            inputs: The log-mel spectrograms.

        Returns:
            The logits, one for each class; sounds may have several.

        Raises:
            ValueError: If the inputs do not fit the network.
        """
        check_images(inputs, self.in_features)
        x = self.in_c(inputs)
        for block in self.layers:
            x = self._call(block, x)
        return self.classifier(self.out_c(x))

    def _layer_groups(self) -> LayerGroups:
        """The stem, each block, the last with what is between it and the head."""
        *blocks, last = [f"layers.{index}" for index in range(len(self.layers))]
        groups = ((block,) for block in blocks)
        end = last, "out_c", "classifier.2"
        return [("in_c",), *groups, end, ("classifier.5",)]


def _keep(x: jax.Array) -> jax.Array:
    return x


def _context_size(expanded_features: int, width_mult: float) -> int:
    """Returns how many features the context of a block has."""
    low, high = (make_divisible(bound * width_mult) for bound in CONTEXT_BOUNDS)
    return min(max(make_divisible(expanded_features // CONTEXT_SHARE), low), high)


def _variant(name: str, num_classes: int, options: Mapping[str, Any]) -> DyMN:
    """Builds a published network."""
    check_options(options, DyMN)
    return DyMN(num_classes, **{"width_mult": WIDTHS[name], **options})


def dymn04(num_classes: int = 527, **options: Unpack[DyMNOptions]) -> DyMN:
    """Returns DyMN of 0.4 times the width; 2 million parameters.

    Args:
        num_classes: The number of logits.
        **options: The options of `DyMN`; `rngs` among them.

    Example:
        >>> net = nnx.eval_shape(lambda: dymn04(10, rngs=nnx.Rngs(0)))
        >>> net.layers[14].proj_conv.kernel.shape
        (4, 1, 1, 384, 64)
    """
    return _variant("dymn04", num_classes, options)


def dymn10(num_classes: int = 527, **options: Unpack[DyMNOptions]) -> DyMN:
    """Returns DyMN; 10.5 million parameters. See `dymn04`."""
    return _variant("dymn10", num_classes, options)


def dymn20(num_classes: int = 527, **options: Unpack[DyMNOptions]) -> DyMN:
    """Returns DyMN of twice the width; 40 million parameters. See `dymn04`."""
    return _variant("dymn20", num_classes, options)
