"""Bands of a spectrum: in the order of the authors' code, in both frameworks."""

import numpy as np
import pytest

from dynconv_jax.functional import spectrum
from dynconv_torch.functional import spectrum as of_the_twin
from parity_tests.tools.reference import sorted_frequencies


@pytest.mark.parametrize(
    ("rows", "columns", "bands"), [(192, 192, 64), (96, 75, 8), (64, 24, 4), (5, 9, 3)]
)
def test_frequencies_fall_into_the_bands_of_the_authors_code(rows, columns, bands):
    order = sorted_frequencies(rows, columns)
    expected = np.empty(len(order), int)
    expected[order] = np.arange(len(order)) * bands // len(order)
    for module in (spectrum, of_the_twin):
        found = module.band_of_frequency(rows, columns, bands)
        assert found.shape == (rows, columns // 2 + 1)
        np.testing.assert_array_equal(found.ravel(), expected)
