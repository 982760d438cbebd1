"""The context generator of DyMN: one look at an input steers all layers of a block."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.activations import hard_swish
from dynconv_jax.functional.checks import check_dtypes
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.functional.pooling import axis_means
from dynconv_jax.initializers import kaiming_fan_out
from dynconv_jax.layers.batch_norm import BatchNorm
from dynconv_jax.layers.coordinate_attention import check_plane
from dynconv_jax.layers.pooled_linear import PooledLinear


class Context(NamedTuple):
    """What a `ContextGenerator` answers, in float32 at least.

    Attributes:
        vector: Shape (B, H), for `ContextConv` and `DynamicReLU`.
        rows: Shape (B, F', 1, O), logits for each frequency, for `CoordinateGate`.
        columns: Shape (B, 1, T', O), logits for each point in time.
    """

    vector: jax.Array
    rows: jax.Array
    columns: jax.Array


class ContextGenerator(nnx.Module):
    """Means over time and over frequency, made into a context and into gates.

        s = hard_swish(joint_norm(joint_conv(means over time, then over frequency)))
        vector = mean of s                        (B, H)
        rows = conv_f(pool(s of the frequencies))
        columns = conv_t(pool(s of the time))

    An input is (B, F, T, C), as a spectrogram is; of an image, rows and columns. With
    strides of 2 or more the sequences are averaged over windows of 3, so that they fit
    what a convolution with these strides answers. A batch of one trains: the norm is
    over the sequences too. Schmid et al., "Dynamic Convolutional Neural Networks as
    Efficient Pre-trained Audio Models", TASLP 2024, on context generation.

    Attributes:
        joint_conv: The linear layer C → H, without bias; `joint_norm` follows.
        conv_f: The linear layer H → O of the frequencies.
        conv_t: That of the time.

    Example:
        >>> generate = ContextGenerator(4, 16, 8, strides=2, rngs=nnx.Rngs(0))
        >>> vector, rows, columns = generate(jnp.ones((2, 9, 7, 4)))
        >>> vector.shape, rows.shape, columns.shape
        ((2, 16), (2, 5, 1, 8), (2, 1, 4, 8))
    """

    def __init__(
        self,
        in_features: int,
        context_features: int,
        out_features: int,
        *,
        strides: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
            in_features: C, the number of input channels.
            context_features: H, the number of features of the context.
            out_features: O, the number of channels that the gates are for.
            strides: The step between the windows of the gates, along both axes.
            dtype: The dtype of the computation, raised to float32 where it is narrower;
                None infers it.
            param_dtype: The dtype of the parameters.
            precision: As in `jax.lax.dot_general`.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        self.in_features = positive_int("in_features", in_features)
        self.strides = positive_int("strides", strides)
        positive_int("context_features", context_features)
        positive_int("out_features", out_features)
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
        self.dtype = dtype
        shared: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
        linear: dict[str, Any] = dict(
            rank=2, precision=precision, kernel_init=kaiming_fan_out, **shared
        )
        self.joint_conv = PooledLinear(
            in_features, context_features, use_bias=False, **linear
        )
        self.joint_norm = BatchNorm(
            context_features, epsilon=1e-3, momentum=0.99, **shared
        )
        self.conv_f = PooledLinear(context_features, out_features, **linear)
        self.conv_t = PooledLinear(context_features, out_features, **linear)

    def __call__(self, inputs: jax.Array) -> Context:
        """Returns the context of inputs (B, F, T, C).

        Raises:
            ValueError: If the inputs do not fit the layer.
        """
        check_plane(inputs, self.in_features)
        means = axis_means(inputs, self.dtype)
        hidden = hard_swish(self.joint_norm(self.joint_conv(means)))
        height = inputs.shape[1]
        rows, columns = hidden[:, :height], hidden[:, height:]
        if self.strides > 1:
            rows, columns = self._pool(rows), self._pool(columns)
        return Context(
            vector=hidden.mean(axis=1),
            rows=self.conv_f(rows)[:, :, None],
            columns=self.conv_t(columns)[:, None],
        )

    def _pool(self, sequence: jax.Array) -> jax.Array:
        """Averages windows of three; what is beyond the ends counts as 0."""
        sums = lax.reduce_window(
            sequence,
            np.zeros((), sequence.dtype),
            lax.add,
            window_dimensions=(1, 3, 1),
            window_strides=(1, self.strides, 1),
            padding=((0, 0), (1, 1), (0, 0)),
        )
        return sums / 3
