"""Routers: from an input to the attention over the experts.

    v = mean over *S of x            (B, C)
    h = relu(v · fc1 + b1)           (B, H)    H = max(1, C // reduction)
    z = h · fc2 + b2                 (B, K)
    a = softmax(z / T)               (B, K)    rows sum to 1

All of it is computed in float32 at least: a bfloat16 layer raises its inputs, a float64
layer keeps float64.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.functional.numerics import at_least_float32
from dynconv_jax.functional.pooling import spatial_mean
from dynconv_jax.initializers import (
    promote_to_widest,
    torch_bias_init,
    torch_kernel_init,
    torch_linear,
)
from dynconv_jax.scheduled import Scheduled, set_scheduled


class Temperature(Scheduled):
    """The temperature of a softmax or sigmoid; `set_temperature` writes it."""

    name = "temperature"
    requirement = "one positive finite number: the logits are divided by it"

    @classmethod
    def accepts(cls, value: float) -> bool:
        """Whether `value` is positive and finite."""
        return 0 < value < math.inf


class Attention(nnx.Intermediate):
    """The attention that a router answered; `nnx.capture` of this type records it."""


def record_attention(
    module: nnx.Module, attention: jax.Array, name: str = "attention"
) -> None:
    """Records what `module` answered, where `nnx.capture` is listening."""
    # Outside of `nnx.capture`, sowing would add to the module's state.
    if hasattr(module, "__captures__"):
        module.sow(Attention, name, attention)


def _are_largest(logits: jax.Array, count: int) -> jax.Array:
    """Returns which of the logits (..., K) are the `count` largest."""
    # Not by lax.top_k, which gathers a sharded batch; and which ones they are has no
    # gradient, to which JAX gives another sharding. NaN ranks first, to be seen.
    logits = lax.stop_gradient(logits)
    descending = -jnp.where(jnp.isnan(logits), jnp.inf, logits)
    return jnp.argsort(jnp.argsort(descending, axis=-1), axis=-1) < count


def attend(
    logits: jax.Array, temperature: ArrayLike = 1.0, top_k: int | None = None
) -> jax.Array:
    """Turns logits into attention: softmax(logits / temperature) over the k largest.

    Args:
        logits: Shape (..., K).
        temperature: A positive scalar; large values even the attention out.
        top_k: How many experts to keep. The others get exactly 0 and no gradient, and
            those kept sum to 1; among equal logits the first ones are kept. None keeps
            all.

    Returns:
        Shape (..., K); rows sum to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> attend(jnp.array([[0.0, 0.0, -1.0]]), top_k=2).tolist()
        [[0.5, 0.5, 0.0]]
    """
    scaled = logits / jnp.asarray(temperature).astype(logits.dtype)
    if top_k is None or top_k == logits.shape[-1]:
        return jax.nn.softmax(scaled, axis=-1)
    is_kept = _are_largest(logits, top_k)
    return jax.nn.softmax(jnp.where(is_kept, scaled, -jnp.inf), axis=-1)


def _pool(inputs: jax.Array, in_features: int, dtype: DTypeLike | None) -> jax.Array:
    """Returns the mean of inputs (B, *S, C) over *S, once they are seen to fit."""
    if inputs.ndim < 2 or inputs.shape[-1] != in_features:
        raise ValueError(
            f"`inputs` (shape {inputs.shape}) must be (batch, *spatial, in_features) "
            f"with `in_features` (={in_features})"
        )
    return spatial_mean(inputs, dtype)


class Router(nnx.Module):
    """The router of a dynamic convolution.

    Chen et al., "Dynamic Convolution: Attention over Convolution Kernels", CVPR 2020,
    section 3.2; the linear layers have biases and are drawn as `torch.nn.Linear` draws
    them.

    Attributes:
        fc1: The linear layer C → H.
        fc2: The linear layer H → K.
        temperature: T, a scalar `Temperature`; write it with `set_temperature`.

    Example:
        >>> import jax.numpy as jnp
        >>> router = Router(16, num_experts=4, top_k=2, rngs=nnx.Rngs(0))
        >>> attention = router(jnp.ones((2, 9, 7, 16)))
        >>> attention.shape, int((attention > 0).sum())
        ((2, 4), 4)
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int = 4,
        *,
        reduction: int = 4,
        temperature: float = 1.0,
        top_k: int | None = None,
        dropout_rate: float = 0.0,
        hidden_features: int | None = None,
        use_hidden_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        """Builds the router.

        Args:
            in_features: C, the number of channels of the input.
            num_experts: K, the number of experts to weigh.
            reduction: The hidden layer has H = max(1, C // reduction) units.
            temperature: The initial T.
            top_k: Keep this many of the largest logits of each sample; None keeps all.
            dropout_rate: The share of hidden units dropped in training. The keys come
                from the stream `dropout` of `rngs`.
            hidden_features: H, in place of what `reduction` gives.
            use_hidden_bias: Whether the first linear layer has a bias.
            dtype: The dtype of the computation, raised to float32 where it is
                narrower; None infers it from the input and the parameters.
            param_dtype: The dtype of the parameters.
            precision: As in `jax.lax.dot_general`.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        self.in_features = positive_int("in_features", in_features)
        self.num_experts = positive_int("num_experts", num_experts)
        self.reduction = positive_int("reduction", reduction)
        Temperature.check(temperature)
        if top_k is not None and positive_int("top_k", top_k) > num_experts:
            raise ValueError(
                f"`top_k` (={top_k}) must not exceed `num_experts` (={num_experts})"
            )
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"`dropout_rate` (={dropout_rate}) must be in [0, 1)")
        self.top_k = top_k
        self.dtype = dtype
        if hidden_features is None:
            hidden_features = max(1, in_features // reduction)
        positive_int("hidden_features", hidden_features)
        options: dict[str, Any] = dict(
            param_dtype=param_dtype, precision=precision, rngs=rngs
        )
        self.fc1 = torch_linear(
            in_features, hidden_features, use_bias=use_hidden_bias, **options
        )
        self.fc2 = torch_linear(hidden_features, num_experts, **options)
        # Without dropout there is no random state to carry through every jit.
        self.dropout = nnx.Dropout(dropout_rate, rngs=rngs if dropout_rate else None)
        self.temperature = Temperature.create(temperature)

    def logits(self, inputs: jax.Array) -> jax.Array:
        """Returns the logits z (B, K) of inputs (B, *S, C), before the temperature."""
        pooled = _pool(inputs, self.in_features, self.dtype)
        return self.fc2(self.dropout(jax.nn.relu(self.fc1(pooled))))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the attention over the experts.

        Args:
            inputs: Shape (B, *S, C).

        Returns:
            Shape (B, K); rows sum to 1.

        Raises:
            ValueError: If the inputs do not have `in_features` channels.
        """
        attention = attend(self.logits(inputs), self.temperature[...], self.top_k)
        record_attention(self, attention)
        return attention


class SigmoidRouter(nnx.Linear):
    """The router of CondConv: a sigmoid for each expert, on its own.

        a = sigmoid(v · W + b)           (B, K)    v = mean over *S of x

    Yang et al., "CondConv", NeurIPS 2019, section 3.1. It is an `nnx.Linear` C → K,
    because published checkpoints name its parameters so (`routing_fn.weight`). The rows
    do not sum to 1, and there is no temperature.

    Example:
        >>> import jax.numpy as jnp
        >>> router = SigmoidRouter(16, num_experts=4, rngs=nnx.Rngs(0))
        >>> router(jnp.ones((2, 9, 7, 16))).shape
        (2, 4)
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int = 4,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer = torch_kernel_init,
        bias_init: Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the router.

        Args:
            in_features: C, the number of channels of the input.
            num_experts: K, the number of experts to weigh.
            dtype: The dtype of the computation, raised to float32 where it is
                narrower; None infers it from the input and the parameters.
            param_dtype: The dtype of the parameters.
            precision: As in `jax.lax.dot_general`.
            kernel_init: Initialises the kernel (C, K); by default as `torch.nn.Linear`.
            bias_init: Initialises the bias (K,); None as `torch.nn.Linear`.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a count is below 1.
        """
        positive_int("in_features", in_features)
        self.num_experts = positive_int("num_experts", num_experts)
        options: dict[str, Any] = dict(
            dtype=None if dtype is None else at_least_float32(dtype),
            param_dtype=param_dtype,
            precision=precision,
            promote_dtype=promote_to_widest,
        )
        super().__init__(
            in_features,
            num_experts,
            kernel_init=kernel_init,
            bias_init=bias_init or torch_bias_init(in_features),
            rngs=rngs,
            **options,
        )

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: jax.Array
    ) -> jax.Array:
        """Returns the attention over the experts.

        Args:
            inputs: Shape (B, *S, C).

        Returns:
            Shape (B, K), each entry between 0 and 1.

        Raises:
            ValueError: If the inputs do not have `in_features` channels.
        """
        pooled = _pool(inputs, self.in_features, self.dtype)
        attention = jax.nn.sigmoid(super().__call__(pooled))
        record_attention(self, attention)
        return attention


def iter_routers(module: nnx.Module) -> Iterator[tuple[str, Router]]:
    """Yields the path and the router for every router in `module`, each once.

    Example:
        >>> from dynconv_jax import DynamicConv
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> [path for path, _ in iter_routers(layer)]
        ['router']
    """
    for path, part in nnx.iter_modules(module):
        if isinstance(part, Router):
            yield ".".join(map(str, path)), part


def set_temperature(module: nnx.Module, value: ArrayLike) -> None:
    """Sets every temperature in `module`, in place.

    The value may be traced, so that a schedule inside a jitted step causes no
    recompilation.

    Args:
        module: A router, a layer or a whole model.
        value: The new temperature, a positive scalar.

    Raises:
        ValueError: If the value is not positive and finite, or `module` has no router.

    Example:
        >>> from dynconv_jax import DynamicConv
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> set_temperature(layer, 30.0)
        >>> float(layer.router.temperature[...])
        30.0
    """
    if not set_scheduled(module, Temperature, value):
        raise ValueError(f"`module` (a {type(module).__name__}) contains no router")


def load_balance_loss(attention: jax.Array) -> jax.Array:
    """Measures how unevenly a batch uses the experts.

    The squared coefficient of variation of each expert's total attention over the batch
    (Shazeer et al., "Outrageously Large Neural Networks", ICLR 2017, section 4). It is
    0 when all experts carry the same weight and K − 1 when one carries all of it.

    Args:
        attention: Shape (..., K).

    Returns:
        A scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> float(load_balance_loss(jnp.array([[1.0, 0.0], [0.0, 1.0]])))
        0.0
    """
    importance = attention.reshape(-1, attention.shape[-1]).mean(axis=0)
    return importance.var() / jnp.square(importance.mean())
