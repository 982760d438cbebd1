"""Dynamic convolution decomposition: no kernel is mixed, a small matrix is dynamic."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.checks import check_choice, check_dtypes
from dynconv_jax.functional.geometry import (
    Geometry,
    PaddingLike,
    positive_int,
)
from dynconv_jax.functional.numerics import scale_channels
from dynconv_jax.functional.pooling import adaptive_avg_pool
from dynconv_jax.initializers import (
    INITS,
    Init,
    kaiming_fan_out,
    torch_kernel_init,
)
from dynconv_jax.layers.convolution import Convolution
from dynconv_jax.layers.decomposition import Decomposed, Decomposition

Variant = Literal["resnet", "mobilenet_v2"]
VARIANTS = "resnet", "mobilenet_v2"


class Sizes(NamedTuple):
    """What a `DecomposedConv` pools its input to, and how wide its branches are.

    Attributes:
        pool: Into how many bins the input is pooled along each spatial dimension.
        features: How many features that gives.
        latent: L.
        hidden: s, the number of squeezed features.
    """

    pool: int
    features: int
    latent: int
    hidden: int


def decomposed_sizes(
    variant: Variant,
    in_features: int,
    out_features: int,
    *,
    rank: int = 2,
    pool: int | None = None,
    reduction: int = 16,
    min_hidden: int = 4,
) -> Sizes:
    """Returns the sizes of a `DecomposedConv`, whose arguments these are.

    Args:
        variant: Whose layer it is.
        in_features: C.
        out_features: O.
        rank: The number of spatial dimensions.
        pool: Bins along each of them; None takes those of the variant.
        reduction: How many times fewer the squeezed features are.
        min_hidden: How many there are at least.

    Example:
        >>> decomposed_sizes("mobilenet_v2", 32, 192)
        Sizes(pool=2, features=128, latent=16, hidden=16)
    """
    expands = in_features < out_features
    if pool is None:
        pool = 2 if variant == "mobilenet_v2" and expands else 1
    features = pool**rank * in_features
    if variant == "mobilenet_v2":
        ratio = 8 if expands else 2
        latent = min(features, out_features) // ratio
        while latent**2 > 2 * features:
            ratio *= 2
            latent = min(features, out_features) // ratio
        latent = max(latent, 4)
    else:
        latent = math.isqrt(features)
    hidden = max(max(features, latent**2) // reduction, min_hidden)
    return Sizes(pool, features, latent, hidden)


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


class DecomposedConv(Convolution, Decomposed):
    """A static convolution, scaled per sample, plus a dynamic low-rank 1×1 convolution.

        y = Λ(x) ⊙ (W₀ ∗ x) + P · (bn2(Φ(x) q) + q)        q = bn1(Q ∗ x)

    Q takes C channels to a latent space of L, where the matrix Φ mixes them, for every
    sample another; P takes them to O. Λ and Φ come from the pooled input, by linear
    layers. There is no kernel per sample, and no temperature. Takes the place of
    `nnx.Conv`, with its argument names, for 1, 2 or 3 spatial dimensions. Li et al.,
    "Revisiting Dynamic Convolution via Matrix Decomposition", ICLR 2021, section 3.

    In PyTorch's layout `q` and `p` of the variant `"mobilenet_v2"` are `conv_q` and
    `conv_p`.

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
        variant: Variant = "resnet",
        pool: int | None = None,
        reduction: int = 16,
        min_hidden: int = 4,
        init: Init = "default",
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
            variant: Whose layer it is, as the authors published two: `"resnet"`, whose
                L is the root of the number of pooled features, or `"mobilenet_v2"`,
                where both depend on C and O; see `decomposed_sizes`.
            pool: Into how many bins the input is pooled along each spatial dimension,
                which gives pool^rank · C features; None is 1, or with `"mobilenet_v2"`
                2 where C < O. Published ResNets have 2 in basic blocks; see
                `basic_block_options`.
            reduction: The squeezed features are max(max(pool^rank · C, L²) //
                reduction, min_hidden).
            min_hidden: How many squeezed features there are at least. Published
                bottleneck blocks have no such floor, which is to say 1.
            init: `"published"` draws the three convolutions from N(0, 2 / fan_out), and
                in `"mobilenet_v2"` the linear layers from N(0, 0.01²); `"default"` all
                as PyTorch's own layers. `kernel_init` wins over both.
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
        check_choice("variant", variant, VARIANTS)
        check_choice("init", init, INITS)
        if pool is not None:
            positive_int("pool", pool)
        positive_int("reduction", reduction)
        positive_int("min_hidden", min_hidden)
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
        self.variant = variant
        self.dtype = dtype
        sizes = decomposed_sizes(
            variant,
            in_features,
            out_features,
            rank=geometry.rank,
            pool=pool,
            reduction=reduction,
            min_hidden=min_hidden,
        )
        self.pool, latent = sizes.pool, sizes.latent
        linear: dict[str, Any] = {}
        if init == "published":
            if kernel_init is torch_kernel_init:
                kernel_init = kaiming_fan_out
            if variant == "mobilenet_v2":
                linear["kernel_init"] = nnx.initializers.normal(0.01)
        conv: dict[str, Any] = dict(
            dtype=dtype,
            precision=precision,
            kernel_init=kernel_init,
            param_dtype=param_dtype,
            rngs=rngs,
        )
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
        self._build_decomposition(
            sizes.features,
            sizes.hidden,
            latent,
            out_features,
            dtype=dtype,
            precision=precision,
            param_dtype=param_dtype,
            rngs=rngs,
            **linear,
        )

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
        scale, phi = self._decompose(self._features(flat))
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
        scale, phi = self._decompose(self._features(flat))
        latent = self.q(flat)
        self._check_values(inputs, latent)
        dynamic = self.p(self._mix(self.bn1(latent), phi))
        static = scale_channels(self.conv(flat), scale)
        if static.shape != dynamic.shape:  # one symbolic size, written in two ways
            static = self._as_sized(static, dynamic.shape)
        outputs = static + dynamic
        return outputs.reshape(*batch, *outputs.shape[1:])

    def _flatten(self, inputs: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
        flat, batch = self._flatten_batch(inputs)
        self.geometry.output_size(flat.shape[1:-1])  # refuses empty dimensions
        return flat, batch

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

    def _features(self, inputs: jax.Array) -> jax.Array:
        """Returns what Λ and Φ come from, shape (B, pool^rank · C)."""
        pooled = adaptive_avg_pool(inputs, self.pool, self.dtype)
        # In PyTorch's order: all bins of a channel side by side.
        batch, *bins = jnp.moveaxis(pooled, -1, 1).shape
        return jnp.moveaxis(pooled, -1, 1).reshape(batch, math.prod(bins))
