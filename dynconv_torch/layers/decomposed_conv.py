"""Dynamic convolution decomposition: no kernel is mixed, a small matrix is dynamic."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_dtype
from dynconv_torch.functional.geometry import (
    Geometry,
    PaddingLike,
    positive_int,
)
from dynconv_torch.functional.numerics import (
    call_wide,
    dtypes_of,
    scale_channels,
    without_autocast,
)
from dynconv_torch.functional.pooling import adaptive_avg_pool
from dynconv_torch.functional.tracing import has_open_size, sizes_of
from dynconv_torch.layers.convolution import ConvolutionNd
from dynconv_torch.layers.same_conv import PaddedConv1d, PaddedConv2d, PaddedConv3d


class Decomposition(NamedTuple):
    """What a `DecomposedConv2d` makes of an input.

    Attributes:
        scale: Λ, shape (B, O), the weights of the static outputs, from 0 to 2.
        phi: Φ, shape (B, L, L), what mixes the latent channels.
    """

    scale: Tensor
    phi: Tensor


def _hard_gate(logits: Tensor) -> Tensor:
    """From 0 to 2, and 1 at 0: twice the hard sigmoid."""
    return F.relu6(logits + 3) / 3


class SqueezeGate(nn.Module):
    """Features times the gates that a linear layer computes from them.

    Attributes:
        fc: The linear layer, in a sequence as checkpoints have it.
    """

    def __init__(self, features: int, **options):
        """Builds the layer; the options are those of `torch.nn.Linear`."""
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(features, features, **options))

    def forward(self, x: Tensor) -> Tensor:
        """Returns gated features (B, s)."""
        return x * _hard_gate(self.fc(x))


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


class DecomposedConvNd(ConvolutionNd):
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
        pool: int = 1,
        reduction: int = 16,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        min_hidden: int = 4,
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
            pool: Into how many bins the input is pooled along each spatial dimension.
                Published networks have 2 in basic blocks and 1 elsewhere; see
                `basic_block_options`. The pooled features are pool^rank · C, and L is
                the root of their number.
            reduction: The squeezed features are max(pool^rank · C // reduction,
                min_hidden).
            device: Where the parameters are.
            dtype: The dtype of the parameters. Λ and Φ are computed in float32 at
                least.
            min_hidden: How many squeezed features there are at least.

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
        self.pool = positive_int("pool", pool)
        positive_int("reduction", reduction)
        positive_int("min_hidden", min_hidden)
        check_dtype(dtype)
        pooled_channels = self.pool**self.rank * in_channels
        self.latent_channels = latent = math.isqrt(pooled_channels)
        hidden = max(pooled_channels // reduction, min_hidden)
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
        self.q = conv_cls(in_channels, latent, 1, geometry.stride, **static)
        self.p = conv_cls(latent, out_channels, 1, bias=bias, **shared)
        self.bn1 = norm_cls(latent, **shared)
        self.bn2 = nn.BatchNorm1d(latent, **shared)
        self.fc = nn.Sequential(
            nn.Linear(pooled_channels, hidden, **static), SqueezeGate(hidden, **static)
        )
        self.fc_phi = nn.Linear(hidden, latent * latent, **static)
        self.fc_scale = nn.Linear(hidden, out_channels, **static)

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
            return Decomposition(*(each[0] for each in self._decompose(x[None])))
        return self._decompose(x)

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
        scale, phi = self._decompose(x)
        latent = self.q(x)
        self._check_values(x, latent)
        latent = self.bn1(latent)
        pixels = latent.flatten(2)
        # In the dtype of Φ: in float16 it would overflow before the norm shrinks it.
        with without_autocast(x.device):
            mixed = call_wide(self.bn2, phi @ pixels.to(phi.dtype))
        mixed = mixed.to(pixels.dtype) + pixels
        dynamic = self.p(mixed.reshape(latent.shape))
        return scale_channels(self.conv(x), scale) + dynamic

    def _is_unbatched(self, x: Tensor) -> bool:
        answer = self.is_unbatched(x)
        self.geometry.output_size(sizes_of(x)[-self.rank :])  # refuses empty dimensions
        return answer

    def _check_values(self, x: Tensor, latent: Tensor) -> None:
        # Layers of other kinds, as the norm over several processes, see more values.
        is_own = type(self.bn1) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if not (is_own and self.bn1.training) or has_open_size(latent):
            return
        if latent.numel() == latent.shape[1]:
            raise ValueError(
                f"`x` (shape {tuple(x.shape)}) gives the batch norms of the layer one "
                "value per channel, whose variance is not defined in training; train "
                "with a larger batch or larger inputs, or put the layer in evaluation "
                "mode"
            )

    def _decompose(self, x: Tensor) -> Decomposition:
        with without_autocast(x.device):
            dtypes = dtypes_of(self.fc, self.fc_phi, self.fc_scale)
            pooled = adaptive_avg_pool(x, self.pool, *dtypes)
            hidden = call_wide(self.fc, pooled.flatten(1))
            phi = call_wide(self.fc_phi, hidden)
            return Decomposition(
                scale=_hard_gate(call_wide(self.fc_scale, hidden)),
                phi=phi.unflatten(1, (self.latent_channels, self.latent_channels)),
            )

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
