"""What does not fit is refused, all of it at once, and the module is as it was."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
from dynconv_jax import load_torch_state_dict, to_torch_state_dict
from dynconv_jax.weights import torch_variables
from dynconv_jax.weights.leaf import as_array
from parity_tests.parity import torch_state
from parity_tests.tools.jax_modules import build
from parity_tests.tools.modules import (
    TwoLayers,
    bits,
    jax_block,
    jax_conv,
    make_block,
    module_bits,
    randomise,
    torch_block,
    torch_net,
)


def refusal(module, state_dict):
    """Returns the message of the refusal, and asserts that nothing was loaded."""
    before = module_bits(module)
    with pytest.raises(ValueError) as caught:
        load_torch_state_dict(module, state_dict)
    assert module_bits(module) == before
    return str(caught.value)


def test_one_error_lists_everything_that_does_not_fit():
    state_dict = to_torch_state_dict(jax_block("float32", seed=1))
    del state_dict["dyn.fc1.bias"], state_dict["bn.weight"]
    state_dict["dyn.extra"] = state_dict["one_more"] = np.zeros(3)
    state_dict["dyn.weight"] = state_dict["dyn.weight"].swapaxes(1, 2)
    state_dict["bn.bias"] = state_dict["bn.bias"][1:]
    state_dict["dyn.fc2.weight"] = state_dict["dyn.fc2.weight"].astype(np.float64)
    state_dict["bn.running_var"] = state_dict["bn.running_var"].astype(np.complex64)
    message = refusal(jax_block("float32"), state_dict)
    for line in [
        "missing key: dyn.fc1.bias, of shape (1,)",
        "missing key: bn.weight, of shape (6,)",
        "unexpected key: dyn.extra",
        "unexpected key: one_more",
        "wrong shape: dyn.weight has (4, 4, 6, 5, 3), the module (4, 6, 4, 5, 3)",
        "wrong shape: bn.bias has (5,), the module (6,)",
        "wrong dtype: dyn.fc2.weight is float64, which the module's float32",
        "wrong dtype: bn.running_var is complex64, which the module's float32",
    ]:
        assert line in message


@pytest.mark.parametrize(
    "dtype, module_dtype",
    [
        ("float64", "float32"),
        ("float64", "bfloat16"),
        ("float32", "bfloat16"),
        ("float16", "bfloat16"),
    ],
)
def test_lossy_dtype_is_refused_with_a_remedy(dtype, module_dtype):
    layer = jax_conv(2, module_dtype)
    state_dict = to_torch_state_dict(layer)
    state_dict["weight"] = state_dict["weight"].astype(dtype)
    message = refusal(layer, state_dict)
    assert f"weight is {dtype}, which the module's {module_dtype} cannot" in message
    assert "cast the value, or build the module with `param_dtype`" in message


@pytest.mark.parametrize(
    "dtype, module_dtype",
    [("bfloat16", "float32"), ("float32", "float64"), ("float16", "float32")],
)
def test_narrower_dtype_is_widened_without_loss(dtype, module_dtype, rng):
    layer = jax_conv(2, module_dtype)
    state_dict = to_torch_state_dict(layer)
    weight = rng.normal(size=state_dict["weight"].shape).astype(jnp.dtype(dtype))
    load_torch_state_dict(layer, {**state_dict, "weight": weight})
    expected = {**state_dict, "weight": weight.astype(module_dtype)}
    assert bits(to_torch_state_dict(layer)) == bits(expected)


def test_count_beyond_the_integers_of_the_module_is_refused():
    block = jax_block()
    state_dict = to_torch_state_dict(block)
    state_dict["bn.num_batches_tracked"] = np.asarray(2**31)
    assert "wrong dtype: bn.num_batches_tracked" in refusal(block, state_dict)


@pytest.mark.parametrize(
    "value",
    ["abc", None, {"a": 1}, [[1.0], []], np.array(["a"] * 6), torch.ones(6).to("meta")],
    ids=lambda value: type(value).__name__,
)
def test_value_that_is_no_array_of_numbers_is_refused(value):
    block = jax_block()
    state_dict = {**to_torch_state_dict(block), "bn.bias": value}
    assert "wrong value: bn.bias is not a NumPy array" in refusal(block, state_dict)


# Tensors of PyTorch.

TENSORS = {
    "bfloat16": lambda t: t.to(torch.bfloat16),
    "float16": lambda t: t.half(),
    "float8_e5m2": lambda t: t.to(torch.float8_e5m2),
    "float8_e4m3fn": lambda t: t.to(torch.float8_e4m3fn),
    "requires_grad": lambda t: t.requires_grad_(),
    "a parameter": torch.nn.Parameter,
    "bfloat16 parameter": lambda t: torch.nn.Parameter(t.to(torch.bfloat16)),
    "transposed in memory": lambda t: t.T.contiguous().T,
    "bfloat16 transposed": lambda t: t.to(torch.bfloat16).T.contiguous().T,
    "expanded": lambda t: t[:1].expand(t.shape),
    "conjugate": lambda t: t.to(torch.complex64).conj().imag.neg(),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_load_as_the_numbers_they_hold(name):
    linear = nnx.Linear(5, 3, use_bias=False, rngs=nnx.Rngs(0))
    tensor = TENSORS[name](torch.arange(15.0).reshape(3, 5) / 8)
    load_torch_state_dict(linear, {"weight": tensor})
    expected = tensor.detach().double().numpy().T
    np.testing.assert_array_equal(np.asarray(linear.kernel[...], "float64"), expected)


def test_a_state_dict_of_pytorch_loads_as_it_is(rng):
    theirs = randomise(torch_block(), rng)
    ours = jax_block()
    load_torch_state_dict(ours, theirs.state_dict(keep_vars=True))
    assert bits(to_torch_state_dict(ours)) == bits(torch_state(theirs))


def test_a_nan_of_bfloat16_keeps_its_bits():
    pattern = np.array([0x7FC1, -0x3F, 0x7F81], np.int16)
    tensor = torch.from_numpy(pattern).view(torch.bfloat16)
    np.testing.assert_array_equal(as_array(tensor).view(np.int16), pattern)


def test_tensors_that_are_wrong_are_told_by_their_own_dtype():
    linear = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    state_dict = torch.nn.Linear(5, 3).double().state_dict()
    assert "weight is float64, which the module's float32" in refusal(
        linear, state_dict
    )


# Arguments that are something else.

LINEAR = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
STATE = torch.nn.Linear(2, 3).state_dict()


@pytest.mark.parametrize(
    ("module", "state_dict", "words"),
    [
        (None, STATE, "`module` must be an `nnx.Module`, not None"),
        ([LINEAR], STATE, "`module` must be an `nnx.Module`, not a list"),
        (nnx.Linear, STATE, "not the class Linear; build one"),
        (nnx.state(LINEAR), STATE, "not a State; .*nnx.merge"),
        (nnx.graphdef(LINEAR), STATE, "not a GraphDef; .*nnx.merge"),
        (LINEAR.kernel, STATE, "not a Param"),
        (torch.nn.Linear(2, 3), STATE, "not the PyTorch module Linear"),
        (STATE, LINEAR, "`module` comes first and `state_dict` second"),
        (LINEAR, LINEAR, "not the Linear; the module comes first"),
        (LINEAR, None, "`state_dict` must be a dict .* not None"),
        (LINEAR, [1.0], "not a list"),
        (LINEAR, np.ones(3), "not a ndarray"),
        (LINEAR, "net.pth", "not the path 'net.pth'; `load_weights"),
        (LINEAR, Path("net.pth"), r"not the path .*net.pth.*; `load_weights"),
        (LINEAR, torch.nn.Linear(2, 3), r"give its `.state_dict\(\)`"),
        (LINEAR, nnx.state(LINEAR), "not a State of flax; `nnx.update"),
        (LINEAR, {0: np.ones(3)}, "and 0 is no such key"),
    ],
)
def test_an_argument_of_another_kind_is_refused_in_one_sentence(
    module, state_dict, words
):
    with pytest.raises(TypeError, match=words) as caught:
        load_torch_state_dict(module, state_dict)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [to_torch_state_dict, torch_variables])
def test_what_is_no_module_has_no_state_dict(function):
    with pytest.raises(TypeError, match="`module` must be an `nnx.Module`, not a dict"):
        function(dict(STATE))


# What a refusal says first, and how much.


class Deep(nnx.Module):
    """Many layers and a head."""

    def __init__(self, layers=30, classes=2):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(layers)])
        self.head = nnx.Linear(2, classes, rngs=rngs)


def deep_state(**sizes):
    return to_torch_state_dict(Deep(**sizes))


def test_a_wrong_shape_comes_first_and_the_rest_is_counted():
    state_dict = deep_state(layers=40, classes=5)
    message = refusal(Deep(), state_dict)
    assert message.startswith("2 wrong shapes, 20 unexpected keys: ")
    lines = message.splitlines()
    assert lines[1] == "  wrong shape: head.weight has (5, 2), the module (2, 2)"
    assert "  and 12 more unexpected keys" in lines
    assert len(message) < 700


def test_missing_keys_are_counted_and_the_first_named():
    message = refusal(Deep(), deep_state(layers=3))
    assert message.startswith("54 missing keys: ")
    assert message.count("missing key: ") == 8
    assert "missing key: layers.3.weight, of shape (2, 2)" in message
    assert "and 46 more missing keys" in message


def test_many_wrong_shapes_are_counted_and_the_first_named():
    state_dict = {key: value[:1] for key, value in deep_state().items()}
    message = refusal(Deep(), state_dict)
    assert message.startswith("62 wrong shapes: ")
    assert message.count("wrong shape: ") == 8 and "54 more wrong shapes" in message


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (lambda key: f"backbone.{key}", "{key.removeprefix('backbone.'): value"),
        (lambda key: f"a.b.{key}", "{key.removeprefix('a.b.'): value"),
        (
            lambda key: key.replace("layers.", "stages."),
            "{key.replace('stages.', 'layers.', 1): value",
        ),
    ],
)
def test_keys_a_prefix_apart_are_told_by_it_and_not_listed(rename, words):
    state_dict = {rename(key): value for key, value in deep_state().items()}
    message = refusal(Deep(), state_dict)
    count = 60 if "stages" in words else 62
    assert message.startswith(f"{count} keys under another prefix: ")
    assert words in message
    assert "missing" not in message and "unexpected" not in message
    assert len(message) < 400
    fixed = {
        eval(words[1:].partition(":")[0], {"key": key}): value
        for key, value in state_dict.items()
    }
    load_torch_state_dict(Deep(), fixed)


def test_keys_that_lack_a_prefix_are_told_where_they_belong():
    class Holder(nnx.Module):
        def __init__(self):
            self.net = Deep()

    message = refusal(Holder(), deep_state())
    assert message.startswith("62 keys under another prefix: ")
    assert "Load it into the part of the module that is 'net'." in message


def test_keys_beside_those_of_another_prefix_are_listed():
    state_dict = {f"net.{key}": value for key, value in deep_state().items()}
    message = refusal(Deep(), {**state_dict, "loss.weight": np.ones(2)})
    assert "62 keys under another prefix, 1 unexpected key: " in message
    assert "unexpected key: loss.weight" in message


def test_no_prefix_is_told_where_several_would_do():
    state_dict = {
        f"{name}.{key}": value
        for name in ("student", "teacher")
        for key, value in deep_state().items()
    }
    assert "prefix" not in refusal(Deep(), state_dict)


def test_state_dict_of_another_model_is_refused():
    message = refusal(jax_block(), torch_state(torch_net("float64")))
    assert "does not fit the DynamicConvBlock" in message
    assert "missing key: dyn.weight" in message
    assert "unexpected key: stage1.dyn.weight" in message


def test_conflicting_values_of_a_shared_array_are_refused():
    state_dict = to_torch_state_dict(build(TwoLayers, seed=1))
    state_dict["conv2.router.fc1.weight"][0, -1] += 1
    message = refusal(build(TwoLayers, seed=0), state_dict)
    assert (
        "conv1.router.fc1.weight and conv2.router.fc1.weight are one array of the "
        "module, but differ" in message
    )


@pytest.mark.parametrize("key", ["dyn.temperature", "bn.num_batches_tracked"])
def test_abstract_module_has_no_value_that_could_stay(key):
    abstract = nnx.eval_shape(make_block)
    state_dict = to_torch_state_dict(jax_block())
    del state_dict[key]
    with pytest.raises(ValueError, match=f"missing key: {key}"):
        load_torch_state_dict(abstract, state_dict)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_cannot_divide_is_refused(value):
    layer = dynconv_jax.DynamicConv(3, 4, (3,), rngs=nnx.Rngs(0))
    state_dict = to_torch_state_dict(layer) | {"temperature": np.asarray(value)}
    with pytest.raises(ValueError, match="wrong value: temperature.*positive"):
        load_torch_state_dict(layer, state_dict)
    assert float(layer.router.temperature[...]) == 1.0


# What is ignored


def test_what_is_ignored_stays_and_all_else_is_loaded(rng):
    module = jax_block("float32")
    before = to_torch_state_dict(module)
    given = to_torch_state_dict(jax_block("float32", seed=1))
    given["bn.weight"] = np.full_like(given["bn.weight"], 3.0)
    given["dyn.weight"] = given["dyn.weight"][:, :2]  # another shape
    del given["dyn.fc1.bias"]
    given["aux.weight"] = np.zeros(3)
    load_torch_state_dict(
        module, given, ignore=("dyn.weight", "dyn.fc1", "aux", "*.running_var")
    )
    after = to_torch_state_dict(module)
    kept = {"dyn.weight", "dyn.fc1.weight", "dyn.fc1.bias", "bn.running_var"}
    for key, value in after.items():
        np.testing.assert_array_equal(value, (before if key in kept else given)[key])


def test_what_is_not_ignored_is_as_strict_as_ever():
    given = to_torch_state_dict(jax_block("float32", seed=1))
    del given["bn.bias"], given["dyn.weight"]
    module = jax_block("float32")
    before = module_bits(module)
    with pytest.raises(ValueError, match="1 missing key") as caught:
        load_torch_state_dict(module, given, ignore=("dyn",))
    assert "bn.bias" in str(caught.value) and "dyn.weight" not in str(caught.value)
    assert module_bits(module) == before


def test_ignored_part_of_another_layout_does_not_hinder_the_rest():
    module = jax_block("float32")
    given = to_torch_state_dict(jax_block("float32", seed=1))
    given["dyn.attention.fc1.weight"] = given.pop("dyn.fc1.weight")
    del given["bn.bias"]
    with pytest.raises(ValueError, match="1 missing key: .*\n  missing key: bn.bias"):
        load_torch_state_dict(module, given, ignore=("dyn",))


def test_name_that_means_nothing_is_refused():
    given = to_torch_state_dict(jax_block("float32", seed=1))
    module = jax_block("float32")
    before = module_bits(module)
    with pytest.raises(ValueError, match=r"`ignore` \(='bm'\) names nothing; did .*bn"):
        load_torch_state_dict(module, given, ignore=("dyn", "bm"))
    with pytest.raises(TypeError, match=r"`ignore` \(='bn'\) must be .*\('bn',\)"):
        load_torch_state_dict(module, given, ignore="bn")
    assert module_bits(module) == before


def test_nothing_of_an_abstract_module_can_be_ignored():
    given = to_torch_state_dict(jax_block("float32", seed=1))
    abstract = nnx.eval_shape(lambda: jax_block("float32"))
    with pytest.raises(ValueError, match=r"leaves bn.\w+ as it is, .* abstract"):
        load_torch_state_dict(abstract, given, ignore=("bn",))


def test_one_array_of_two_names_is_ignored_by_both():
    class Tied(nnx.Module):
        def __init__(self, seed: int):
            self.first = nnx.Linear(3, 4, rngs=nnx.Rngs(seed))
            self.second = self.first

    given = to_torch_state_dict(Tied(1))
    with pytest.raises(ValueError, match="one array with .*; name both or neither"):
        load_torch_state_dict(Tied(0), given, ignore=("first",))
    tied = Tied(0)
    before = module_bits(tied)
    load_torch_state_dict(tied, given, ignore=("first", "second"))
    assert module_bits(tied) == before
