"""Scalars that schedules move: found, checked, kept in full precision, optional."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dynconv_jax import DynamicConv, Temperature, load_torch_state_dict
from dynconv_jax.scheduled import Scheduled, iter_scheduled, set_scheduled
from dynconv_torch import scheduled as twin


class Strength(Scheduled):
    """A kind of one's own, from 0 to 1."""

    name = "strength"
    requirement = "between 0 and 1"

    @classmethod
    def accepts(cls, value: float) -> bool:
        return 0 <= value <= 1


class TwinStrength(twin.Scheduled):
    """The same in PyTorch."""

    name = "strength"
    requirement = "between 0 and 1"

    @classmethod
    def accepts(cls, value: float) -> bool:
        return 0 <= value <= 1


class Holder(nnx.Module):
    """A layer beside a scalar of another kind."""

    def __init__(self):
        self.layer = DynamicConv(3, 4, (3,), rngs=nnx.Rngs(0))
        self.strength = Strength.create(0.25)


class TwinHolder(twin.HoldsScheduled):
    """A scalar beside a parameter."""

    strength: torch.Tensor

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.hold_scheduled(TwinStrength, 0.1, self.weight.device)


def test_only_those_of_the_kind_are_written():
    holder = Holder()
    assert set_scheduled(holder, Strength, 0.75) == 1
    assert float(holder.strength[...]) == 0.75
    assert float(holder.layer.router.temperature[...]) == 1.0
    assert [path for path, _ in iter_scheduled(holder, Temperature)] == [
        "layer.router.temperature"
    ]


@pytest.mark.parametrize("value", [-0.1, 2.0, float("nan"), [0.1, 0.2], "x"])
def test_a_value_that_the_kind_does_not_accept_is_refused(value):
    ours, theirs = Holder(), TwinHolder()
    with pytest.raises(ValueError, match="strength` .*between 0 and 1"):
        set_scheduled(ours, Strength, value)
    with pytest.raises(ValueError, match="strength` .*between 0 and 1"):
        twin.set_scheduled(theirs, TwinStrength, value)
    assert (float(ours.strength[...]), float(theirs.strength)) == (0.25, 0.1)


def test_a_traced_value_is_written():
    graphdef, state = nnx.split(Holder())

    @jax.jit
    def write(state, value):
        holder = nnx.merge(graphdef, state)
        set_scheduled(holder, Strength, value)
        return nnx.state(holder)

    written = nnx.merge(graphdef, write(state, jnp.asarray(0.5)))
    assert float(written.strength[...]) == 0.5


def test_a_loaded_value_is_checked():
    holder = Holder()
    with pytest.raises(ValueError, match="strength is 7.*between 0 and 1"):
        load_torch_state_dict(holder, {"strength": np.asarray(7.0)})


def test_casts_leave_the_twin_in_float64_and_move_it():
    holder = TwinHolder().to(torch.bfloat16)
    assert holder.weight.dtype == torch.bfloat16
    assert holder.strength.dtype == torch.float64 and float(holder.strength) == 0.1
    on_meta = TwinHolder().to("meta")
    assert on_meta.strength.is_meta
    assert float(on_meta.to_empty(device="cpu").strength) == 0.1


def test_a_state_dict_without_it_loads_and_keeps_the_value():
    holder = TwinHolder()
    twin.set_scheduled(holder, TwinStrength, 0.5)
    holder.load_state_dict({"weight": torch.zeros(2)}, strict=True)
    assert float(holder.strength) == 0.5
    restored = copy.deepcopy(TwinHolder())
    restored.load_state_dict(holder.state_dict(), strict=True)
    assert float(restored.strength) == 0.5
