"""Dynamic convolution decomposition: no kernel is mixed, a small matrix is dynamic."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.activations import relu6
from dynconv_jax.functional.checks import check_dtypes
from dynconv_jax.functional.geometry import (
    Geometry,
    PaddingLike,
    positive_int,
)
from dynconv_jax.functional.numerics import scale_channels
from dynconv_jax.functional.pooling import adaptive_avg_pool
from dynconv_jax.gating import record_attention
from dynconv_jax.initializers import torch_kernel_init, torch_linear
from dynconv_jax.layers.batch_norm import BatchNorm
from dynconv_jax.layers.convolution import Convolution


class Decomposition(NamedTuple):
    """What a `DecomposedConv` makes of an input.

    Attributes:
        scale: Λ, shape (B, O), the weights of the static outputs, from 0 to 2.
        phi: Φ, shape (B, L, L), what mixes the latent channels.
    """

    scale: jax.Array
    phi: jax.Array


def _hard_gate(logits: jax.Array) -> jax.Array:
    """From 0 to 2, and 1 at 0: twice the hard sigmoid."""
    return relu6(logits + 3) / 3


class SqueezeGate(nnx.Module):
    """Features times the gates that a linear layer computes from them.

    Attributes:
        fc: The linear layer, in a sequence as checkpoints have it.
    """

    def __init__(self, features: int, **options):
        """Builds the layer; the options are those of `nnx.Linear`."""
        self.fc = nnx.Sequential(torch_linear(features, features, **options))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns gated features (B, s)."""
        return inputs * _hard_gate(self.fc(inputs))


def check_latent_size(geometry: Geometry) -> None:
    """Refuses padding with which convolution and latent branch differ in size."""
    totals = tuple(extent - 1 for extent in geometry.extent)
    if geometry.padding == "SAME":
        return
    pads = geometry.pads(geometry.extent)
    if tuple(low + high for low, high in pads) != totals:
        raise ValueError(
            f"`padding` (={geometry.padding!r}) must add {totals} pixels, low and high "
            f"together, for `kernel_size` (={geometry.kernel_size}) with "
            f"`kernel_dilation` (={geometry.kernel_dilation}): the output is added to "
            "that of a 1×1 convolution, which has the size of the input; use 'SAME', "
            "or (kernel_size - 1) / 2 · kernel_dilation"
        )


class DecomposedConv(Convolution):
    """A static convolution, scaled per sample, plus a dynamic low-rank 1×1 convolution.

        y = Λ(x) ⊙ (W₀ ∗ x) + P · (bn2(Φ(x) q) + q)        q = bn1(Q ∗ x)

    Q takes C channels to a latent space of L, where the matrix Φ mixes them, for every
    sample another; P takes them to O. Λ and Φ come from the pooled input, by linear
    layers. There is no kernel per sample, and no temperature. Takes the place of
    `nnx.Conv`, with its argument names, for 1, 2 or 3 spatial dimensions. Li et al.,
    "Revisiting Dynamic Convolution via Matrix Decomposition", ICLR 2021, section 3.

    Attributes:
        conv: The static convolution W₀; `q` and `p` are the 1×1 convolutions.
        bn1: The norm of the latent; `bn2` is that of the mixed latent.
        fc: From the pooled input to the squeezed features; `fc_phi` and `fc_scale` take
            them to Φ and to the logits of Λ.
        basic_block_options: The options of the layer in the basic blocks of a ResNet,
            of two 3×3 convolutions; networks pass them.

    Example:
        >>> layer = DecomposedConv(4, 8, (3, 3), 2, padding=1, rngs=nnx.Rngs(0))
        >>> images = jnp.ones((2, 9, 7, 4))
        >>> layer(images).shape
        (2, 5, 4, 8)
        >>> layer.decomposition(images).phi.shape
        (2, 2, 2)
    """

    basic_block_options: ClassVar[Mapping[str, Any]] = {"pool": 2}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        padding: PaddingLike = "SAME",
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = False,
        pool: int = 1,
        reduction: int = 16,
        min_hidden: int = 4,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer = torch_kernel_init,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
            in_features: C, the number of input channels.
            out_features: O, the number of output channels.
            kernel_size: A tuple of 1, 2 or 3 ints; its length is the rank.
            strides: An int, or one per spatial dimension.
            padding: `"SAME"`, or whatever gives the output the size of a 1×1
                convolution, such as (kernel_size - 1) / 2 · kernel_dilation.
            kernel_dilation: An int, or one per spatial dimension.
            feature_group_count: g of the static convolution; it must divide C and O.
            use_bias: Whether P has a bias; published layers have none.
            pool: Into how many bins the input is pooled along each spatial dimension.
                Published networks have 2 in basic blocks and 1 elsewhere; see
                `basic_block_options`. The pooled features are pool^rank · C, and L is
                the root of their number.
            reduction: The squeezed features are max(pool^rank · C // reduction,
                min_hidden).
            min_hidden: How many squeezed features there are at least.
            dtype: The dtype of the computation; None infers it from the input and the
                parameters. Λ and Φ are computed in float32 at least.
            param_dtype: The dtype of the parameters.
            precision: As in `jax.lax.conv_general_dilated`.
            kernel_init: Initialises the kernels of the three convolutions.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If an argument is of the wrong kind, such as a bare int as
                `kernel_size`.
            ValueError: If a value is out of range or does not fit the others.
        """
        self.geometry = geometry = Geometry.create(
            in_features,
            out_features,
            kernel_size,
            strides=strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
        )
        check_latent_size(geometry)
        self._take_geometry(geometry)
        self.pool = positive_int("pool", pool)
        positive_int("reduction", reduction)
        positive_int("min_hidden", min_hidden)
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
        self.dtype = dtype
        self.precision = precision
        pooled_features = self.pool**geometry.rank * in_features
        latent = math.isqrt(pooled_features)
        hidden = max(pooled_features // reduction, min_hidden)
        shared: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
        conv: dict[str, Any] = dict(
            dtype=dtype,
            precision=precision,
            kernel_init=kernel_init,
            **shared,
        )
        linear: dict[str, Any] = dict(use_bias=False, precision=precision, **shared)
        point = (1,) * geometry.rank

        self.conv = nnx.Conv(
            in_features,
            out_features,
            geometry.kernel_size,
            geometry.strides,
            padding=geometry.padding,
            kernel_dilation=geometry.kernel_dilation,
            feature_group_count=geometry.feature_group_count,
            use_bias=False,
            **conv,
        )
        self.q = nnx.Conv(
            in_features, latent, point, geometry.strides, use_bias=False, **conv
        )
        self.p = nnx.Conv(latent, out_features, point, use_bias=use_bias, **conv)
        self.bn1 = BatchNorm(latent, dtype=dtype, **shared)
        self.bn2 = BatchNorm(latent, dtype=dtype, **shared)
        self.fc = nnx.Sequential(
            torch_linear(pooled_features, hidden, **linear),
            SqueezeGate(hidden, **linear),
        )
        self.fc_phi = torch_linear(hidden, latent * latent, **linear)
        self.fc_scale = torch_linear(hidden, out_features, **linear)

    def decomposition(self, inputs: jax.Array) -> Decomposition:
        """Returns Λ and Φ.

        Args:
            inputs: Shape (*batch, *S, C).

        Returns:
            Shapes (*batch, O) and (*batch, L, L).

        Raises:
            ValueError: If the inputs do not fit the layer.
        """
        flat, batch = self._flatten(inputs)
        scale, phi = self._decompose(flat)
        return Decomposition(
            scale.reshape(*batch, *scale.shape[1:]),
            phi.reshape(*batch, *phi.shape[1:]),
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: Shape (*batch, *S, C), with any number of batch dimensions, also
                none.

        Returns:
            Shape (*batch, *S_out, O).

        Raises:
            ValueError: If the inputs do not fit the layer.
        """
        flat, batch = self._flatten(inputs)
        scale, phi = self._decompose(flat)
        latent = self.q(flat)
        self._check_values(inputs, latent)
        latent = self.bn1(latent)
        # In the dtype of Φ: in float16 it would overflow before the norm shrinks it.
        mixed = jnp.einsum(
            "b...j,bij->b...i",
            latent.astype(phi.dtype),
            phi,
            precision=self.precision,
        )
        dynamic = self.p(self.bn2(mixed).astype(latent.dtype) + latent)
        static = scale_channels(self.conv(flat), scale)
        if static.shape != dynamic.shape:  # one symbolic size, written in two ways
            static = self._as_sized(static, dynamic.shape)
        outputs = static + dynamic
        return outputs.reshape(*batch, *outputs.shape[1:])

    def _flatten(self, inputs: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
        flat, batch = self._flatten_batch(inputs)
        self.geometry.output_size(flat.shape[1:-1])  # refuses empty dimensions
        return flat, batch

    def _check_values(self, inputs: jax.Array, latent: jax.Array) -> None:
        sizes = latent.shape[:-1]
        is_one = all(isinstance(size, int) and size == 1 for size in sizes)
        # Over a mapped axis there are more values than are seen here.
        is_alone = is_one and self.bn1.axis_name is None
        if is_alone and not self.bn1.use_running_average:
            raise ValueError(
                f"`inputs` (shape {inputs.shape}) gives the batch norms of the layer "
                "one value per channel, whose variance is not defined in training; "
                "train with a larger batch or larger inputs, or put the layer in "
                "evaluation mode"
            )

    def _as_sized(self, static: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns an array of a symbolic shape under another name for that shape."""
        try:
            return lax.slice(static, (0,) * static.ndim, shape)
        except jax.errors.InconclusiveDimensionOperation:
            pads = tuple((0, extent - 1) for extent in self.geometry.extent)
            raise ValueError(
                f"`padding` (={self.padding!r}) with `strides` (={self.strides}) gives "
                f"the symbolic sizes {static.shape} and {shape}, which JAX cannot see "
                f"to be the same; give the padding in numbers, such as {pads}"
            ) from None

    def _decompose(self, inputs: jax.Array) -> Decomposition:
        pooled = adaptive_avg_pool(inputs, self.pool, self.dtype)
        # In PyTorch's order: all bins of a channel side by side.
        batch, *bins = jnp.moveaxis(pooled, -1, 1).shape
        features = jnp.moveaxis(pooled, -1, 1).reshape(batch, math.prod(bins))
        hidden = self.fc(features)
        phi = self.fc_phi(hidden)
        latent = math.isqrt(phi.shape[-1])
        scale = _hard_gate(self.fc_scale(hidden))
        phi = phi.reshape(batch, latent, latent)
        record_attention(self, scale, "scale")
        record_attention(self, phi, "phi")
        return Decomposition(scale, phi)
