"""Models that are saved and opened again, of either framework."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax.weights.torch_layout import torch_variables
from parity_tests.parity import torch_state
from parity_tests.tools.jax_modules import build

SMALL: dict[str, Any] = dict(name="dynamic_net", num_classes=7, width_mult=0.25)


def jax_net(**options: Any) -> Any:
    """A network of JAX with random values, as far as they may be random."""
    made = dynconv_jax.create_model
    net = build(lambda: made(**{**SMALL, **options}, rngs=nnx.Rngs(0)))
    for key, variable in torch_variables(net).items():
        if key.endswith(".assignment"):  # a share
            variable.set_value(jnp.full_like(variable.get_value(), 0.25))
    return net


def torch_net(**options: Any) -> Any:
    """A network of PyTorch."""
    return dynconv_torch.create_model(**{**SMALL, **options})


PAIRS = {"jax": (dynconv_jax, jax_net), "torch": (dynconv_torch, torch_net)}
BOTH = pytest.mark.parametrize(("package", "make"), PAIRS.values(), ids=PAIRS)


def state_of(net: Any) -> dict[str, np.ndarray]:
    """Returns the arrays of a network of either framework, by PyTorch's key."""
    if isinstance(net, torch.nn.Module):
        return torch_state(net)
    return dynconv_jax.to_torch_state_dict(net)


def assert_equal_states(net: Any, other: Any) -> None:
    """Holds two networks against each other, key by key and bit by bit."""
    state, others = state_of(net), state_of(other)
    assert state.keys() == others.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(value, others[key], err_msg=key)


def edit(path: Path, **changes: Any) -> None:
    """Writes other fields into the configuration of a saved model."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
