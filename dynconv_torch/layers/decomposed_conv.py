"""Dynamic convolution decomposition: no kernel is mixed, a small matrix is dynamic."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice, check_dtype
from dynconv_torch.functional.geometry import (
    Geometry,
    PaddingLike,
    positive_int,
)
from dynconv_torch.functional.numerics import (
    check_same_dtype,
    dtypes_of,
    scale_channels,
    without_autocast,
)
from dynconv_torch.functional.pooling import adaptive_avg_pool
from dynconv_torch.functional.tracing import sizes_of
from dynconv_torch.initializers import INITS, Init
from dynconv_torch.layers.convolution import ConvolutionNd
from dynconv_torch.layers.decomposition import Decomposed, Decomposition
from dynconv_torch.layers.same_conv import PaddedConv1d, PaddedConv2d, PaddedConv3d

Variant = Literal["resnet", "mobilenet_v2"]
VARIANTS = "resnet", "mobilenet_v2"


class Sizes(NamedTuple):
    """What a `DecomposedConv2d` pools its input to, and how wide its branches are.

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
    in_channels: int,
    out_channels: int,
    *,
    rank: int = 2,
    pool: int | None = None,
    reduction: int = 16,
    min_hidden: int = 4,
) -> Sizes:
    """Returns the sizes of a `DecomposedConv2d`, whose arguments these are.

    Args:
        variant: Whose layer it is.
        in_channels: C.
        out_channels: O.
        rank: The number of spatial dimensions.
        pool: Bins along each of them; None takes those of the variant.
        reduction: How many times fewer the squeezed features are.
        min_hidden: How many there are at least.

    Example:
        >>> decomposed_sizes("mobilenet_v2", 32, 192)
        Sizes(pool=2, features=128, latent=16, hidden=16)
    """
    expands = in_channels < out_channels
    if pool is None:
        pool = 2 if variant == "mobilenet_v2" and expands else 1
    features = pool**rank * in_channels
    if variant == "mobilenet_v2":
        ratio = 8 if expands else 2
        latent = min(features, out_channels) // ratio
        while latent**2 > 2 * features:
            ratio *= 2
            latent = min(features, out_channels) // ratio
        latent = max(latent, 4)
    else:
        latent = math.isqrt(features)
    hidden = max(max(features, latent**2) // reduction, min_hidden)
    return Sizes(pool, features, latent, hidden)


def check_latent_size(geometry: Geometry) -> None:
    """Refuses padding with which convolution and latent branch differ in size."""
    totals = tuple(extent - 1 for extent in geometry.extent)
    if geometry.padding == "tf_same":
        return
    pads = geometry.pads(geometry.extent)
    if tuple(low + high for low, high in pads) != totals:
        raise ValueError(
            f"`padding` (={geometry.padding}) must add {totals} pixels, low and high "
            f"together, for `kernel_size` (={geometry.kernel_size}) with `dilation` "
            f"(={geometry.dilation}): the output is added to that of a 1×1 "
            "convolution, which has the size of the input; use 'tf_same', or "
            "(kernel_size - 1) / 2 · dilation"
        )


class DecomposedConvNd(ConvolutionNd, Decomposed):
    """What the decomposed convolutions of all ranks share."""

    basic_block_options: ClassVar[Mapping[str, Any]] = {"pool": 2}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: PaddingLike = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
        pool: int | None = None,
        reduction: int = 16,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        min_hidden: int = 4,
        variant: Variant = "resnet",
        init: Init = "default",
    ):
        """Builds the layer.

        Args:
            in_channels: C, the number of input channels.
            out_channels: O, the number of output channels.
            kernel_size: An int, or one per spatial dimension.
            stride: An int, or one per spatial dimension.
            padding: `"tf_same"`, or whatever gives the output the size of a 1×1
                convolution, such as (kernel_size - 1) / 2 · dilation, or, with a stride
                of 1, `"same"`.
            dilation: An int, or one per spatial dimension.
            groups: g of the static convolution; it must divide C and O.
            bias: Whether P has a bias; published layers have none.
            pool: Into how many bins the input is pooled along each spatial dimension,
                which gives pool^rank · C features; None is 1, or with the variant
                `"mobilenet_v2"` 2 where C < O. Published ResNets have 2 in basic
                blocks; see `basic_block_options`.
            reduction: The squeezed features are max(max(pool^rank · C, L²) //
                reduction, min_hidden).
            device: Where the parameters are.
            dtype: The dtype of the parameters. Λ and Φ are computed in float32 at
                least.
            min_hidden: How many squeezed features there are at least. Published
                bottleneck blocks have no such floor, which is to say 1.
            variant: Whose layer it is, as the authors published two: `"resnet"`, whose
                L is the root of the number of pooled features, or `"mobilenet_v2"`,
                where both depend on C and O (see `decomposed_sizes`) and Q and P are
                `conv_q` and `conv_p`.
            init: `"published"` draws the three convolutions from N(0, 2 / fan_out), and
                in `"mobilenet_v2"` the linear layers from N(0, 0.01²); `"default"` all
                as PyTorch's own layers.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range or does not fit the others.
        """
        super().__init__()
        self.geometry = geometry = Geometry.create(
            in_channels,
            out_channels,
            kernel_size,
            rank=self.rank,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        check_latent_size(geometry)
        self.take_geometry(geometry)
        check_choice("variant", variant, VARIANTS)
        check_choice("init", init, INITS)
        if pool is not None:
            positive_int("pool", pool)
        positive_int("reduction", reduction)
        positive_int("min_hidden", min_hidden)
        check_dtype(dtype)
        self.variant = variant
        sizes = decomposed_sizes(
            variant,
            in_channels,
            out_channels,
            rank=self.rank,
            pool=pool,
            reduction=reduction,
            min_hidden=min_hidden,
        )
        self.pool = sizes.pool
        shared: dict[str, Any] = dict(device=device, dtype=dtype)
        static: dict[str, Any] = dict(bias=False, **shared)
        conv_cls: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.rank - 1]
        padded_cls: Any = (PaddedConv1d, PaddedConv2d, PaddedConv3d)[self.rank - 1]
        norm_cls: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[self.rank - 1]

        pairs = geometry.padding
        if isinstance(pairs, str) or any(not 0 <= low == high for low, high in pairs):
            self.conv = padded_cls(geometry, **static)
        else:
            self.conv = conv_cls(
                in_channels,
                out_channels,
                geometry.kernel_size,
                geometry.stride,
                tuple(low for low, _ in pairs),
                geometry.dilation,
                groups,
                **static,
            )
        q = conv_cls(in_channels, sizes.latent, 1, geometry.stride, **static)
        p = conv_cls(sizes.latent, out_channels, 1, bias=bias, **shared)
        for name, each in zip(self.latent_names, (q, p), strict=True):
            self.add_module(name, each)
        self.build_decomposition(
            sizes.features, sizes.hidden, sizes.latent, out_channels, norm_cls, **shared
        )
        if init == "published":
            self._draw_as_published()

    def _draw_as_published(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                fan_out = math.prod(part.kernel_size) * part.out_channels
                nn.init.normal_(part.weight, std=(2 / fan_out) ** 0.5)
            elif isinstance(part, nn.Linear) and self.variant == "mobilenet_v2":
                nn.init.normal_(part.weight, std=0.01)

    @property
    def latent_names(self) -> tuple[str, str]:
        """The names of Q and P."""
        return ("conv_q", "conv_p") if self.variant == "mobilenet_v2" else ("q", "p")

    def decomposition(self, x: Tensor) -> Decomposition:
        """Returns Λ and Φ.

        Args:
            x: Shape (B, C, *S), or (C, *S).

        Returns:
            Shapes (B, O) and (B, L, L), or the same without B.

        Raises:
            ValueError: If the input does not fit the layer.
        """
        if self._is_unbatched(x):
            return Decomposition(*(each[0] for each in self.decomposition(x[None])))
        return self.decompose(self._features(x))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            x: Shape (B, C, *S), or (C, *S) for one sample without a batch.

        Returns:
            Shape (B, O, *S_out), or (O, *S_out).

        Raises:
            ValueError: If the input does not fit the layer.
        """
        if self._is_unbatched(x):
            return self.forward(x[None])[0]
        check_same_dtype("x", x, "weight", *dtypes_of(self.conv))
        q, p = (getattr(self, name) for name in self.latent_names)
        scale, phi = self.decompose(self._features(x))
        latent = q(x)
        self.check_values(x, latent)
        latent = self.bn1(latent)
        dynamic = p(self.mix(latent.flatten(2), phi).reshape(latent.shape))
        return scale_channels(self.conv(x), scale) + dynamic

    def _is_unbatched(self, x: Tensor) -> bool:
        answer = self.is_unbatched(x)
        self.geometry.output_size(sizes_of(x)[-self.rank :])  # refuses empty dimensions
        return answer

    def _features(self, x: Tensor) -> Tensor:
        """Returns what Λ and Φ come from, shape (B, pool^rank · C)."""
        with without_autocast(x.device):
            pooled = adaptive_avg_pool(x, self.pool, *self.gate_dtypes())
        return pooled.flatten(1)

    def extra_repr(self) -> str:
        """Returns the arguments of the layer, for its `repr`."""
        return f"padding={self.geometry.padding}, pool={self.pool}"


class DecomposedConv1d(DecomposedConvNd):
    """A 1-D static convolution plus a dynamic low-rank one; see `DecomposedConv2d`.

    Example:
        >>> DecomposedConv1d(3, 8, 3, padding="same")(torch.ones(2, 3, 10)).shape
        torch.Size([2, 8, 10])
    """

    rank = 1


class DecomposedConv2d(DecomposedConvNd):
    """A static convolution, scaled per sample, plus a dynamic low-rank 1×1 convolution.

        y = Λ(x) ⊙ (W₀ ∗ x) + P · (bn2(Φ(x) q) + q)        q = bn1(Q ∗ x)

    Q takes C channels to a latent space of L, where the matrix Φ mixes them, for every
    sample another; P takes them to O. Λ and Φ come from the pooled input, by linear
    layers. There is no kernel per sample, and no temperature. Takes the place of
    `torch.nn.Conv2d`, with its argument names. Li et al., "Revisiting Dynamic
    Convolution via Matrix Decomposition", ICLR 2021, section 3.

    Attributes:
        conv: The static convolution W₀; `q` and `p` are the 1×1 convolutions.
        bn1: The norm of the latent; `bn2` is that of the mixed latent.
        fc: From the pooled input to the squeezed features; `fc_phi` and `fc_scale` take
            them to Φ and to the logits of Λ.
        basic_block_options: The options of the layer in the basic blocks of a ResNet,
            of two 3×3 convolutions; networks pass them.

    Example:
        >>> layer = DecomposedConv2d(4, 8, 3, 2, padding=1)
        >>> images = torch.ones(2, 4, 9, 7)
        >>> layer(images).shape
        torch.Size([2, 8, 5, 4])
        >>> layer.decomposition(images).phi.shape
        torch.Size([2, 2, 2])
    """

    rank = 2


class DecomposedConv3d(DecomposedConvNd):
    """A 3-D static convolution plus a dynamic low-rank one; see `DecomposedConv2d`.

    Example:
        >>> DecomposedConv3d(3, 8, 1, stride=2)(torch.ones(2, 3, 4, 4, 4)).shape
        torch.Size([2, 8, 2, 2, 2])
    """

    rank = 3
