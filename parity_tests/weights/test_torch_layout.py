"""Weights between PyTorch and JAX: the same bits, under PyTorch's names."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import dynconv_jax
from dynconv_jax import load_torch_state_dict, set_temperature, to_torch_state_dict
from dynconv_jax.weights import torch_variables
from parity_tests.parity import torch_state
from parity_tests.tools.jax_modules import build
from parity_tests.tools.modules import (
    DTYPES,
    TorchTwoLayers,
    TwoLayers,
    bits,
    jax_block,
    jax_conv,
    jax_net,
    make_block,
    module_bits,
    randomise,
    torch_block,
    torch_conv,
    torch_copy,
    torch_net,
)

PAIRS = {
    "1d": (lambda t: jax_conv(1, t), lambda t: torch_conv(1, t)),
    "2d": (lambda t: jax_conv(2, t), lambda t: torch_conv(2, t)),
    "3d": (lambda t: jax_conv(3, t), lambda t: torch_conv(3, t)),
    "2d with groups": (
        lambda t: jax_conv(2, t, feature_group_count=2),
        lambda t: torch_conv(2, t, groups=2),
    ),
    "1d with bias": (
        lambda t: jax_conv(1, t, use_bias=True),
        lambda t: torch_conv(1, t, bias=True),
    ),
    "3d with groups and bias": (
        lambda t: jax_conv(3, t, feature_group_count=2, use_bias=True),
        lambda t: torch_conv(3, t, groups=2, bias=True),
    ),
    "block": (jax_block, torch_block),
    "net": (jax_net, torch_net),
}


def is_statistic(key):
    return key.endswith(("running_mean", "running_var"))


# Between the frameworks.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair", PAIRS)
def test_torch_to_jax_to_torch_keeps_every_bit(pair, dtype, rng):
    make_jax, make_torch = PAIRS[pair]
    expected = torch_state(randomise(make_torch(dtype), rng))
    module = make_jax(dtype)
    load_torch_state_dict(module, expected)
    actual = torch_copy(to_torch_state_dict(module), make_torch(dtype))
    assert bits(actual) == bits(expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair", PAIRS)
def test_state_dict_has_the_names_dtypes_shapes_and_bits_of_torch(pair, dtype, rng):
    make_jax, make_torch = PAIRS[pair]
    expected = torch_state(randomise(make_torch(dtype), rng))
    module = make_jax(dtype)
    load_torch_state_dict(module, expected)
    if dtype == "bfloat16":  # our running statistics are wider than PyTorch's
        expected = {
            key: value.astype(np.float32) if is_statistic(key) else value
            for key, value in expected.items()
        }
    assert bits(to_torch_state_dict(module)) == bits(expected)


# Not in bfloat16: PyTorch's running statistics would round ours.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_jax_to_torch_to_jax_keeps_every_bit(dtype):
    module, twin = jax_net(dtype, seed=1), jax_net(dtype)
    state_dict = torch_copy(to_torch_state_dict(module), torch_net(dtype))
    load_torch_state_dict(twin, state_dict)
    assert module_bits(twin) == module_bits(module)


@pytest.mark.parametrize(
    "rank, axes", [(1, "kxio->koix"), (2, "kyxio->koiyx"), (3, "kzyxio->koizyx")]
)
def test_experts_go_to_torch_outputs_first(rank, axes):
    module = jax_conv(rank)
    expected = np.einsum(axes, module.kernel[...])
    np.testing.assert_array_equal(to_torch_state_dict(module)["weight"], expected)


def test_static_convolutions_go_to_torch_outputs_first():
    conv = nnx.Conv(3, 4, (5, 2), use_bias=False, rngs=nnx.Rngs(0))
    expected = np.einsum("yxio->oiyx", conv.kernel[...])
    np.testing.assert_array_equal(to_torch_state_dict(conv)["weight"], expected)


def test_linear_layers_go_to_torch_transposed():
    module = jax_conv(2)
    expected = np.asarray(module.router.fc1.kernel[...]).T
    np.testing.assert_array_equal(to_torch_state_dict(module)["fc1.weight"], expected)


def test_batch_norm_has_the_names_of_torch(rng):
    module = jax_block()
    state_dict = torch_state(randomise(torch_block(), rng))
    load_torch_state_dict(module, state_dict)
    for attribute, key in [
        ("scale", "weight"),
        ("bias", "bias"),
        ("mean", "running_mean"),
        ("var", "running_var"),
        ("num_batches_tracked", "num_batches_tracked"),
    ]:
        np.testing.assert_array_equal(
            getattr(module.bn, attribute)[...], state_dict[f"bn.{key}"]
        )


def test_arrays_are_contiguous_copies():
    for value in to_torch_state_dict(jax_conv(3)).values():
        assert value.flags.c_contiguous and value.flags.owndata


def test_later_changes_of_the_state_dict_do_not_reach_the_module():
    module = jax_conv(2)
    state_dict = to_torch_state_dict(module)
    load_torch_state_dict(module, state_dict)
    before = module_bits(module)
    for value in state_dict.values():
        value.fill(0)
    assert module_bits(module) == before


def test_random_state_is_left_out():
    layer = nnx.eval_shape(
        lambda: dynconv_jax.DynamicConv(
            4, 6, (5, 3), router_dropout=0.5, rngs=nnx.Rngs(0)
        )
    )
    assert nnx.state(layer, nnx.RngState)
    assert torch_variables(layer).keys() == torch_conv(2).state_dict().keys()


def test_containers_have_the_names_of_torch(rng):
    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.layers = nnx.List([jax_conv(2), nnx.Linear(3, 2, rngs=rngs)])
            self.heads = nnx.Dict(a=nnx.Sequential(nnx.Linear(5, 3, rngs=rngs)))

    class TorchNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch_conv(2), torch.nn.Linear(3, 2)])
            self.heads = torch.nn.ModuleDict(
                {"a": torch.nn.Sequential(torch.nn.Linear(5, 3))}
            )

    net, expected = Net(), torch_state(randomise(TorchNet(), rng))
    load_torch_state_dict(net, expected)
    assert bits(to_torch_state_dict(net)) == bits(expected)


def test_parameters_of_an_nnx_pytree_are_not_forgotten():
    class Scale(nnx.Pytree):
        def __init__(self):
            self.factor = nnx.Param(jnp.ones(3))

    class Net(nnx.Module):
        def __init__(self):
            self.scale = Scale()

    assert to_torch_state_dict(Net()).keys() == {"scale.factor"}


def test_module_of_gradients_gives_gradients_under_torch_names(rng):
    layer = jax_conv(2, use_bias=True)
    inputs = jnp.asarray(rng.normal(size=(2, 5, 7, 4)))
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    gradients = jax.grad(
        lambda params: jnp.square(nnx.merge(graphdef, params, rest)(inputs)).sum()
    )(params)
    named = to_torch_state_dict(nnx.merge(graphdef, gradients, rest))
    expected = {
        "weight": np.einsum("kyxio->koiyx", gradients.kernel[...]),
        "bias": np.asarray(gradients.bias[...]),
        "fc1.weight": np.asarray(gradients.router.fc1.kernel[...]).T,
        "fc1.bias": np.asarray(gradients.router.fc1.bias[...]),
        "fc2.weight": np.asarray(gradients.router.fc2.kernel[...]).T,
        "fc2.bias": np.asarray(gradients.router.fc2.bias[...]),
        "temperature": np.asarray(layer.router.temperature[...]),
    }
    assert bits(named) == bits(expected)


# The temperature, and what may be absent.


def test_temperature_comes_back_exactly_where_jax_has_only_float32():
    with jax.enable_x64(False):
        layer = dynconv_jax.DynamicConv(4, 6, (5, 3), temperature=0.6, rngs=nnx.Rngs(0))
        temperature = to_torch_state_dict(layer)["temperature"]
    assert bits({"T": temperature}) == bits({"T": np.float64(0.6)})


def test_temperature_of_torch_comes_back_exactly_where_jax_has_only_float32():
    expected = torch_state(torch_conv(2, "float32", temperature=0.6))
    with jax.enable_x64(False):
        layer = jax_conv(2, "float32")
        load_torch_state_dict(layer, expected)
        assert bits(to_torch_state_dict(layer)) == bits(expected)


def test_state_dict_without_temperature_keeps_the_one_set():
    layer = jax_conv(2)
    set_temperature(layer, 7.5)
    state_dict = to_torch_state_dict(jax_conv(2, seed=1))
    del state_dict["temperature"]
    load_torch_state_dict(layer, state_dict)
    assert bits(to_torch_state_dict(layer)) == bits(
        {**state_dict, "temperature": np.float64(7.5)}
    )


def test_state_dict_without_num_batches_tracked_keeps_the_count():
    block = jax_block()
    block.bn.num_batches_tracked[...] = jnp.asarray(11, jnp.int32)
    state_dict = to_torch_state_dict(jax_block(seed=1))
    del state_dict["bn.num_batches_tracked"]
    load_torch_state_dict(block, state_dict)
    assert bits(to_torch_state_dict(block)) == bits(
        {**state_dict, "bn.num_batches_tracked": np.int64(11)}
    )


# A router shared by two layers.


def test_shared_router_keeps_every_bit(rng):
    expected = torch_state(randomise(TorchTwoLayers(), rng))
    module = build(TwoLayers, seed=0)
    load_torch_state_dict(module, expected)
    state_dict = to_torch_state_dict(module)
    assert bits(state_dict) == bits(expected)
    assert bits(torch_copy(state_dict, TorchTwoLayers())) == bits(expected)


def test_shared_router_stays_shared():
    module = build(TwoLayers, seed=0)
    load_torch_state_dict(module, to_torch_state_dict(build(TwoLayers, seed=1)))
    variables = torch_variables(module)
    for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "temperature"):
        one, other = (variables[f"conv{n}.router.{name}"] for n in (1, 2))
        assert one is other


# Where the arrays are.


def test_loading_keeps_the_sharding_of_an_array():
    layer = jax_conv(2)
    sharding = NamedSharding(
        Mesh(np.array(jax.devices()[:1]), ("model",)),
        PartitionSpec(None, None, None, None, "model"),
    )
    layer.kernel.set_value(jax.device_put(layer.kernel[...], sharding))
    load_torch_state_dict(layer, to_torch_state_dict(jax_conv(2, seed=1)))
    assert layer.kernel[...].sharding == sharding
    assert layer.kernel[...].committed


def test_loading_does_not_tie_an_array_to_a_device():
    layer = jax_conv(2)
    load_torch_state_dict(layer, to_torch_state_dict(jax_conv(2, seed=1)))
    for variable in torch_variables(layer).values():
        assert not variable[...].committed


def test_abstract_module_becomes_real():
    block = jax_block()
    abstract = nnx.eval_shape(make_block)
    load_torch_state_dict(abstract, to_torch_state_dict(block))
    assert module_bits(abstract) == module_bits(block)


def test_bfloat16_is_kept_in_a_state_dict():
    assert to_torch_state_dict(jax_conv(2, "bfloat16"))["weight"].dtype == (
        ml_dtypes.bfloat16
    )


def test_what_a_module_has_sown_is_no_weight():
    class Sower(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
            self.seen = nnx.Intermediate((jnp.ones(2),))

    assert set(to_torch_state_dict(Sower())) == {"linear.weight", "linear.bias"}
