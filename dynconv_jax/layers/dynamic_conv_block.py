"""The block that networks repeat: dynamic convolution, batch norm, ReLU."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dynconv_jax.layers.batch_norm import BatchNorm
from dynconv_jax.layers.dynamic_conv import DynamicConv
from dynconv_jax.layers.given_attention import apply, needs_attention, route
from dynconv_jax.routing import SigmoidRouter


class DynamicConvBlock(nnx.Module):
    """DynamicConv → BatchNorm → ReLU.

    Attributes:
        dyn: The `DynamicConv`, or what was given in its place.
        bn: The `BatchNorm`.

    Example:
        >>> import jax.numpy as jnp
        >>> block = DynamicConvBlock(3, 8, (3, 3), 2, padding=1, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((2, 9, 7, 3))).shape
        (2, 5, 4, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int] = (3, 3),
        strides: int | Sequence[int] | None = 1,
        *,
        conv: Callable[..., Any] = DynamicConv,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **options,
    ):
        """Builds the block.

        Args:
            in_features: The number of input channels.
            out_features: The number of output channels.
            kernel_size: A tuple of 1, 2 or 3 ints.
            strides: An int, or one per spatial dimension.
            conv: Builds the convolution, with the signature of `nnx.Conv`. For one that
                takes its attention from outside, as `CondConv` does, the block has a
                `routing_fn`.
            dtype: The dtype of the computation; None infers it.
            param_dtype: The dtype of the parameters.
            rngs: Where the initial parameters come from.
            **options: The other options of the convolution.

        Raises:
            TypeError: If `conv` is not callable, or another argument of the wrong kind.
            ValueError: If a value is out of range.
        """
        if not callable(conv):
            raise TypeError(
                f"`conv` (={conv!r}) must be a callable with the signature of "
                "`nnx.Conv`, such as `DynamicConv`"
            )
        shared: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options = dict(use_bias=False) | options
        self.dyn = conv(
            in_features, out_features, kernel_size, strides, **options, **shared
        )
        if needs_attention(self.dyn):
            self.routing_fn = SigmoidRouter(in_features, self.dyn.num_experts, **shared)
        self.bn = BatchNorm(out_features, **shared)

    def routing(self, inputs: jax.Array) -> jax.Array:
        """Returns the attention (*batch, K) of the convolution for `inputs`."""
        routing = getattr(self, "routing_fn", None) or self.dyn.routing
        return routing(inputs)

    def __call__(
        self, inputs: jax.Array, attention: jax.Array | None = None
    ) -> jax.Array:
        """Applies the block; arguments and result are those of the convolution."""
        if attention is None:
            attention = route(getattr(self, "routing_fn", None), inputs)
            outputs = apply(self.dyn, inputs, attention)
        else:
            outputs = self.dyn(inputs, attention)
        return jax.nn.relu(self.bn(outputs))
