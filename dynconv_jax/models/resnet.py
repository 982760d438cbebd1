"""ResNet, with static or dynamic convolutions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float

from dynconv_jax.functional.checks import check_choice, check_positive, check_rate
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.initializers import torch_linear
from dynconv_jax.layers.given_attention import RoutedSequential, apply, route
from dynconv_jax.models.convolutions import (
    Convolutions,
    Dynamic,
    check_dynamic_has_conv,
)
from dynconv_jax.models.drop_path import DropPath
from dynconv_jax.models.grad_checkpointing import Blocks
from dynconv_jax.models.heads import HEADS, dynamic_head
from dynconv_jax.models.images import check_images, global_average_pool, max_pool
from dynconv_jax.models.layer_groups import LayerGroups
from dynconv_jax.models.options import check_options


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions beside a shortcut, of the networks of 18 and 34 layers."""

    expansion = 1

    def __init__(
        self,
        in_features: int,
        features: int,
        strides: int,
        *,
        stage: int,
        drop_path_rate: float = 0.0,
        make: Convolutions,
    ):
        """Builds the block.

        Args:
            in_features: The number of input channels.
            features: The number of output channels.
            strides: The step of the first convolution and of the shortcut.
            stage: The stage of the network, from 1.
            drop_path_rate: The share of samples whose branch is dropped in training.
            make: Builds the layers.
        """
        place: dict[str, Any] = dict(stage=stage, in_basic_block=True)
        self.conv1 = make(in_features, features, 3, strides, **place)
        self.bn1 = make.norm(features)
        self.conv2 = make(features, features, 3, **place)
        self.bn2 = make.norm(features)
        self.drop_path = DropPath(drop_path_rate, make.shared["rngs"])
        self.downsample = _shortcut(in_features, features, strides, stage, make)
        self.routing_fn = make.router(
            in_features, self.conv1, self.conv2, self.downsample
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the block to (B, H, W, in_features)."""
        attention = route(self.routing_fn, inputs)
        x = jax.nn.relu(self.bn1(apply(self.conv1, inputs, attention)))
        x = self.bn2(apply(self.conv2, x, attention))
        if self.downsample is not None:
            inputs = self.downsample(inputs, attention)
        return jax.nn.relu(self.drop_path(x) + inputs)


class Bottleneck(nnx.Module):
    """Convolutions 1×1, 3×3, 1×1 beside a shortcut, of the networks of 50 and more.

    The stride is on the 3×3 convolution ("V1.5"), as in torchvision, not on the first
    as in the paper.
    """

    expansion = 4

    def __init__(
        self,
        in_features: int,
        features: int,
        strides: int,
        *,
        stage: int,
        drop_path_rate: float = 0.0,
        make: Convolutions,
    ):
        """Builds the block; the arguments are those of `BasicBlock`.

        Args:
            in_features: The number of input channels.
            features: The width of the 3×3 convolution; a quarter of the output's.
            strides: The step of the 3×3 convolution and of the shortcut.
            stage: The stage of the network, from 1.
            drop_path_rate: The share of samples whose branch is dropped in training.
            make: Builds the layers.
        """
        out_features = features * self.expansion
        self.conv1 = make(in_features, features, 1, stage=stage)
        self.bn1 = make.norm(features)
        self.conv2 = make(features, features, 3, strides, stage=stage)
        self.bn2 = make.norm(features)
        self.conv3 = make(features, out_features, 1, stage=stage)
        self.bn3 = make.norm(out_features)
        self.drop_path = DropPath(drop_path_rate, make.shared["rngs"])
        self.downsample = _shortcut(in_features, out_features, strides, stage, make)
        self.routing_fn = make.router(
            in_features, self.conv1, self.conv2, self.conv3, self.downsample
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the block to (B, H, W, in_features)."""
        attention = route(self.routing_fn, inputs)
        x = jax.nn.relu(self.bn1(apply(self.conv1, inputs, attention)))
        x = jax.nn.relu(self.bn2(apply(self.conv2, x, attention)))
        x = self.bn3(apply(self.conv3, x, attention))
        if self.downsample is not None:
            inputs = self.downsample(inputs, attention)
        return jax.nn.relu(self.drop_path(x) + inputs)


def _shortcut(
    in_features: int, out_features: int, strides: int, stage: int, make: Convolutions
) -> RoutedSequential | None:
    """Returns what brings a block's input to its output's shape, where they differ."""
    if strides == 1 and in_features == out_features:
        return None
    conv = make(in_features, out_features, 1, strides, role="downsample", stage=stage)
    return RoutedSequential(conv, make.norm(out_features))


class ResNetOptions(TypedDict, total=False):
    """The options of `ResNet`, for builders of published networks."""

    conv: Callable[..., Any] | None
    dynamic: Dynamic
    in_features: int
    head: Literal["linear", "dynamic"]
    head_std: float | None
    dropout: float
    drop_path_rate: float
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: Required[nnx.Rngs]


class ResNet(nnx.Module):
    """A residual network: stem, four stages of blocks, a pooled linear head.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1. The
    parameters are named and drawn as torchvision's.

    Attributes:
        conv1: The 7×7 convolution of the stem, stride 2; `bn1` follows.
        layer1: The blocks of the first stage; `layer2` to `layer4` follow.
        fc: The linear head, after `dropout`; or `classifier`, a dropout and a
            `DynamicClassifier`.

    Example:
        >>> def logits(images):
        ...     return ResNet(BasicBlock, [1, 1, 1, 1], 10, rngs=nnx.Rngs(0))(images)
        >>> jax.eval_shape(logits, jnp.ones((2, 40, 33, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int = 1000,
        *,
        conv: Callable[..., Any] | None = None,
        dynamic: Dynamic = "paper",
        in_features: int = 3,
        head: Literal["linear", "dynamic"] = "linear",
        head_std: float | None = None,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            block: `BasicBlock` or `Bottleneck`.
            depths: How many blocks each of the four stages has.
            num_classes: The number of logits.
            conv: Builds the dynamic convolutions, with the signature of `nnx.Conv`,
                such as `DynamicConv` or `functools.partial(DynamicConv, num_experts=8)`
                (also one without a router, that takes the attention of its block);
                None makes all static.
            dynamic: Which convolutions are dynamic: `"paper"` (all but the stem and the
                shortcuts), `"all"`, `"pointwise"` (the 1×1 convolutions of the blocks),
                an int n, the blocks of the last n stages, or `("pointwise", n)`.
            in_features: The number of channels of the images.
            head: `"linear"`, or `"dynamic"` for a `DynamicClassifier`.
            head_std: The standard deviation of the initial weights of a linear head,
                whose bias is then 0; None draws both as `torch.nn.Linear`.
            dropout: The rate of the dropout before the head. The keys come from the
                stream `dropout` of `rngs`, as those of the next.
            drop_path_rate: The share of samples that skip the last block in training.
                Block i of n, counted from 0, is skipped by i / (n - 1) of it.
            dtype: The dtype of the computation; None infers it.
            param_dtype: The dtype of the parameters.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range, or no convolution is dynamic.
        """
        if len(depths) != 4:
            raise ValueError(f"`depths` (={depths!r}) must have four entries")
        depths = [positive_int("depths", depth) for depth in depths]
        self.in_features = positive_int("in_features", in_features)
        self.num_classes = positive_int("num_classes", num_classes)
        check_choice("head", head, HEADS)
        if head_std is not None:
            check_positive("head_std", head_std)
        check_rate("dropout", dropout)
        check_rate("drop_path_rate", drop_path_rate)
        make = Convolutions(
            conv, dynamic, stages=4, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

        self.conv1 = make(in_features, 64, 7, 2, role="stem")
        self.bn1 = make.norm(64)
        self.stem_routing_fn = make.router(in_features, self.conv1)
        stages = []
        width, count = 64, 0
        for stage, depth in enumerate(depths, start=1):
            features = 32 * 2**stage
            blocks = []
            for index in range(depth):
                strides = 2 if stage > 1 and index == 0 else 1
                blocks.append(
                    block(
                        width,
                        features,
                        strides,
                        stage=stage,
                        drop_path_rate=drop_path_rate * count / (sum(depths) - 1),
                        make=make,
                    )
                )
                width = features * block.expansion
                count += 1
            stages.append(Blocks(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.head = head
        if head == "dynamic":
            self.classifier = dynamic_head(width, num_classes, dropout, **make.shared)
        else:
            # Without dropout there is no random state to carry through every jit.
            self.dropout = nnx.Dropout(dropout, rngs=rngs if dropout else None)
            drawn: dict[str, Any] = {}
            if head_std is not None:
                drawn["kernel_init"] = nnx.initializers.normal(head_std)
                drawn["bias_init"] = nnx.initializers.zeros_init()
            self.fc = torch_linear(width, num_classes, **drawn, **make.shared)
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
        x = jax.nn.relu(self.bn1(apply(self.conv1, inputs, attention)))
        x = max_pool(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        x = global_average_pool(x)
        if self.head == "dynamic":
            return self.classifier(x)
        return self.fc(self.dropout(x))

    def _layer_groups(self) -> LayerGroups:
        """The stem, each block, the head."""
        stages = self.layer1, self.layer2, self.layer3, self.layer4
        blocks = [
            (f"layer{number}.{index}",)
            for number, stage in enumerate(stages, start=1)
            for index in range(len(stage.layers))
        ]
        head = "classifier" if self.head == "dynamic" else "fc"
        return [("conv1", "bn1", "stem_routing_fn"), *blocks, (head,)]


def _variant(
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    num_classes: int,
    options: Mapping[str, Any],
) -> ResNet:
    """Builds a published network, once its options are known to be some."""
    check_options(options, ResNet, given=("block", "depths"))
    check_dynamic_has_conv(options, stages=4)
    return ResNet(block, depths, num_classes, **options)


def resnet18(num_classes: int = 1000, **options: Unpack[ResNetOptions]) -> ResNet:
    """Returns the ResNet of 18 layers; the options are those of `ResNet`.

    Example:
        >>> import functools
        >>> from dynconv_jax import DynamicConv
        >>> conv = functools.partial(DynamicConv, num_experts=2)
        >>> net = nnx.eval_shape(lambda: resnet18(10, conv=conv, rngs=nnx.Rngs(0)))
        >>> net.layer1.layers[0].conv1.kernel.shape
        (2, 3, 3, 64, 64)
    """
    return _variant(BasicBlock, (2, 2, 2, 2), num_classes, options)


def resnet34(num_classes: int = 1000, **options: Unpack[ResNetOptions]) -> ResNet:
    """Returns the ResNet of 34 layers; the options are those of `ResNet`.

    Example:
        >>> net = nnx.eval_shape(lambda: resnet34(10, rngs=nnx.Rngs(0)))
        >>> len(net.layer3.layers)
        6
    """
    return _variant(BasicBlock, (3, 4, 6, 3), num_classes, options)


def resnet50(num_classes: int = 1000, **options: Unpack[ResNetOptions]) -> ResNet:
    """Returns the ResNet of 50 layers; the options are those of `ResNet`.

    Example:
        >>> net = nnx.eval_shape(lambda: resnet50(10, rngs=nnx.Rngs(0)))
        >>> net.fc.kernel.shape
        (2048, 10)
    """
    return _variant(Bottleneck, (3, 4, 6, 3), num_classes, options)


def resnet101(num_classes: int = 1000, **options: Unpack[ResNetOptions]) -> ResNet:
    """Returns the ResNet of 101 layers; the options are those of `ResNet`.

    Example:
        >>> net = nnx.eval_shape(lambda: resnet101(10, rngs=nnx.Rngs(0)))
        >>> len(net.layer3.layers)
        23
    """
    return _variant(Bottleneck, (3, 4, 23, 3), num_classes, options)
