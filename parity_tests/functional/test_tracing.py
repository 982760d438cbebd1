"""What code knows of sizes while PyTorch traces it."""

import warnings
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.jit import TracerWarning  # pyright: ignore[reportPrivateImportUsage]

from dynconv_torch.functional.tracing import constant, has_open_size, is_open, sizes_of

# That there is `torch.export` now; which category says so depends on PyTorch's version.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.torch.jit.trace:{category}")
    for category in ("DeprecationWarning", "FutureWarning")
]


def asked_in(trace):
    """Returns which sizes of a tensor (5, 3) are open, asked while it is traced."""
    found = []

    def ask(x):
        found.append(([is_open(size) for size in x.shape], has_open_size(x)))
        return x.sin()

    trace(ask)
    assert found.count(found[0]) == len(found)
    return found[0]


def test_no_size_is_open_where_nothing_is_traced():
    assert asked_in(lambda ask: ask(torch.ones(5, 3))) == ([False, False], False)


def test_all_sizes_are_open_under_jit_trace():
    found = asked_in(
        lambda ask: torch.jit.trace(ask, torch.ones(5, 3), check_trace=False)
    )
    assert found == ([True, True], True)


def test_symbolic_sizes_are_open():
    found = asked_in(
        lambda ask: make_fx(ask, tracing_mode="symbolic")(torch.ones(5, 3))
    )
    assert found == ([True, True], True)


def test_only_the_size_that_an_export_declares_is_open():
    class Asked(torch.nn.Module):
        def forward(self, x):
            return x * (10 * is_open(x.shape[0]) + is_open(x.shape[1]))

    x = torch.ones(5, 3)
    shapes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(Asked(), (x,), dynamic_shapes=shapes)
    assert torch.equal(program.module()(torch.ones(7, 3)), torch.full((7, 3), 10.0))


def test_sizes_are_read_and_constants_made_without_a_warning():
    def read(x):
        assert sizes_of(x) == (5, 3)
        return x + constant((2, 0, 1), x.device)

    with warnings.catch_warnings():
        warnings.simplefilter("error", TracerWarning)
        program: Any = torch.jit.trace(read, torch.ones(5, 3))
    assert torch.equal(program(torch.zeros(2, 3)), torch.tensor([[2.0, 0, 1]] * 2))
