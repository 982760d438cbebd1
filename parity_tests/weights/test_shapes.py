"""Numbers are read off shapes, or there is none."""

import pytest

from dynconv_jax.weights.shapes import Unread, ratio_of, reduction_of


@pytest.mark.parametrize("reduction", [1, 3, 4, 16, 40])
@pytest.mark.parametrize("floor", [1, 4, 16])
def test_a_reduction_is_found_that_gives_these_hidden_units(reduction, floor):
    channels = (8, 64, 96, 320, 1280)
    pairs = [(each, max(each // reduction, floor)) for each in channels]
    found = reduction_of(pairs, floor=floor, default=16)
    assert found is not None
    assert pairs == [(each, max(each // found, floor)) for each in channels]


@pytest.mark.parametrize(
    "pairs", [[(64, 16), (64, 17)], [(64, 16), (512, 16)], [(64, 3)], [(3, 10**30)]]
)
def test_hidden_units_that_no_reduction_gives_have_none(pairs):
    assert reduction_of(pairs, floor=4, default=4) is None


@pytest.mark.parametrize("ratio", [4, 2, 1, 1 / 2, 1 / 3, 1 / 4])
def test_a_ratio_of_warehouses_is_read_off_tiles_and_cells(ratio):
    tiles = (36, 9, 73, 2)
    counts = [(each, max(1, int(each * ratio + 1e-9))) for each in tiles]
    assert ratio_of(counts) == ratio


@pytest.mark.parametrize("counts", [[(36, 5), (9, 9)], [(36, 37)], [(2, 1), (36, 36)]])
def test_warehouses_of_several_ratios_have_none(counts):
    with pytest.raises(Unread):
        ratio_of(counts)
