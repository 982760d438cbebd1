"""Scalars that schedules move: found, checked, kept in full precision, optional."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import (
    DynamicConv,
    KernelWarehouse,
    ODConv,
    Router,
    Temperature,
    load_torch_state_dict,
    set_assignment,
    set_temperature,
    to_torch_state_dict,
)
from dynconv_jax.functional import Geometry
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


@pytest.mark.parametrize("value", [-0.1, 2.0, float("nan"), [0.1, 0.2], "x", "1", True])
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


# Rounding


# Float32 makes 0, infinity, and what processors flush to 0, of them.
ROUNDED = pytest.mark.parametrize("value", [1e-46, 1e39, 1e-40, -1e-46, 1e300])


@ROUNDED
def test_a_temperature_is_checked_as_it_is_computed_with(value):
    rngs = nnx.Rngs(0)
    layer, theirs = ODConv(3, 4, (1, 1), rngs=rngs), dynconv_torch.ODConv2d(3, 4, 1)
    refused = pytest.raises(ValueError, match="^`temperature` .* must be one positive")
    with refused:
        Router(3, temperature=value, rngs=rngs)
    with refused:
        ODConv(3, 4, (1, 1), temperature=value, rngs=rngs)
    with refused:
        set_temperature(layer, value)
    with refused:
        set_temperature(layer, np.asarray(value))
    with refused:
        dynconv_torch.DynamicConv2d(3, 4, 1, temperature=value)
    with refused:
        dynconv_torch.set_temperature(theirs, value)
    with refused:
        dynconv_torch.set_temperature(theirs, torch.tensor(value, dtype=torch.float64))
    assert float(layer.attention.temperature[...]) == 1.0
    assert float(theirs.attention.temperature) == 1.0


@ROUNDED
def test_a_loaded_temperature_is_checked_as_it_is_computed_with(value):
    layer = Router(3, rngs=nnx.Rngs(0))
    state = {**to_torch_state_dict(layer), "temperature": np.asarray(value)}
    with pytest.raises(ValueError, match="temperature is .* must be one positive"):
        load_torch_state_dict(layer, state)
    assert float(layer.temperature[...]) == 1.0


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("value", [0.0, float("nan"), 1e-46, 1e39, -1.0])
def test_a_temperature_loaded_into_the_twin_is_checked(value, assign):
    layer = dynconv_torch.DynamicConv2d(3, 4, 1)
    theirs = torch.nn.Sequential(layer)
    wrong = torch.tensor(value, dtype=torch.float64)
    state = {**theirs.state_dict(), "0.temperature": wrong}
    with pytest.raises(RuntimeError, match="0.temperature is .* must be one positive"):
        theirs.load_state_dict(state, assign=assign)
    assert float(layer.temperature) == 1.0


def test_an_assigned_state_dict_leaves_the_twin_in_float64():
    theirs = dynconv_torch.DynamicConv2d(3, 4, 1)
    state = {**theirs.state_dict(), "temperature": torch.tensor(2.5).half()}
    theirs.load_state_dict(state, assign=True)
    assert theirs.temperature.dtype == torch.float64
    assert float(theirs.temperature) == 2.5


def test_a_value_is_checked_in_the_dtype_that_the_variable_was_cast_to():
    layer = Router(3, rngs=nnx.Rngs(0))
    layer.temperature.set_value(layer.temperature[...].astype(jnp.float16))
    with pytest.raises(ValueError, match="is inf in float16"):
        set_temperature(layer, 1e5)
    set_temperature(layer, 30.0)
    assert float(layer.temperature[...]) == 30.0


def test_what_is_in_range_as_given_and_as_stored_is_taken():
    warehouse = KernelWarehouse([Geometry.create(3, 4, (1, 1))], rngs=nnx.Rngs(0))
    for value in (0.0, 1e-46, 0.3, np.float32(1), jnp.ones(1)):
        set_assignment(warehouse, value)
        assert warehouse.assignment[...].shape == ()
    with pytest.raises(ValueError, match="`assignment` .* must be one number in"):
        set_assignment(warehouse, 1 + 1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_twins_hold_and_check_their_temperature_in_full(dtype):
    theirs = dynconv_torch.ODConv2d(3, 4, 1).to(dtype)
    dynconv_torch.set_temperature(theirs, 1e5)  # which float16 has not
    assert float(theirs.attention.temperature) == 1e5
    with pytest.raises(ValueError, match="`temperature` .*positive"):
        dynconv_torch.set_temperature(theirs, 0.0)


# A plain number in the place of the scalar


@pytest.mark.parametrize("value", [3.0, 1, np.float32(2), "hot"])
def test_a_number_cannot_take_the_place_of_the_variable(value):
    router = Router(3, rngs=nnx.Rngs(0))
    layer = ODConv(3, 4, (1, 1), rngs=nnx.Rngs(0))
    theirs = dynconv_torch.DynamicConv2d(3, 4, 1)
    message = "^`temperature` .* would take the place .*`set_temperature.module, "
    for module in (router, layer.attention, theirs):
        with pytest.raises(TypeError, match=message):
            module.temperature = value
    warehouse = KernelWarehouse([Geometry.create(3, 4, (1, 1))], rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="^`assignment` .*`set_assignment.module"):
        setattr(warehouse, "assignment", value)  # noqa: B010


def test_a_variable_may_take_the_place_of_the_variable():
    router = Router(3, rngs=nnx.Rngs(0))
    router.temperature = Temperature.create(2.0)
    assert float(nnx.clone(router).temperature[...]) == 2.0
