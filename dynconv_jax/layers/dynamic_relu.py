"""Dynamic ReLU: a piecewise linear function whose pieces depend on the sample."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.checks import check_arrays, check_dtypes
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.functional.numerics import as_floating, widest
from dynconv_jax.functional.pooling import spatial_mean
from dynconv_jax.gating import record_attention
from dynconv_jax.initializers import torch_linear
from dynconv_jax.layers.context_conv import context_linear
from dynconv_jax.layers.convolution import flatten_rows
from dynconv_jax.layers.style import apply_wide


class Constant(nnx.Variable):
    """Numbers that checkpoints hold and nothing moves."""


class DynamicReLU(nnx.Module):
    """The largest of M linear functions, whose coefficients a sample gives itself.

        θ = 2 σ(linear(context)) − 1              (B, C, 2M)
        a, b = θ · lambdas + init_v               (B, C, M) each
        y = max_m (a_m x + b_m)

    Each channel has coefficients of its own: DY-ReLU-B of Chen et al., "Dynamic ReLU",
    ECCV 2020, section 3.2. The context is given, as DyMN's blocks do, or the layer's
    own: a hidden layer, ReLU behind it, of the mean over the pixels. With θ = 0 it is
    max(x, 0).

    Attributes:
        lambdas: Shape (2M,), the range of the coefficients: 1 for slopes, 0.5 for
            intercepts; a constant, which checkpoints hold.
        init_v: Shape (2M,), what they are at θ = 0: 1 for the first slope, else 0.
        coef_net: The linear layer of a given context, in a sequence of one; otherwise
            there are `fc1` and `fc2`.

    Example:
        >>> activation = DynamicReLU(8, rngs=nnx.Rngs(0))
        >>> activation(jnp.ones((2, 9, 7, 8))).shape
        (2, 9, 7, 8)
        >>> activation = DynamicReLU(8, context_features=16, rngs=nnx.Rngs(0))
        >>> activation(jnp.ones((2, 9, 7, 8)), jnp.ones((2, 16))).shape
        (2, 9, 7, 8)
    """

    def __init__(
        self,
        features: int,
        *,
        context_features: int | None = None,
        reduction: int = 8,
        num_pieces: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
            features: C, the number of channels.
            context_features: The number of features of a context that is given in
                each call; None has the layer make its own.
            reduction: The hidden layer of its own has max(C // reduction, 1) units.
            num_pieces: M.
            dtype: The dtype in which coefficients are computed, raised to float32
                where it is narrower; None infers it.
            param_dtype: The dtype of the parameters.
            precision: As in `jax.lax.dot_general`.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        self.features = positive_int("features", features)
        self.num_pieces = positive_int("num_pieces", num_pieces)
        positive_int("reduction", reduction)
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
        self.context_features = context_features
        self.dtype = dtype
        count = 2 * num_pieces
        options: dict[str, Any] = dict(
            param_dtype=param_dtype, precision=precision, rngs=rngs
        )
        if context_features is None:
            hidden = max(features // reduction, 1)
            self.fc1 = torch_linear(features, hidden, **options)
            self.fc2 = torch_linear(hidden, count * features, **options)
        else:
            positive_int("context_features", context_features)
            self.coef_net = nnx.Sequential(
                context_linear(context_features, count * features, **options)
            )
        is_slope = jnp.arange(count) < num_pieces
        self.lambdas = Constant(jnp.where(is_slope, 1.0, 0.5).astype(param_dtype))
        self.init_v = Constant((jnp.arange(count) == 0).astype(param_dtype))

    def coefficients(self, context: jax.Array) -> jax.Array:
        """Returns slopes and intercepts.

        Args:
            context: Shape (B, context_features); of a layer that makes its own, the
                means (B, C).

        Returns:
            Shape (B, C, 2M), in float32 at least: M slopes, then M intercepts.
        """
        if self.context_features is None:
            hidden = jax.nn.relu(apply_wide(self.fc1, context, self.dtype))
            logits = apply_wide(self.fc2, hidden, self.dtype)
        else:
            logits = apply_wide(self.coef_net, context, self.dtype)
        theta = 2 * jax.nn.sigmoid(logits) - 1
        split = theta.reshape(*theta.shape[:-1], self.features, 2 * self.num_pieces)
        scale, start = (
            each[...].astype(split.dtype)[None, None]
            for each in (self.lambdas, self.init_v)
        )
        answer = split * scale + start
        record_attention(self, answer, "coefficients")
        return answer

    def __call__(
        self, inputs: jax.Array, context: jax.Array | None = None
    ) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: Shape (B, *S, C). A sample alone needs the batch axis, too.
            context: Shape (B, context_features), where the layer was built for one.

        Returns:
            The shape and the dtype of the inputs, or, if they are integers, that of
            the parameters.

        Raises:
            TypeError: If an argument is no array; if there is a context and the layer
                makes its own, or none and it does not.
            ValueError: If the inputs or the context do not fit the layer.
        """
        check_arrays(inputs=inputs)
        inputs = as_floating(inputs, self.lambdas[...].dtype)
        if inputs.ndim < 2 or inputs.shape[-1] != self.features:
            raise ValueError(
                f"`inputs` (shape {inputs.shape}) must be (batch, *spatial, features) "
                f"with `features` (={self.features})"
            )
        size = self.context_features
        if (context is None) != (size is None):
            raise TypeError(
                "`context` must be given if, and only if, the layer was built with "
                f"`context_features` (={size})"
            )
        if context is None or size is None:
            context = spatial_mean(inputs, self.dtype)
        else:
            named = "context_features", size
            context = flatten_rows("context", context, inputs.shape[:1], *named)
        given = self.coefficients(context)
        spatial = tuple(range(1, inputs.ndim - 1))
        wide = inputs.astype(widest(inputs.dtype, given.dtype))
        pieces = jnp.expand_dims(given, spatial).astype(wide.dtype)
        count = self.num_pieces
        mapped = [
            wide * pieces[..., index] + pieces[..., count + index]
            for index in range(count)
        ]
        # Of equal pieces each has its share of the gradient, as in PyTorch.
        return functools.reduce(jnp.maximum, mapped).astype(inputs.dtype)
