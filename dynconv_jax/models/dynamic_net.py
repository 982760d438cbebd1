"""DynamicNet: the small reference network of dynamic convolutions."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.activations import relu
from dynconv_jax.functional.checks import check_dtypes, check_positive
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.functional.static import few_channel_conv
from dynconv_jax.initializers import torch_kernel_init, torch_linear
from dynconv_jax.layers.batch_norm import BatchNorm
from dynconv_jax.layers.dynamic_conv import DynamicConv
from dynconv_jax.layers.dynamic_conv_block import DynamicConvBlock
from dynconv_jax.models.grad_checkpointing import Checkpointing
from dynconv_jax.models.images import check_images, global_average_pool
from dynconv_jax.models.layer_groups import LayerGroups

# The channels of the stem and of the three blocks.
WIDTHS = (32, 64, 128, 256)


def scaled_widths(widths: Sequence[int], width_mult: float) -> list[int]:
    """Multiplies numbers of channels and rounds them, halves upwards, to 1 at least.

    Raises:
        TypeError: If `width_mult` is not a number.
        ValueError: If it is not positive and finite.

    Example:
        >>> scaled_widths(WIDTHS, 0.29)
        [9, 19, 37, 74]
    """
    check_positive("width_mult", width_mult)
    return [max(1, math.floor(width * width_mult + 0.5)) for width in widths]


class DynamicNet(Checkpointing):
    """A static stem, three strided dynamic blocks, a pooled linear head.

    The stem is a 3×3 convolution to 32 channels, batch norm and ReLU; the blocks are
    3×3, stride 2, with 64, 128 and 256 channels; `width_mult` multiplies all four.
    Padding is 1 throughout, not `"SAME"`, which pads differently from PyTorch where the
    stride is 2.

    Attributes:
        stem: The convolution, batch norm and ReLU.
        stage1: The first `DynamicConvBlock`; `stage2` and `stage3` follow.
        fc: The linear head.

    Example:
        >>> import jax.numpy as jnp
        >>> net = DynamicNet(rngs=nnx.Rngs(0))
        >>> logits = net(jnp.ones((2, 64, 64, 3)), verbose=True)
        input: (2, 64, 64, 3)
        stem: (2, 64, 64, 32)
        s1: (2, 32, 32, 64)
        s2: (2, 16, 16, 128)
        s3: (2, 8, 8, 256)
        out: (2, 10)
    """

    def __init__(
        self,
        in_features: int = 3,
        num_classes: int = 10,
        *,
        conv: Callable[..., Any] | None = DynamicConv,
        num_experts: int | None = None,
        temperature: float | None = None,
        reduction: int | None = None,
        top_k: int | None = None,
        router_dropout: float | None = None,
        router_noise: float | None = None,
        implementation: str | None = None,
        width_mult: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            in_features: The number of input channels.
            num_classes: The number of logits.
            conv: Builds the convolutions of the blocks, with the signature of
                `nnx.Conv`; None makes them static. The seven options below are for
                `DynamicConv`, also in a `functools.partial`, whose own win; None leaves
                them to it.
            num_experts: K of every dynamic convolution; 4 by default.
            temperature: The initial temperature of every router; 1 by default.
            reduction: Of every router, see `Router`; 4 by default.
            top_k: Of every router, see `Router`.
            router_dropout: The dropout rate of every router; 0 by default.
            router_noise: The noise on the logits of every router; 0 by default.
            implementation: Of every dynamic convolution, see `DynamicConv`; `"auto"` by
                default.
            width_mult: Multiplies the widths of stem and blocks, which are rounded to
                the nearest whole number of channels (halves upwards), but never to 0.
            dtype: The dtype of the computation; None infers it.
            param_dtype: The dtype of the parameters.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range, or an option is for no convolution.
        """
        self.in_features = positive_int("in_features", in_features)
        self.num_classes = positive_int("num_classes", num_classes)
        widths = scaled_widths(WIDTHS, width_mult)
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
        shared: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        options = dict(
            num_experts=num_experts,
            temperature=temperature,
            reduction=reduction,
            top_k=top_k,
            router_dropout=router_dropout,
            router_noise=router_noise,
            implementation=implementation,
        )
        given = {name: each for name, each in options.items() if each is not None}
        if given and getattr(conv, "func", conv) is not DynamicConv:
            name, each = next(iter(given.items()))
            raise ValueError(
                f"`{name}` (={each!r}) is an option of DynamicConv, not of `conv` "
                f"(={conv!r}); give options of another convolution to itself, by "
                "`functools.partial`, or by the `conv_options` of `create_model`"
            )
        if conv is None:
            conv = functools.partial(nnx.Conv, kernel_init=torch_kernel_init)
        elif given and getattr(conv, "func", conv) is DynamicConv:
            # What a partial of the layer has of its own wins.
            given.update(getattr(conv, "keywords", {}))
            conv = functools.partial(conv, **given)

        def block(in_features: int, out_features: int) -> DynamicConvBlock:
            return DynamicConvBlock(
                in_features,
                out_features,
                (3, 3),
                strides=2,
                padding=1,
                conv=conv,
                **shared,
            )

        self.stem = nnx.Sequential(
            nnx.Conv(
                in_features,
                widths[0],
                (3, 3),
                padding=1,
                use_bias=False,
                kernel_init=torch_kernel_init,
                conv_general_dilated=few_channel_conv,
                **shared,
            ),
            BatchNorm(widths[0], **shared),
            relu,
        )
        self.stage1 = block(widths[0], widths[1])
        self.stage2 = block(widths[1], widths[2])
        self.stage3 = block(widths[2], widths[3])
        self.fc = torch_linear(widths[3], num_classes, **shared)

    def __call__(self, inputs: jax.Array, *, verbose: bool = False) -> jax.Array:
        """Classifies images.

        Args:
            inputs: Shape (B, H, W, in_features).
            verbose: Print the shape after every stage.

        Returns:
            Logits, shape (B, num_classes).

        Raises:
            ValueError: If the inputs do not fit the network.
        """
        check_images(inputs, self.in_features)

        def show(name: str, x: jax.Array) -> jax.Array:
            if verbose:
                print(f"{name}: {x.shape}")
            return x

        x = show("input", inputs)
        x = show("stem", self.stem(x))
        x = show("s1", self._call(self.stage1, x))
        x = show("s2", self._call(self.stage2, x))
        x = show("s3", self._call(self.stage3, x))
        return show("out", self.fc(global_average_pool(x)))

    def _layer_groups(self) -> LayerGroups:
        """The stem, each block, the head."""
        return [("stem",), ("stage1",), ("stage2",), ("stage3",), ("fc",)]
