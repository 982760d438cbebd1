"""What checkpoints put around a state dict is taken off, aloud; all else stays."""

import collections
import warnings

import numpy as np
import pytest
import torch
from flax import nnx

from dynconv_jax import load_torch_state_dict, to_torch_state_dict
from dynconv_jax.weights.wrappers import unwrap
from parity_tests.tools.modules import bits, jax_conv, module_bits


def layer():
    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))


def state(scale=1.0):
    return {
        "weight": np.arange(6, dtype="float32").reshape(2, 3) * scale,
        "bias": np.arange(2, dtype="float32") * scale,
    }


def prefixed(prefix, state_dict):
    return {f"{prefix}{key}": value for key, value in state_dict.items()}


def loaded(state_dict, module=None):
    """Returns what a layer has after loading, and what was told meanwhile."""
    module = layer() if module is None else module
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_torch_state_dict(module, state_dict)
    assert all(each.category is UserWarning for each in caught)
    assert all(each.filename == __file__ for each in caught)
    return to_torch_state_dict(module), [str(each.message) for each in caught]


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "_fsdp_wrapped_module.",
        "module._fsdp_wrapped_module._checkpoint_wrapped_module.",
    ],
)
def test_a_prefix_of_a_wrapper_is_taken_off_aloud(prefix):
    actual, (told,) = loaded(prefixed(prefix, state()))
    assert bits(actual) == bits(state())
    assert repr(prefix) in told


def test_the_prefix_of_a_real_wrapper_is_taken_off():
    theirs = torch.nn.Linear(3, 2)
    wrapped = torch.compile(torch.nn.DataParallel(theirs), backend="eager")
    actual, (told,) = loaded(wrapped.state_dict())
    expected = {key: value.numpy() for key, value in theirs.state_dict().items()}
    assert bits(actual) == bits(expected)
    assert "'_orig_mod.module.'" in told


def test_the_count_of_an_average_is_left_out_aloud():
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(3, 2))
    actual, told = loaded(averaged.state_dict())
    assert actual.keys() == state().keys()
    assert any("n_averaged" in each for each in told)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_prefix_that_not_all_keys_have_stays(prefix):
    module = layer()
    before = module_bits(module)
    given = {f"{prefix}weight": state()["weight"], "bias": state()["bias"]}
    with pytest.raises(ValueError, match=f"unexpected key: {prefix}weight"):
        load_torch_state_dict(module, given)
    assert module_bits(module) == before


class Owner(nnx.Module):
    """A module whose own attribute has a wrapper's name."""

    def __init__(self):
        self.module = layer()


def test_a_prefix_of_the_modules_own_stays():
    actual, told = loaded(prefixed("module.", state()), Owner())
    assert bits(actual) == bits(prefixed("module.", state()))
    assert told == []


def test_a_prefix_before_the_modules_own_is_taken_off():
    actual, (told,) = loaded(prefixed("module.module.", state()), Owner())
    assert bits(actual) == bits(prefixed("module.", state()))
    assert "'module.'" in told


def test_a_module_compiled_inside_of_another_is_found():
    class Net(nnx.Module):
        def __init__(self):
            self.body, self.head = layer(), layer()

    inner = prefixed("body._orig_mod.", state()) | prefixed("head.", state())
    actual, (told,) = loaded(inner, Net())
    assert bits(actual) == bits(prefixed("body.", state()) | prefixed("head.", state()))
    assert "_orig_mod" in told


def test_refusals_after_unwrapping_name_the_keys_given_and_what_was_taken_off():
    given = {"state_dict": prefixed("module.", state()), "epoch": 3}
    given["state_dict"]["module.bias"] = np.ones(5, "float32")
    with pytest.raises(ValueError) as caught:
        load_torch_state_dict(layer(), given)
    message = str(caught.value)
    assert message.startswith("1 wrong shape: ")
    assert "module.bias has (5,), the module (2,)" in message
    assert "'state_dict'" in message and "'module.'" in message


@pytest.mark.parametrize(
    "name",
    ["state_dict", "model", "state_dict_ema", "model_ema", "model_state_dict"],
)
def test_the_state_dict_in_a_checkpoint_is_found_aloud(name):
    checkpoint = {"epoch": 3, name: state(), "optimizer": {"state": {}}, "lr": 0.1}
    actual, (told,) = loaded(checkpoint)
    assert bits(actual) == bits(state())
    assert f"the entry {name!r}, not 'epoch', 'optimizer', 'lr'" in told


def test_of_several_state_dicts_the_averaged_one_is_chosen_aloud():
    checkpoint = {
        "state_dict": state(1),
        "state_dict_ema": prefixed("module.", state(2)),
        "model": state(3),
    }
    actual, told = loaded(checkpoint)
    assert bits(actual) == bits(state(2))
    assert "'state_dict_ema', not 'state_dict', 'model'" in told[0]
    assert "checkpoint['state_dict']" in told[0]
    assert "'module.'" in told[1]


def test_an_average_that_was_not_kept_is_not_chosen():
    checkpoint = {"state_dict": state(), "state_dict_ema": None, "model_ema": {}}
    assert bits(loaded(checkpoint)[0]) == bits(state())


def test_containers_in_containers_are_opened():
    nested = {"model": collections.OrderedDict(state_dict=state()), "epoch": 3}
    actual, told = loaded(nested)
    assert bits(actual) == bits(state())
    assert len(told) == 2


def test_an_attribute_with_the_name_of_a_container_is_none():
    class Net(nnx.Module):
        def __init__(self):
            self.model = nnx.Param(np.ones(3, "float32"))

    actual, told = loaded({"model": np.zeros(3, "float32")}, Net())
    assert told == [] and not actual["model"].any()


@pytest.mark.parametrize(
    "given",
    [
        {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]},
        {"student": state(), "teacher": state()},
    ],
)
def test_a_dict_of_other_dicts_is_refused_by_its_entries(given):
    with pytest.raises(ValueError, match=f"holds no arrays.*{list(given)[0]}"):
        load_torch_state_dict(layer(), given)


def test_a_bare_state_dict_is_passed_on_in_silence():
    module = jax_conv(2, "float32")
    actual, told = loaded(to_torch_state_dict(module), jax_conv(2, "float32", seed=1))
    assert told == [] and bits(actual) == bits(to_torch_state_dict(module))


def test_what_is_given_is_not_changed():
    checkpoint = {"model": prefixed("module.", state())}
    unwrap(checkpoint, state())
    assert list(checkpoint["model"]) == ["module.weight", "module.bias"]


def test_a_warning_that_is_an_error_leaves_the_module_as_it_was():
    module = layer()
    before = module_bits(module)
    with pytest.raises(UserWarning, match="'module.'"):
        load_torch_state_dict(module, prefixed("module.", state()))
    assert module_bits(module) == before
