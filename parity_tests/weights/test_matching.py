"""What does not fit is refused, all of it at once, and the module is as it was."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
from dynconv_jax import load_torch_state_dict, to_torch_state_dict
from parity_tests.parity import torch_state
from parity_tests.tools.modules import (
    TwoLayers,
    bits,
    build,
    jax_block,
    jax_conv,
    make_block,
    module_bits,
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
    [torch.ones(6, dtype=torch.bfloat16), torch.ones(6, requires_grad=True)],
    ids=["bfloat16", "requires_grad"],
)
def test_tensor_that_numpy_cannot_take_is_refused(value):
    block = jax_block()
    state_dict = {**to_torch_state_dict(block), "bn.bias": value}
    assert "bn.bias is not a NumPy array" in refusal(block, state_dict)


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
