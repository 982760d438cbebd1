"""Kernels tiled with cells: which layers can share cells, and which tile gets which.

A layer's kernel (O, C/g, *k) is cut into M = (spatial tiles) · (O/co) · (C/g / ci)
tiles of one size, in this order. Layers share cells where one size divides all of them:

    co = gcd of their O, times `out_ratio`
    ci = gcd of their C/g, times `in_ratio`
    spatial size 1 with spatial partition, else that of the kernels, then all alike

Li & Yao, "KernelWarehouse: Rethinking the Design of Dynamic Convolution", ICML 2024,
section 3.
"""

import dataclasses
import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from dynconv_torch.functional.dynamic import mix_kernels
from dynconv_torch.functional.geometry import Geometry

# Published budgets reach 4, and every sample mixes all cells: more is a mistake, whose
# cells might not even be counted in memory.
MOST_RATIO = 4096


@dataclasses.dataclass(frozen=True)
class Share:
    """What one layer takes from a warehouse.

    Attributes:
        geometry: The layer's convolution.
        tiles: The number of spatial, out and in tiles of its kernel.
        start: The first cell that is the layer's own.
        num_own: How many cells are: the ratio times the number of tiles, rounded
            down.
        assigned: For each tile its own cell; the number of cells stands for zero.
    """

    geometry: Geometry
    tiles: tuple[int, int, int]
    start: int
    num_own: int
    assigned: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How layers share cells.

    Attributes:
        cell_shape: The shape (co, ci, *cell) of a cell.
        num_cells: n, how many there are: the ratio times the number of tiles of all
            layers, rounded down, but one at least.
        shares: What each layer takes.
    """

    cell_shape: tuple[int, ...]
    num_cells: int
    shares: tuple[Share, ...]

    @classmethod
    def create(
        cls,
        geometries: Sequence[Geometry],
        *,
        ratio: float = 1.0,
        in_ratio: float = 1.0,
        out_ratio: float = 1.0,
        spatial_partition: bool = True,
    ) -> "Tiling":
        """Plans the cells of the layers that share them.

        With a whole `ratio`, tile i of a layer is assigned the cell start + i · ratio.
        With a ratio of 1/m, the tiles in their order make blocks of m; of block b, tile
        b mod m is assigned the layer's next cell, the others zero. Where the tiles of a
        layer do not fill their last block, the cells may run out; the last is then
        assigned again.

        Args:
            geometries: The layers' convolutions, in their order.
            ratio: The number of cells over that of tiles: 1, 2, ..., or 1/2, 1/3, ....
            in_ratio: The in-planes of a cell over the gcd of the layers' C/g.
            out_ratio: The out-planes of a cell over the gcd of the layers' O.
            spatial_partition: Whether a cell is one tap, or else a whole window.

        Raises:
            TypeError: If they are no geometries.
            ValueError: If the layers cannot share cells, or a ratio is not possible.

        Example:
            >>> wide = Geometry.create(8, 16, 3, rank=2)
            >>> narrow = Geometry.create(4, 8, 1, rank=2)
            >>> tiling = Tiling.create([wide, narrow])
            >>> tiling.cell_shape, tiling.num_cells, tiling.shares[1].assigned
            ((8, 4, 1, 1), 37, (36,))
        """
        step, block = _step_and_block(ratio)
        _check_shareable(geometries, spatial_partition)
        first = geometries[0]
        cell = (1,) * first.rank if spatial_partition else first.kernel_size
        planes = []
        for axis, name, plane_ratio in ((0, "out", out_ratio), (1, "in", in_ratio)):
            common = math.gcd(*(each.weight_shape[axis] for each in geometries))
            planes.append(_cell_planes(name, common, plane_ratio))
        out_planes, in_planes = planes
        tiles = [
            (
                math.prod(each.kernel_size) // math.prod(cell),
                each.weight_shape[0] // out_planes,
                each.weight_shape[1] // in_planes,
            )
            for each in geometries
        ]
        total = sum(map(math.prod, tiles))
        num_cells = max(1, total * step // block)
        shares, start = [], 0
        for geometry, counts in zip(geometries, tiles, strict=True):
            own, assigned = min(start, num_cells - 1), []
            for tile in range(math.prod(counts)):
                if tile % block == tile // block % block:
                    assigned.append(min(start, num_cells - 1))
                    start += step
                else:
                    assigned.append(num_cells)
            num_own = math.prod(counts) * step // block
            shares.append(Share(geometry, counts, own, num_own, tuple(assigned)))
        return cls((out_planes, in_planes, *cell), num_cells, tuple(shares))

    def deviations(self, init: str = "default") -> tuple[float, ...]:
        """Returns for each cell the standard deviation to draw it with.

        That of Kaiming's normal initialiser (fan-out, ReLU) for the kernel of the layer
        whose own the cell is, as it is with the assigned cells alone: the tiles that
        are assigned zero do not count.

        Args:
            init: `"default"`, or `"published"`: the authors take the cells of a layer,
                one below the other, for a kernel, whose fan-out grows with their number
                and not with that of tiles.
        """
        deviations = [0.0] * self.num_cells
        out_planes, _, *window = self.cell_shape
        for share in self.shares:
            geometry = share.geometry
            fan_out = math.prod(geometry.kernel_size) * geometry.out_channels
            fan_out /= geometry.groups
            filled = sum(cell < self.num_cells for cell in share.assigned)
            deviation = (2 * len(share.assigned) / (fan_out * filled)) ** 0.5
            if init == "published":
                fan_out = max(1, share.num_own) * out_planes * math.prod(window)
                deviation = (2 / fan_out) ** 0.5
            # The next layer overwrites from its own start on.
            deviations[share.start :] = [deviation] * (self.num_cells - share.start)
        return tuple(deviations)


def _step_and_block(ratio: float) -> tuple[int, int]:
    """Returns (ratio, 1) for a whole ratio, (1, m) for 1/m."""
    if 0 < ratio <= MOST_RATIO:
        step, block = max(1, round(ratio)), max(1, round(1 / ratio))
        if math.isclose(ratio, step / block, rel_tol=1e-6):
            return step, block
    raise ValueError(
        f"`ratio` (={ratio}) must be a whole number, or one over a whole number, such "
        "as 0.25: each tile has as many cells of its own, or every so many tiles one; "
        f"and at most {MOST_RATIO}"
    )


def _cell_planes(name: str, common: int, ratio: float) -> int:
    """Returns the in- or out-planes of a cell."""
    # A little more, for ratios such as 1/3 that are no floats.
    planes = max(1, int(common * ratio + 1e-6)) if 0 < ratio <= 1 else 0
    if not planes or common % planes:
        raise ValueError(
            f"`{name}_ratio` (={ratio}) must be in (0, 1], and its product with the "
            f"largest common divisor (={common}) of the layers' {name}-planes must "
            "divide that; take 1, or one over a divisor"
        )
    return planes


def _check_shareable(geometries: Sequence[Geometry], spatial_partition: bool) -> None:
    parts = geometries if isinstance(geometries, Sequence) else [None]
    for part in parts:
        if not isinstance(part, Geometry):
            raise TypeError(
                f"`geometries` (={geometries!r}) must be a list of the convolutions "
                "that share the cells, such as `[Geometry.create(3, 8, 3, rank=2)]`"
            )
    if not geometries:
        raise ValueError("`geometries` (=[]) must hold at least one layer")
    first = geometries[0]
    for index, each in enumerate(geometries):
        if each.rank != first.rank:
            raise ValueError(
                f"layer {index} has `kernel_size` (={each.kernel_size}), that is rank "
                f"{each.rank}, and layer 0 rank {first.rank}; layers of different rank "
                "cannot share cells, give each rank a warehouse of its own"
            )
        if not spatial_partition and each.kernel_size != first.kernel_size:
            raise ValueError(
                f"layer {index} has `kernel_size` (={each.kernel_size}), layer 0 "
                f"{first.kernel_size}; without `spatial_partition` a cell is a whole "
                "window, so give each size a warehouse of its own, or partition"
            )


def assemble_weights(
    mixture: Float[Tensor, "batch tiles cells"],
    cells: Float[Tensor, "cells out_of_cell in_of_cell *cell"],
    share: Share,
) -> Float[Tensor, "batch out_channels in_per_group *window"]:
    """Mixes cells into the tiles of a kernel, for every sample.

    Args:
        mixture: The weight of each cell in each tile. It is cast to the dtype of
            `cells`.
        cells: The cells.
        share: The layer's share of them.

    Returns:
        The kernel of each sample, in the dtype of `cells`, or that of autocast.

    Example:
        >>> import torch
        >>> geometry = Geometry.create(4, 8, 3, rank=2)
        >>> tiling = Tiling.create([geometry], in_ratio=0.5)
        >>> cells = torch.ones(tiling.num_cells, *tiling.cell_shape)
        >>> mixture = torch.ones(2, 18, tiling.num_cells)
        >>> assemble_weights(mixture, cells, tiling.shares[0]).shape
        torch.Size([2, 8, 4, 3, 3])
    """
    mixed = mix_kernels(mixture.flatten(0, 1), cells)  # one product for all of them
    mixed = mixed.unflatten(0, (mixture.shape[0], *share.tiles))
    # (B, spatial, out, in, co, ci, *cell) -> (B, out, co, in, ci, spatial, *cell): of
    # `spatial` and `cell` one is 1, so the two together are the window.
    mixed = mixed.permute(0, 2, 4, 3, 5, 1, *range(6, mixed.ndim))
    return mixed.reshape(mixed.shape[0], *share.geometry.weight_shape)
