"""Batch normalisation that keeps PyTorch's running statistics."""

import math
from numbers import Real
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import PromoteDtypeFn
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.batch_statistics import batch_statistics
from dynconv_jax.functional.checks import check_arrays, check_dtypes
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.functional.numerics import at_least_float32

Arrays = TypeVar("Arrays", bound=tuple)


def _promote_to_float32_at_least(
    arrays: Arrays, /, *, dtype: Any = None, inexact: bool = True
) -> Arrays:
    # As `promote_to_widest`: who promotes nothing unasked still has float32 here.
    with jax.numpy_dtype_promotion("standard"):
        dtype = at_least_float32(
            dtypes.canonicalize_dtype(*arrays, dtype=dtype, inexact=inexact)
        )
        return dtypes.promote_dtype(arrays, dtype=dtype, inexact=inexact)


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

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range.
        """
        positive_int("num_features", num_features)
        for name, value, top in (("momentum", momentum, 1), ("epsilon", epsilon, 1e38)):
            is_number = isinstance(value, Real) and 0 <= value <= top
            if not is_number and not isinstance(value, jax.Array):
                raise ValueError(
                    f"`{name}` (={value!r}) must be a number in [0, {top:g}]"
                )
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
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
            TypeError: If `x` is no array.
            ValueError: If `x` has another number of features; in training, if there is
                one value per channel: its variance is not defined.
        """
        check_arrays(x=x)
        x = jnp.asarray(x)
        if use_running_average is None:
            use_running_average = self.use_running_average
        features = {axis % x.ndim for axis in jax.tree.leaves(self.axis)}
        shape = tuple(x.shape[axis] for axis in sorted(features))
        if len(shape) == 1 and shape != (self.num_features,):
            raise ValueError(
                f"`x` (shape {x.shape}) must have `num_features` "
                f"(={self.num_features}) on its axis {self.axis}"
            )
        reduced = tuple(axis for axis in range(x.ndim) if axis not in features)
        affine = [None if v is None else v[...] for v in (self.scale, self.bias)]
        # The statistics are wide; the result is not to become so by them.
        with jax.numpy_dtype_promotion("standard"):
            dtype = dtypes.canonicalize_dtype(x, *affine, dtype=self.dtype)
        wide, mean, var, scale, bias = self.promote_dtype(
            (x, self.mean[...], self.var[...], *affine), dtype=self.dtype
        )
        if not use_running_average:
            count = self._count(x, reduced, mask)
            mean, var = self._statistics(wide, reduced, mask, count)
            # n / (n - 1), with no division by zero where the mask leaves one value
            unbiased = var + var / jnp.maximum(count - 1, 1).astype(var.dtype)
            for running, new in ((self.mean, mean), (self.var, unbiased)):
                if isinstance(count, int) and count == 0:
                    continue  # an empty batch has no statistics to learn from
                new = lax.stop_gradient(new).astype(running[...].dtype)
                new = self.momentum * running[...] + (1 - self.momentum) * new
                if mask is not None:  # which may leave nothing of a channel
                    new = jnp.where(count == 0, running[...], new)
                # Not `running[...] =`, which looks through all that was traced before.
                running.set_value(new)
            self.num_batches_tracked.set_value(self.num_batches_tracked[...] + 1)
        # Not `wide * multiplier + (bias - mean * multiplier)`, which loses digits where
        # the mean is far from zero.
        multiplier = lax.rsqrt(var + self.epsilon)
        if scale is not None:
            multiplier = multiplier * scale
        outputs = wide - jnp.expand_dims(mean, reduced)
        outputs = outputs * jnp.expand_dims(multiplier, reduced)
        if bias is not None:
            outputs = outputs + jnp.expand_dims(bias, reduced)
        return outputs.astype(dtype)

    def _count(
        self, x: jax.Array, reduced: tuple[int, ...], mask: jax.Array | None
    ) -> int | jax.Array:
        """Returns how many values of a channel count."""
        if mask is None:
            count = math.prod(x.shape[axis] for axis in reduced)
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
        return count

    def _statistics(
        self,
        x: jax.Array,
        reduced: tuple[int, ...],
        mask: jax.Array | None,
        count: int | jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the mean and the biased variance of every channel.

        Both are 0 where nothing counts: NaN would reach the gradient of the scale.
        """
        is_whole = mask is None and self.axis_name is None and 0 in reduced
        is_known = all(isinstance(size, int) and size > 0 for size in x.shape)
        if is_whole and is_known and not self.use_fast_variance:
            return batch_statistics(x, reduced)
        divisor = jnp.maximum(count, 1).astype(x.dtype)

        def mean_of(values: jax.Array) -> jax.Array:
            total = values.sum(reduced, where=mask)
            if self.axis_name is not None:
                total = lax.psum(
                    total, self.axis_name, axis_index_groups=self.axis_index_groups
                )
            return total / divisor

        mean = mean_of(x)
        if self.use_fast_variance:
            return mean, jnp.maximum(mean_of(lax.square(x)) - lax.square(mean), 0)
        return mean, mean_of(lax.square(x - jnp.expand_dims(mean, reduced)))
