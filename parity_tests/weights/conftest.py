"""What tests of saved models share."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def shared(tmp_path_factory, numerics) -> Path:
    """Saved models of both frameworks, only to be copied."""
    # Not above: it needs PyTorch, and tests without it share this file.
    from parity_tests.tools.saved import PAIRS

    folder = tmp_path_factory.mktemp("saved")
    for name, (package, make) in PAIRS.items():
        package.save_pretrained(make(), folder / name)
    return folder


@pytest.fixture
def saved(shared, tmp_path) -> Path:
    """A saved model, to be changed at will."""
    return shutil.copytree(shared / "jax", tmp_path / "net")
