"""ConvNeXt, with static or dynamic convolutions."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Required, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float

from dynconv_jax.functional.checks import check_rate
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.initializers import promote_to_widest
from dynconv_jax.layers.given_attention import needs_attention
from dynconv_jax.models.convolutions import Convolutions
from dynconv_jax.models.drop_path import DropPath
from dynconv_jax.models.grad_checkpointing import Blocks
from dynconv_jax.models.images import check_images, global_average_pool
from dynconv_jax.models.layer_groups import LayerGroups

normal_init = nnx.initializers.normal(0.02)


class LayerNorm(nnx.LayerNorm):
    """`nnx.LayerNorm` over the channels, as ConvNeXt has it.

    Example:
        >>> LayerNorm(8, rngs=nnx.Rngs(0))(jnp.ones((2, 7, 6, 8))).shape
        (2, 7, 6, 8)
    """

    def __init__(self, features: int, **options: Any):
        """Builds the layer; the options are those of `nnx.LayerNorm`."""
        super().__init__(
            features,
            epsilon=1e-6,
            use_fast_variance=False,
            promote_dtype=promote_to_widest,
            **options,
        )

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalises each pixel."""
        # The layer norm of flax promotes its float64 with float32, asked or not.
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, mask=mask)


class Block(nnx.Module):
    """A 7×7 depthwise convolution, then two 1×1, beside a shortcut.

    Attributes:
        gamma: What scales the branch, shape (C,).
    """

    def __init__(
        self,
        features: int,
        *,
        stage: int,
        drop_path_rate: float,
        layer_scale: float,
        make: Convolutions,
    ):
        """Builds the block.

        Args:
            features: The number of channels.
            stage: The stage of the network, from 1.
            drop_path_rate: The share of samples whose branch is dropped in training.
            layer_scale: The initial value of `gamma`.
            make: Builds the layers.
        """
        place: dict[str, Any] = dict(stage=stage, use_bias=True)
        self.dwconv = make(features, features, 7, groups=features, **place)
        self.norm = LayerNorm(features, **make.shared)
        self.pwconv1 = make(features, 4 * features, 1, **place)
        self.pwconv2 = make(4 * features, features, 1, **place)
        param_dtype = make.shared["param_dtype"]
        self.gamma = nnx.Param(jnp.full(features, layer_scale, param_dtype))
        self.drop_path = DropPath(drop_path_rate, make.shared["rngs"])

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the block to (B, H, W, features)."""
        x = self.pwconv1(self.norm(self.dwconv(inputs)))
        x = self.pwconv2(jax.nn.gelu(x, approximate=False))
        gamma = self.gamma[...].astype(x.dtype).reshape(1, 1, 1, -1)
        return inputs + self.drop_path(gamma * x)


class ConvNeXtOptions(TypedDict, total=False):
    """The options of `ConvNeXt`, for builders of published networks."""

    conv: Callable[..., Any] | None
    dynamic: str | int
    in_features: int
    drop_path_rate: float
    layer_scale: float
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: Required[nnx.Rngs]


class ConvNeXt(nnx.Module):
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
        >>> def logits(images):
        ...     sizes = (1, 1, 1, 1), (8, 8, 16, 16)
        ...     return ConvNeXt(*sizes, 10, rngs=nnx.Rngs(0))(images)
        >>> jax.eval_shape(logits, jnp.ones((2, 64, 33, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int = 1000,
        *,
        conv: Callable[..., Any] | None = None,
        dynamic: str | int = "paper",
        in_features: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            depths: How many blocks each of the four stages has.
            widths: How many channels each has.
            num_classes: The number of logits.
            conv: Builds the dynamic convolutions, with the signature of `nnx.Conv`,
                such as `DynamicConv`; None makes all static.
            dynamic: Which convolutions are dynamic: `"paper"` (all but the stem),
                `"all"`, `"pointwise"` (the 1×1 convolutions of the blocks), or an int
                n, those of the last n stages and before each.
            in_features: The number of channels of the images.
            drop_path_rate: The share of samples that skip the last block in training.
                Block i of n, counted from 0, is skipped by i / (n - 1) of it. The keys
                come from the stream `dropout` of `rngs`.
            layer_scale: What scales the branch of each block at first.
            dtype: The dtype of the computation; None infers it.
            param_dtype: The dtype of the parameters.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range, `conv` takes its attention from
                outside, or no convolution is dynamic.
        """
        for name, counts in (("depths", depths), ("widths", widths)):
            if len(counts) != 4:
                raise ValueError(f"`{name}` (={counts!r}) must have four entries")
        depths = [positive_int("depths", depth) for depth in depths]
        widths = [positive_int("widths", width) for width in widths]
        self.in_features = positive_int("in_features", in_features)
        self.num_classes = positive_int("num_classes", num_classes)
        check_rate("drop_path_rate", drop_path_rate)
        if needs_attention(getattr(conv, "func", conv)):
            raise ValueError(
                "`conv` takes its attention from outside, and the blocks of ConvNeXt "
                "have no router; choose one with a router of its own, such as "
                "`DynamicConv`"
            )
        make = Convolutions(
            conv,
            dynamic,
            stages=4,
            init="convnext",
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

        place: dict[str, Any] = dict(padding=0, use_bias=True)
        stem = make(in_features, widths[0], 4, 4, role="stem", **place)
        before = [nnx.Sequential(stem, LayerNorm(widths[0], **make.shared))]
        for stage, (width, following) in enumerate(itertools.pairwise(widths), start=2):
            norm = LayerNorm(width, **make.shared)
            patches = make(width, following, 2, 2, stage=stage, **place)
            before.append(nnx.Sequential(norm, patches))
        self.downsample_layers = nnx.List(before)
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
        self.stages = nnx.List(stages)
        self.norm = LayerNorm(widths[-1], **make.shared)
        self.head = nnx.Linear(
            widths[-1], num_classes, kernel_init=normal_init, **make.shared
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
        x = inputs
        for before, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(before(x))
        return self.head(self.norm(global_average_pool(x)))

    def _layer_groups(self) -> LayerGroups:
        """The stem, each block with what is before its stage, the head."""
        groups: LayerGroups = [("downsample_layers.0",)]
        for number, stage in enumerate(self.stages):
            for index in range(len(stage.layers)):
                is_first = number > 0 and index == 0
                before = (f"downsample_layers.{number}",) if is_first else ()
                groups.append((*before, f"stages.{number}.{index}"))
        groups[-1] = *groups[-1], "norm"
        return [*groups, ("head",)]
