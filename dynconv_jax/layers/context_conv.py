"""ContextConv: a dynamic convolution whose attention is a linear map of a context."""

from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.gating import Temperature
from dynconv_jax.initializers import kaiming_fan_out, promote_to_widest
from dynconv_jax.layers.convolution import flatten_rows
from dynconv_jax.layers.expert_conv import ExpertConv, ExpertOptions
from dynconv_jax.layers.style import linear_attention
from dynconv_jax.scheduled import HoldsScheduled


def context_linear(
    context_features: int, out_features: int, **options: Any
) -> nnx.Linear:
    """Returns a linear layer of a context, drawn as all of DyMN's are.

    Args:
        context_features: The number of features of the context.
        out_features: The number of outputs.
        **options: Those of `nnx.Linear`.

    Example:
        >>> float(abs(context_linear(16, 4, rngs=nnx.Rngs(0)).bias[...]).max())
        0.0
    """
    return nnx.Linear(
        context_features,
        out_features,
        kernel_init=nnx.initializers.normal(0.01),
        promote_dtype=promote_to_widest,
        **options,
    )


class ContextAttention(HoldsScheduled):
    """The router of `ContextConv`: a softmax over one linear layer of the context.

        a = softmax(fc(context) / T)              (B, K)    rows sum to 1

    All of it is computed in float32 at least.

    Attributes:
        fc: The linear layer from the context to logits.
        temperature: T, a scalar `Temperature`; write it with `set_temperature`.

    Example:
        >>> attention = ContextAttention(16, 4, rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((2, 16))).shape
        (2, 4)
    """

    def __init__(
        self,
        context_features: int,
        num_experts: int,
        *,
        temperature: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        """Builds the router; `ContextConv` explains the arguments.

        Raises:
            ValueError: If the temperature is no positive number.
        """
        Temperature.check(temperature)
        self.dtype = dtype
        options: dict[str, Any] = dict(
            param_dtype=param_dtype, precision=precision, rngs=rngs
        )
        self.fc = context_linear(context_features, num_experts, **options)
        self.temperature = Temperature.create(temperature)

    def __call__(self, context: jax.Array) -> jax.Array:
        """Returns the attention (B, K) for a context (B, context_features)."""
        return linear_attention(self, self.fc, context, self.dtype)


class ContextConv(ExpertConv):
    """A convolution with K experts, mixed by a softmax over a context.

        a = softmax(attention.fc(context) / T)    (B, K)
        y = conv(x, Σ_k a_k W_k) + Σ_k a_k b_k

    The context is a vector for each sample, which several layers share: in DyMN those
    of a block, and a `ContextGenerator` makes it. For 1, 2 or 3 spatial dimensions,
    with the argument names of `nnx.Conv`. Schmid et al., "Dynamic Convolutional Neural
    Networks as Efficient Pre-trained Audio Models", TASLP 2024, on dynamic convolution.

    In PyTorch's layout the weight is (1, 1, K, O·(C/g)·k·k), as in DyMN's checkpoints,
    and the linear layer `residuals.0`.

    Attributes:
        kernel: The experts, shape (K, *kernel_size, C/g, O).
        bias: Their biases, shape (K, O), or None.
        attention: The `ContextAttention`; `routing` calls it.

    Example:
        >>> layer = ContextConv(4, 8, (3, 3), context_features=16, rngs=nnx.Rngs(0))
        >>> features, context = jnp.ones((2, 9, 7, 4)), jnp.ones((2, 16))
        >>> layer(features, context).shape, layer.routing(context).shape
        ((2, 9, 7, 8), (2, 4))
    """

    needs_context = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        context_features: int,
        temperature: float = 1.0,
        rngs: nnx.Rngs,
        **options: Unpack[ExpertOptions],
    ):
        """Builds the layer.

        Args:
            in_features: C, the number of input channels.
            out_features: O, the number of output channels.
            kernel_size: A tuple of 1, 2 or 3 ints; its length is the rank.
            strides: An int, or one per spatial dimension.
            context_features: H, the number of features of the context.
            temperature: The initial T. DyMN's falls from 30 to 1 by
                `two_slope_temperature`; see `set_temperature`.
            rngs: Where the initial parameters come from.
            **options: The options of `ExpertConv`, as `DynamicConv` explains them. By
                default each expert is drawn from N(0, 2 / fan_out).

        Raises:
            TypeError: If an argument is of the wrong kind, such as a bare int as
                `kernel_size`.
            ValueError: If a value is out of range or does not fit the others.
        """
        options.setdefault("kernel_init", kaiming_fan_out)
        super().__init__(
            in_features, out_features, kernel_size, strides, rngs=rngs, **options
        )
        self.context_features = positive_int("context_features", context_features)
        self.attention = ContextAttention(
            context_features,
            self.num_experts,
            temperature=temperature,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            rngs=rngs,
        )

    def routing(self, context: jax.Array) -> jax.Array:
        """Returns the attention over the experts.

        Args:
            context: Shape (*batch, context_features).

        Returns:
            Shape (*batch, K); rows sum to 1.

        Raises:
            ValueError: If the context does not fit the layer.
        """
        batch = jnp.shape(context)[:-1]
        return self._attend(context, batch).reshape(*batch, self.num_experts)

    def __call__(self, inputs: jax.Array, context: jax.Array) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: Shape (*batch, *S, C), with any number of batch dimensions, also
                none.
            context: Shape (*batch, context_features).

        Returns:
            Shape (*batch, *S_out, O).

        Raises:
            TypeError: If an argument is no array.
            ValueError: If the inputs or the context do not fit the layer.
        """
        flat, batch = self._flatten_batch(inputs)
        outputs = self._convolve(flat, self._attend(context, batch))
        return outputs.reshape(*batch, *outputs.shape[1:])

    def _attend(self, context: jax.Array, batch: tuple[int, ...]) -> jax.Array:
        size = "context_features", self.context_features
        return self.attention(flatten_rows("context", context, batch, *size))
