"""Batch normalisation that keeps PyTorch's running statistics."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import PromoteDtypeFn
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.routing import at_least_float32

Arrays = TypeVar("Arrays", bound=tuple)


def _promote_to_float32_at_least(
    arrays: Arrays, /, *, dtype: Any = None, inexact: bool = True
) -> Arrays:
    dtype = dtypes.canonicalize_dtype(*arrays, dtype=dtype, inexact=inexact)
    return dtypes.promote_dtype(arrays, dtype=at_least_float32(dtype), inexact=inexact)


class BatchNorm(nnx.BatchNorm):
    """`nnx.BatchNorm` with the running statistics of `torch.nn.BatchNorm2d`.

    It differs from its parent in what PyTorch does otherwise: the running variance is
    the unbiased one (n / (n − 1) times the variance that normalises the batch),
    momentum is 0.9 (PyTorch writes 1 − 0.9), the training batches are counted, and a
    batch of one value per channel is refused. Statistics are computed in two passes,
    not as E[x²] − E[x]², and in float32 at least, also when `dtype` is narrower.

    Ioffe & Szegedy, "Batch Normalization", ICML 2015, algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> norm = BatchNorm(3, rngs=nnx.Rngs(0))
        >>> norm(jnp.arange(24.0).reshape(2, 4, 3)).shape
        (2, 4, 3)
        >>> int(norm.num_batches_tracked[...])
        1
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_fast_variance: bool = False,
        promote_dtype: PromoteDtypeFn = _promote_to_float32_at_least,
        rngs: nnx.Rngs,
        **options,
    ):
        """Builds the layer; the arguments are those of `nnx.BatchNorm`.

        Args:
            num_features: The number of channels.
            momentum: The share of the running statistics that an update keeps.
            epsilon: Added to the variance before the root.
            dtype: The dtype of the result; None infers it from the input, scale and
                bias.
            param_dtype: The dtype of scale and bias; the running statistics have it
                too, raised to float32 where it is narrower.
            use_fast_variance: Compute the variance as E[x²] − E[x]².
            promote_dtype: As in `nnx.BatchNorm`.
            rngs: Where the initial parameters come from.
            **options: Passed on to `nnx.BatchNorm`.
        """
        super().__init__(
            num_features,
            momentum=momentum,
            epsilon=epsilon,
            dtype=dtype,
            param_dtype=param_dtype,
            use_fast_variance=use_fast_variance,
            promote_dtype=promote_dtype,
            rngs=rngs,
            **options,
        )
        stat_dtype = at_least_float32(param_dtype)
        for statistic in (self.mean, self.var):  # the parent holds float32
            statistic.set_value(statistic[...].astype(stat_dtype))
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalises `x`, and in training updates the running statistics.

        Args:
            x: Shape (..., num_features), or with the features on `axis`.
            use_running_average: Normalise by the running statistics, as in evaluation;
                None takes what the layer is set to.
            mask: Broadcastable to `x`; only where it is true do values count.

        Returns:
            The shape of `x`.

        Raises:
            ValueError: In training, if there is one value per channel: its variance is
                not defined.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average:
            return self._normalise(x, True, mask)

        axes = {axis % x.ndim for axis in jax.tree.leaves(self.axis)}
        reduced = tuple(axis for axis in range(x.ndim) if axis not in axes)
        if mask is None:
            count = 1
            for axis in reduced:
                count *= x.shape[axis]
        else:
            count = jnp.broadcast_to(mask, x.shape).sum(reduced)
        if self.axis_name is not None:
            count = lax.psum(
                count, self.axis_name, axis_index_groups=self.axis_index_groups
            )
        if isinstance(count, int) and count == 1:
            raise ValueError(
                f"`x` (shape {x.shape}) has one value per channel, whose variance is "
                "not defined; train with a larger batch, or pass "
                "`use_running_average=True`"
            )
        before = self.var[...]
        outputs = self._normalise(x, False, mask)
        # The parent moved the variance by (1 - momentum) times the biased one, b; with
        # the unbiased one, b + b / (n - 1), it moves by this much more.
        moved = self.var[...] - self.momentum * before
        more = lax.stop_gradient(moved / jnp.maximum(count - 1, 1))
        self.var[...] += more.astype(before.dtype)
        self.num_batches_tracked[...] += 1
        return outputs

    def _normalise(
        self, x: jax.Array, use_running_average: bool, mask: jax.Array | None
    ) -> jax.Array:
        # The statistics are wide; the result is not to become so by them.
        affine = [v[...] for v in (self.scale, self.bias) if v is not None]
        dtype = dtypes.canonicalize_dtype(x, *affine, dtype=self.dtype)
        outputs = super().__call__(x, use_running_average, mask=mask)
        return outputs.astype(dtype)
