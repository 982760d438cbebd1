"""Tiling: which layers can share cells, and which tile gets which."""

from typing import Any

import pytest

from dynconv_jax.functional import Geometry
from dynconv_jax.functional.tiling import Tiling
from dynconv_torch.functional import Geometry as TorchGeometry
from dynconv_torch.functional.tiling import Tiling as TorchTiling


def jax_geometries(*rows) -> list[Geometry]:
    """Geometries from rows (C, O, kernel size)."""
    return [Geometry.create(*row) for row in rows]


def torch_geometries(*rows) -> list[TorchGeometry]:
    return [TorchGeometry.create(*row, rank=len(row[2])) for row in rows]


def tilings(*rows, **options):
    """The plans of both frameworks, which must be the same."""
    ours = Tiling.create(jax_geometries(*rows), **options)
    theirs = TorchTiling.create(torch_geometries(*rows), **options)
    assert ours.num_cells == theirs.num_cells
    assert ours.deviations() == theirs.deviations()
    assert [(s.tiles, s.start, s.assigned) for s in ours.shares] == [
        (s.tiles, s.start, s.assigned) for s in theirs.shares
    ]
    *window, ci, co = ours.cell_shape
    assert theirs.cell_shape == (co, ci, *window)
    return ours


@pytest.mark.parametrize(
    ("ratio", "num_cells", "first", "second"),
    [
        (1, 6, (0, 1, 2, 3), (4, 5)),
        (3, 18, (0, 3, 6, 9), (12, 15)),
        (1 / 2, 3, (0, 3, 3, 1), (2, 3)),  # 3 is the zero cell
    ],
)
def test_tiles_are_assigned_cells_in_order(ratio, num_cells, first, second):
    tiling = tilings((4, 4, (4,)), (4, 4, (2,)), ratio=ratio)
    assert tiling.num_cells == num_cells
    assert [share.assigned for share in tiling.shares] == [first, second]


def test_with_a_third_of_the_cells_the_diagonal_of_each_block_has_one():
    (share,) = tilings((1, 1, (9,)), ratio=1 / 3).shares
    zero = 3
    row = [0, zero, zero, zero, 1, zero, zero, zero, 2]
    assert list(share.assigned) == row


def test_cells_that_run_out_are_assigned_again():
    tiling = tilings(*[(2, 2, (1,))] * 3, ratio=0.5)
    assert tiling.num_cells == 1
    assert [share.assigned for share in tiling.shares] == [(0,)] * 3


def test_the_smallest_warehouse_has_one_cell():
    assert tilings((2, 2, (1,)), ratio=0.25).num_cells == 1


def test_planes_of_a_cell_divide_those_of_every_layer():
    rows = (12, 8, (3, 3)), (8, 20, (1, 1))
    assert tilings(*rows).cell_shape == (1, 1, 4, 4)
    assert tilings(*rows, in_ratio=0.5, out_ratio=0.25).cell_shape == (1, 1, 2, 1)
    assert tilings((6, 9, (2,)), in_ratio=1 / 3, out_ratio=1 / 9).cell_shape[1:] == (
        2,
        1,
    )
    assert tilings((5, 7, (2,)), in_ratio=0.1, out_ratio=0.1).cell_shape[1:] == (1, 1)


def test_a_cell_is_a_whole_window_without_spatial_partition():
    tiling = tilings((4, 8, (3, 2)), (8, 4, (3, 2)), spatial_partition=False)
    assert tiling.cell_shape == (3, 2, 4, 4)
    assert [share.tiles for share in tiling.shares] == [(1, 2, 1), (1, 1, 2)]


@pytest.mark.parametrize("ratio", [0, -1, 0.3, 10**12, float("nan")])
def test_a_budget_of_no_whole_number_of_cells_or_too_many_is_refused(ratio):
    cases: list[tuple[Any, Any]] = [
        (Tiling.create, jax_geometries((4, 4, (2,)))),
        (TorchTiling.create, torch_geometries((4, 4, (2,)))),
    ]
    for create, geometries in cases:
        with pytest.raises(ValueError, match="^`ratio` .* a whole number, .* at most"):
            create(geometries, ratio=ratio)
