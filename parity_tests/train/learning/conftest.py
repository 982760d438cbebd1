"""A batch to learn from."""

import numpy as np
import pytest

from parity_tests.tools.steps import CLASSES


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Eight small images."""
    return np.random.default_rng(0).uniform(size=(8, 6, 5, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Their classes."""
    return np.random.default_rng(1).integers(CLASSES, size=8).astype(np.int32)
