"""`--check-shapes`: annotations that say a wrong shape are noticed."""

import doctest
import importlib
import sys
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynconv_jax
from parity_tests.tools import shapes
from parity_tests.tools.checkout import ROOT

SOURCE = """
import jax
from jaxtyping import Float

def swap(
    x: Float[jax.Array, "rows columns"], y: Float[jax.Array, "rows"] | None = None
) -> Float[jax.Array, "{}"]:
    '''Swaps.

    >>> swap.__name__
    'swap'
    '''
    if x.ndim != 2:
        raise ValueError("two axes")
    return x.T

class Swap:
    def __call__(self, x: Float[jax.Array, "rows *rest"]) -> {}:
        return x.T, None

@jax.jit
def same(x: Float[jax.Array, "{}"]) -> jax.Array:
    return x
"""
RIGHT = SOURCE.format(
    "columns rows",
    'tuple[Float[jax.Array, "*_ rows"], Float[jax.Array, "rows"] | None]',
    "rows columns",
)
PAIR = 'tuple[Float[jax.Array, "rows rows"], None]'
WRONG = SOURCE.format("rows columns", PAIR, "rows")


@pytest.fixture
def load(tmp_path, monkeypatch) -> Callable[[str], types.ModuleType]:
    """Imports a source as a package whose shapes are checked."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setitem(sys.modules, "shaped_sample", None)  # put back afterwards
    monkeypatch.delitem(sys.modules, "shaped_sample")

    def load(source: str) -> types.ModuleType:
        (tmp_path / "shaped_sample.py").write_text(source)
        shapes.install(["shaped_sample"])
        return importlib.import_module("shaped_sample")

    return load


@pytest.mark.parametrize("given", [np.ones((2, 3)), jnp.ones((2, 3))])
def test_right_annotations_pass(load, given):
    sample = load(RIGHT)
    assert sample.swap(given).shape == (3, 2)
    assert sample.Swap()(given)[0].shape == (3, 2)
    assert sample.same(given).shape == (2, 3)
    assert jax.eval_shape(jax.vmap(sample.swap), jnp.ones((4, 2, 3))).shape == (4, 3, 2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda sample, x: sample.swap(x),
            r"swap: return is float64 \(3, 2\), not .*'rows columns'",
        ),
        (lambda sample, x: jax.jit(sample.swap)(x), "swap: return is float64"),
        (lambda sample, x: sample.Swap()(x), "Swap.__call__: return is tuple"),
        (lambda sample, x: sample.same(x), r"same: x is float64 \(2, 3\), not"),
    ],
)
def test_wrong_annotations_are_noticed(load, call, said):
    with pytest.raises(shapes.ShapeError, match=said):
        call(load(WRONG), jnp.ones((2, 3)))


@pytest.mark.parametrize(
    ("x", "y"), [((2, 3), np.ones(3)), ((2, 3), np.ones(2, int)), ((2, 3), "two")]
)
def test_an_argument_that_does_not_fit_is_noticed(load, x, y):
    with pytest.raises(shapes.ShapeError, match="swap: y is .* beside it, {'x'"):
        load(RIGHT).swap(jnp.ones(x), y)


def test_what_a_function_refuses_is_refused_in_its_own_words(load):
    with pytest.raises(ValueError, match="^two axes$"):
        load(RIGHT).swap(jnp.ones(3))


def test_an_annotation_of_the_library_that_is_made_wrong_is_noticed(load):
    source = (ROOT / "dynconv_jax/functional/mixing.py").read_text()
    said = '"batch *kernel"'
    assert source.count(said) == 1
    mixing = load(source.replace(said, '"experts *kernel"'))
    with pytest.raises(shapes.ShapeError, match="mix_kernels: return"):
        mixing.mix_kernels(jnp.ones((2, 4)), jnp.ones((4, 3, 5)))


def test_the_examples_of_a_function_are_still_found(load):
    found = doctest.DocTestFinder().find(load(RIGHT))
    assert "shaped_sample.swap" in [each.name for each in found if each.examples]


def test_a_package_that_is_imported_already_is_refused():
    with pytest.raises(RuntimeError, match="dynconv_jax.*imported before"):
        shapes.install(["dynconv_jax"])


def test_the_library_is_checked_if_it_was_asked_for(pytestconfig):
    is_checked = hasattr(dynconv_jax.mix_kernels, "__wrapped__")
    assert is_checked == pytestconfig.getoption("check_shapes")
