"""The page that compares every network: what it says, and that a fault is told."""

import jax
import numpy as np
import pytest

from parity_tests.tolerances import worst_error
from parity_tests.tools import compare_networks
from parity_tests.tools.compare_networks import Config


def row_of(page: str, name: str) -> list[str]:
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.slow
def test_page_says_how_far_a_network_is_from_its_twin(tmp_path):
    out = tmp_path / "pages" / "networks.md"
    assert compare_networks.main(Config(names=("dynamic_net",), out=out)) == 0
    page = out.read_text()
    assert "1 of 1 are within it" in page
    _, parameters, images, *errors = row_of(page, "dynamic_net")
    assert int(parameters.replace(",", "")) > 10_000
    assert images == "3×33×17×3"
    assert len(errors) == 4 and all(float(error) < 1e-10 for error in errors)
    assert any(float(error) > 0 for error in errors)


@pytest.mark.slow
def test_page_tells_the_network_that_differs(tmp_path, monkeypatch):
    softmax = jax.nn.softmax
    monkeypatch.setattr(
        jax.nn, "softmax", lambda z, *a, **k: softmax(z, *a, **k) * (1 + 1e-6)
    )
    out = tmp_path / "networks.md"
    assert compare_networks.main(Config(names=("dynamic_net",), out=out)) == 1
    page = out.read_text()
    assert "0 of 1 are within it" in page
    assert all(error.startswith("**") for error in row_of(page, "dynamic_net")[3:6])


def test_unknown_networks_are_refused_before_any_is_compared(tmp_path):
    out = tmp_path / "networks.md"
    with pytest.raises(SystemExit, match=r"`names` \(=\['resnet81'\]\) must be among"):
        compare_networks.main(Config(names=("dynamic_net", "resnet81"), out=out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("actual", "worst"),
    [
        ({"a": [1.0, 2.0]}, 0.0),
        ({"a": [1.0, 2.5]}, 0.25),
        ({"a": [np.nan, 2.0]}, np.inf),
        ({"a": [1.0]}, np.inf),
        ({"b": [1.0, 2.0]}, np.inf),
        ({"a": [1.0, 2.0], "b": [0.0]}, np.inf),
    ],
)
def test_worst_error_is_relative_to_the_largest_value(actual, worst):
    assert worst_error(actual, {"a": [1.0, 2.0]}) == worst


def test_worst_error_measures_small_arrays_by_the_largest_one():
    actual, expected = {"a": [4.0], "b": [0.02]}, {"a": [4.0], "b": [0.01]}
    assert worst_error(actual, expected) == 1
    assert worst_error(actual, expected, floor=0.5) == pytest.approx(0.005)
