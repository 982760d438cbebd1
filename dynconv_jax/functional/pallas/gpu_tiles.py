"""How `pallas/gpu.py` cuts a convolution into tiles, one for each program.

Nobody has timed these kernels. Tiles are chosen by a count of the cycles of a core in
which their parts move and compute, among those that fit its memory and registers.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from dynconv_jax.functional.geometry import Geometry

# About as many cores (SM) as the chips have: A100 108, H100 132.
_CORES = 128
# What a core of an H100 does in a cycle, by its data sheet at 1755 MHz: products and
# sums of 16-bit numbers, of float32; bytes from its own cache; and bytes from the one
# that all cores share, as microbenchmarks report it (5.5 TB/s).
_PRODUCTS, _SUMS, _NEAR, _FAR = 2048, 128, 128, 24
# The cycles in which a turn of the loop counts offsets and waits for its fellows: some
# hundred instructions of each warp, by the compiler's text.
_TURN = 250
# The sums of a program, in numbers: 64 registers for each thread of 8 warps.
_MOST_SUMS = 16384
# What fits the memory of a core: that of an A100, the smaller one, has 163 KB.
_SHARED = 160 * 1024
# A product takes no less than this along any axis.
_LEAST = 16


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of a batch in numbers: two spatial axes, dense or depthwise.

    Attributes:
        batch: B.
        experts: K.
        in_size: The spatial size of the inputs.
        out_size: That of the outputs.
        in_features: C.
        out_features: O.
        kernel: The spatial size of the kernel.
        strides: Steps between windows.
        dilation: Steps between the taps of a window.
        low: The padding before the first pixel of each axis; negative crops.
        depthwise: Whether each channel is convolved by itself.
    """

    batch: int
    experts: int
    in_size: tuple[int, ...]
    out_size: tuple[int, ...]
    in_features: int
    out_features: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    low: tuple[int, ...]
    depthwise: bool

    @classmethod
    def of(
        cls, batch: int, spatial: tuple[int, ...], experts: int, geometry: Geometry
    ) -> "Layer":
        """Returns the numbers of a geometry for a batch of one spatial size."""
        return cls(
            batch,
            experts,
            tuple(spatial),
            geometry.output_size(spatial),
            geometry.in_features,
            geometry.out_features,
            geometry.kernel_size,
            geometry.strides,
            geometry.kernel_dilation,
            tuple(low for low, _ in geometry.pads(spatial)),
            geometry.feature_group_count > 1,
        )

    @property
    def taps(self) -> int:
        """The number of positions in a window."""
        return math.prod(self.kernel)

    @property
    def numbers(self) -> int:
        """The numbers in one expert."""
        deep = 1 if self.depthwise else self.in_features
        return self.taps * deep * self.out_features

    @property
    def stack(self) -> int:
        """The number of experts, filled up to a power of two."""
        return 1 << (self.experts - 1).bit_length()

    @property
    def flops(self) -> int:
        """The arithmetic of the products, those with padding among them."""
        return 2 * self.batch * math.prod(self.out_size) * self.numbers

    @property
    def phases(self) -> tuple[int, ...]:
        """Into how many interleaved grids of pixels the inputs' gradient is split.

        All pixels of a grid were seen through the same taps, so that no product is
        wasted. Dilated taps are tried one by one instead.
        """
        return tuple(
            stride if dilation == 1 else 1
            for stride, dilation in zip(self.strides, self.dilation, strict=True)
        )

    def sides(self, mirrored: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the spatial sizes of result and source."""
        if mirrored:
            return self.in_size, self.out_size
        return self.out_size, self.in_size

    def features(self, mirrored: bool) -> tuple[int, int]:
        """Returns the features of result and source."""
        if mirrored:
            return self.in_features, self.out_features
        return self.out_features, self.in_features

    def gradient_parts(self, tile: "Tile") -> int:
        """Returns how many tiles cover one tap of the experts."""
        across = -(-self.out_features // tile.features)
        return (
            across if self.depthwise else across * -(-self.in_features // tile.channels)
        )


class Call(NamedTuple):
    """A convolution, and how it is run.

    Attributes:
        layer: The convolution.
        precision: That of its products.
        interpret: Whether kernels are interpreted instead of compiled.
    """

    layer: Layer
    precision: lax.PrecisionLike
    interpret: bool


@dataclasses.dataclass(frozen=True)
class Tile:
    """What one program works on, and how it is compiled.

    Attributes:
        samples: How many samples share the experts that it loads.
        pixels: Of each sample.
        features: Of the result.
        channels: How many are summed at a time; of the experts' gradient, its rows.
        warps: Of 32 threads each.
        stages: How far loads run ahead of the products, in turns of the loop.
    """

    samples: int
    pixels: int
    features: int
    channels: int
    warps: int = 8
    stages: int = 2


def _power(size: int, most: int) -> int:
    """Returns the power of two that covers a size, from `_LEAST` to `most`."""
    return min(max(1 << (size - 1).bit_length(), _LEAST), most)


def product_tile(
    layer: Layer, mirrored: bool, dtype: jnp.dtype
) -> tuple[Tile, tuple[int, int, int]]:
    """Returns the tile of a forward pass or the inputs' gradient, and the grid.

    The grid is (groups of samples, tiles of pixels, tiles of features).
    """
    target, _ = layer.sides(mirrored)
    wide, deep = layer.features(mirrored)
    phases = layer.phases if mirrored else (1, 1)
    pixels = math.prod(
        -(-size // step) for size, step in zip(target, phases, strict=True)
    )
    width = dtype.itemsize

    def grid(tile: Tile) -> tuple[int, int, int]:
        return (
            -(-layer.batch // tile.samples),
            math.prod(phases) * -(-pixels // tile.pixels),
            -(-wide // tile.features),
        )

    def shared(tile: Tile) -> int:
        """The bytes of windows and experts on their way, and of mixtures."""
        waiting = tile.samples * tile.pixels + layer.experts * tile.features
        mixed = tile.samples * tile.features
        return width * tile.channels * (tile.stages * waiting + mixed)

    def cycles(tile: Tile) -> tuple[float, int]:
        rows = tile.samples * tile.pixels
        each = (  # of one tap and channel
            rows * tile.features * (width // 2) ** 2 / _PRODUCTS
            + 2 * tile.samples * layer.experts * tile.features / _SUMS
            + 2 * rows * width / _NEAR  # taken there, and to the products
            + layer.experts * tile.features * width / _FAR
            + _TURN / tile.channels
        )
        channels = -(-deep // tile.channels) * tile.channels
        turns = -(-math.prod(grid(tile)) // _CORES)
        return turns * channels * each, -tile.channels

    candidates = [
        Tile(samples, size, features, channels)
        for samples, size, features, channels in itertools.product(
            (1, 2, 4), (16, 32, 64, 128, 256, 512), (16, 32, 64, 128), (16, 32, 64)
        )
        if samples * size * features <= 2 * _MOST_SUMS // width
        and samples < 2 * layer.batch
        and size <= _power(pixels, 512)
        and features <= _power(wide, 128)
        and channels <= _power(deep, 128 // width)
    ]
    fitting = [tile for tile in candidates if shared(tile) <= _SHARED]
    best = min(fitting or candidates[:1], key=cycles)
    return best, grid(best)


def gradient_tile(layer: Layer, dtype: jnp.dtype) -> tuple[Tile, int]:
    """Returns the tile of the experts' gradient, and into how many parts the batch is.

    A program keeps the sums of all experts. Where there are few tiles, several share
    the samples, and their sums are added afterwards.
    """
    # The sums of all experts and the gradient of one sample: 128 registers a thread.
    most = 2 * _MOST_SUMS // (layer.stack + 1)
    side = max(_LEAST, min(64, 1 << (math.isqrt(most).bit_length() - 1)))
    features = _power(layer.out_features, side)
    channels = _power(layer.in_features, side)
    pixels = _power(math.prod(layer.out_size), 128 // dtype.itemsize)
    tile = Tile(1, pixels, features, channels)
    programs = layer.taps * layer.gradient_parts(tile)
    splits = max(1, min(layer.batch, _CORES // programs))
    each = -(-layer.batch // splits)
    return tile, -(-layer.batch // each)
