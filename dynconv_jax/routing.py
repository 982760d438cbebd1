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
from jaxtyping import Float, Shaped

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.checks import (
    check_arrays,
    check_choice,
    check_dtypes,
    check_positive,
    check_rate,
)
from dynconv_jax.functional.geometry import expert_count, positive_int
from dynconv_jax.functional.numerics import at_least_float32
from dynconv_jax.functional.pooling import spatial_mean
from dynconv_jax.gating import Temperature, attend, record_attention, record_softmax
from dynconv_jax.initializers import (
    INITS,
    Init,
    kaiming_fan_out,
    promote_to_widest,
    torch_bias_init,
    torch_kernel_init,
    torch_linear,
)
from dynconv_jax.logit_noise import LogitNoise
from dynconv_jax.scheduled import HoldsScheduled, set_scheduled


def _pool(inputs: jax.Array, in_features: int, dtype: DTypeLike | None) -> jax.Array:
    """Returns the mean of inputs (B, *S, C) over *S, once they are seen to fit."""
    check_arrays(inputs=inputs)
    if inputs.ndim < 2 or inputs.shape[-1] != in_features:
        raise ValueError(
            f"`inputs` (shape {inputs.shape}) must be (batch, *spatial, in_features) "
            f"with `in_features` (={in_features})"
        )
    return spatial_mean(inputs, dtype)


class Router(HoldsScheduled):
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
        noise_std: float = 0.0,
        hidden_features: int | None = None,
        use_hidden_bias: bool = True,
        use_bias: bool = True,
        init: Init = "default",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        """Builds the router.

        Args:
            in_features: C, the number of channels of the input.
            num_experts: K, the number of experts to weigh.
            reduction: The hidden layer has H = max(1, C // reduction) units. A ReLU
                may be off for all inputs, and with few units, all may be: then the
                attention is the same for every input, and stays so.
            temperature: The initial T.
            top_k: Keep this many of the largest logits of each sample; None keeps all.
                Experts that are never kept come back by `load_balance_loss` or noise.
            dropout_rate: The share of hidden units dropped in training. The keys come
                from the stream `dropout` of `rngs`.
            noise_std: The standard deviation of the `LogitNoise` on z in training. The
                keys come from the stream `noise` of `rngs`.
            hidden_features: H, in place of what `reduction` gives.
            use_hidden_bias: Whether the first linear layer has a bias.
            use_bias: Whether the second has one.
            init: `"published"` draws both layers from N(0, 2 / fan_out), with biases of
                0, as Chen et al.'s port does; `"default"` as `torch.nn.Linear` does.
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
        self.num_experts = expert_count(num_experts)
        self.reduction = positive_int("reduction", reduction)
        Temperature.check(temperature)
        if top_k is not None and positive_int("top_k", top_k) > num_experts:
            raise ValueError(
                f"`top_k` (={top_k}) must not exceed `num_experts` (={num_experts})"
            )
        check_rate("dropout_rate", dropout_rate)
        check_choice("init", init, INITS)
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
        self.top_k = top_k
        self.dtype = dtype
        if hidden_features is None:
            hidden_features = max(1, in_features // reduction)
        positive_int("hidden_features", hidden_features)
        options: dict[str, Any] = dict(
            param_dtype=param_dtype, precision=precision, rngs=rngs
        )
        if init == "published":
            zeros = nnx.initializers.zeros_init()
            options.update(kernel_init=kaiming_fan_out, bias_init=zeros)
        self.fc1 = torch_linear(
            in_features, hidden_features, use_bias=use_hidden_bias, **options
        )
        self.fc2 = torch_linear(
            hidden_features, num_experts, use_bias=use_bias, **options
        )
        # Without dropout there is no random state to carry through every jit.
        self.dropout = nnx.Dropout(dropout_rate, rngs=rngs if dropout_rate else None)
        self.noise = LogitNoise(noise_std, rngs=rngs)
        self.temperature = Temperature.create(temperature)

    def logits(
        self, inputs: Shaped[jax.Array, "batch *spatial in_features"]
    ) -> Float[jax.Array, "batch experts"]:
        """Returns the logits z of inputs, before the temperature.

        In training, dropout and noise are in them.
        """
        pooled = _pool(inputs, self.in_features, self.dtype)
        return self.noise(self.fc2(self.dropout(jax.nn.relu(self.fc1(pooled)))))

    def __call__(
        self, inputs: Shaped[jax.Array, "batch *spatial in_features"]
    ) -> Float[jax.Array, "batch experts"]:
        """Returns the attention over the experts.

        Args:
            inputs: What a layer convolves.

        Returns:
            The weights of the experts; those of a sample sum to 1.

        Raises:
            ValueError: If the inputs do not have `in_features` channels.
        """
        gate = self.logits(inputs), self.temperature[...], self.top_k
        attention = attend(*gate)
        record_softmax(self, attention, *gate)
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
        self.num_experts = expert_count(num_experts)
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
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
        self, inputs: Shaped[jax.Array, "batch *spatial in_features"]
    ) -> Float[jax.Array, "batch experts"]:
        """Returns the attention over the experts.

        Args:
            inputs: What a layer convolves.

        Returns:
            The weights of the experts, each between 0 and 1.

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


def two_slope_temperature(
    epoch: ArrayLike,
    *,
    start: float = 30.0,
    end: float = 1.0,
    slope: float = 1.0,
    late_slope: float = 0.02,
) -> jax.Array:
    """Returns a temperature that falls fast at first, and slowly once it is low.

        max(start − slope · e, 1 + late_slope · ((start − 1) / slope − e), end)

    The two lines meet at 1. Schmid et al., "Dynamic Convolutional Neural Networks as
    Efficient Pre-trained Audio Models" (DyMN), TASLP 2024, on dynamic convolution; the
    defaults are those of the authors' code. `set_temperature` writes the answer.

    Args:
        epoch: e, from 0; it may be a fraction, and traced.
        start: The temperature at 0.
        end: The lowest temperature.
        slope: By how much it falls in an epoch at first.
        late_slope: By how much it falls in an epoch below 1.

    Raises:
        ValueError: If a temperature is not positive, or a slope is.

    Example:
        >>> [float(two_slope_temperature(e)) for e in (0, 10, 29, 100)]
        [30.0, 20.0, 1.0, 1.0]
    """
    Temperature.check(start)
    Temperature.check(end)
    check_positive("slope", slope)
    if not 0 <= late_slope < math.inf:
        raise ValueError(
            f"`late_slope` (={late_slope}) must be 0 or a positive finite number"
        )
    late = 1 + late_slope * ((start - 1) / slope - epoch)
    return jnp.maximum(jnp.maximum(start - slope * epoch, late), end)
