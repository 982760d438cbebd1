"""Weights between PyTorch and JAX: the same bits, strictly, in memory and in files."""

import errno
import os
import stat

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import dynconv_jax
import dynconv_torch
from dynconv_jax import (
    load_torch_state_dict,
    load_weights,
    save_weights,
    set_temperature,
    to_torch_state_dict,
)
from dynconv_jax.weights import torch_variables
from parity_tests.parity import as_torch, torch_state

DTYPES = ["float32", "float64", "bfloat16"]


def build(make, seed=0):
    """Returns the module that `make` builds, with random values in it.

    Initialisers are not run: they would compile a program for every shape.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf):
        value = rng.uniform(0.1, 100, leaf.shape).astype(leaf.dtype)
        return jax.device_put(value)

    graphdef, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, jax.tree.map(draw, state))


def jax_conv(rank, dtype="float64", seed=0, **options):
    return build(
        lambda: dynconv_jax.DynamicConv(
            4,
            6,
            (5, 3, 2)[:rank],
            param_dtype=jnp.dtype(dtype),
            rngs=nnx.Rngs(0),
            **options,
        ),
        seed,
    )


def torch_conv(rank, dtype="float64", **options):
    cls = getattr(dynconv_torch, f"DynamicConv{rank}d")
    return cls(4, 6, (5, 3, 2)[:rank], dtype=getattr(torch, dtype), **options)


def make_block(dtype="float64"):
    return dynconv_jax.DynamicConvBlock(
        4, 6, (5, 3), param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)
    )


def jax_block(dtype="float64", seed=0):
    return build(lambda: make_block(dtype), seed)


def torch_block(dtype="float64"):
    return dynconv_torch.DynamicConvBlock(4, 6, (5, 3), dtype=getattr(torch, dtype))


def jax_net(dtype, seed=0):
    return build(
        lambda: dynconv_jax.DynamicNet(
            2, 7, num_experts=3, param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)
        ),
        seed,
    )


def torch_net(dtype):
    return dynconv_torch.DynamicNet(2, 7, num_experts=3, dtype=getattr(torch, dtype))


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


def randomise(module, rng):
    """Fills a PyTorch module's parameters and buffers, the temperature included."""
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if key.endswith("num_batches_tracked"):
                value.fill_(int(rng.integers(1, 1000)))
            elif key.endswith("temperature"):
                value.fill_(float(rng.uniform(0.1, 30)))
            else:
                value.copy_(torch.from_numpy(rng.normal(size=tuple(value.shape))))
    return module


def torch_copy(state_dict, module):
    """Loads NumPy arrays into a PyTorch module as strictly as PyTorch can."""
    tensors = {key: as_torch(value) for key, value in state_dict.items()}
    module.load_state_dict(tensors, strict=True)
    return torch_state(module)


def bits(arrays):
    return {
        key: (np.asarray(value).dtype, np.shape(value), np.asarray(value).tobytes())
        for key, value in arrays.items()
    }


def module_bits(module):
    state = dict(nnx.to_flat_state(nnx.state(module)))
    return bits({path: variable.get_value() for path, variable in state.items()})


def is_statistic(key):
    return key.endswith(("running_mean", "running_var"))


class TwoLayers(nnx.Module):
    """Two layers that share one router."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        router = dynconv_jax.Router(4, 3, rngs=rngs)
        self.conv1 = dynconv_jax.DynamicConv(
            4, 6, (5, 3), num_experts=3, router=router, rngs=rngs
        )
        self.conv2 = dynconv_jax.DynamicConv(
            4, 5, (1, 3), num_experts=3, router=router, rngs=rngs
        )


class TorchTwoLayers(torch.nn.Module):
    """Two layers that share one router."""

    def __init__(self):
        super().__init__()
        router = dynconv_torch.Router(4, 3)
        self.conv1 = dynconv_torch.DynamicConv2d(
            4, 6, (5, 3), num_experts=3, router=router
        )
        self.conv2 = dynconv_torch.DynamicConv2d(
            4, 5, (1, 3), num_experts=3, router=router
        )


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


# What is refused. The module is then as it was.


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


def test_conflicting_values_of_a_shared_array_are_refused():
    state_dict = to_torch_state_dict(build(TwoLayers, seed=1))
    state_dict["conv2.router.fc1.weight"][0, -1] += 1
    message = refusal(build(TwoLayers, seed=0), state_dict)
    assert (
        "conv1.router.fc1.weight and conv2.router.fc1.weight are one array of the "
        "module, but differ" in message
    )


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


@pytest.mark.parametrize("key", ["dyn.temperature", "bn.num_batches_tracked"])
def test_abstract_module_has_no_value_that_could_stay(key):
    abstract = nnx.eval_shape(make_block)
    state_dict = to_torch_state_dict(jax_block())
    del state_dict[key]
    with pytest.raises(ValueError, match=f"missing key: {key}"):
        load_torch_state_dict(abstract, state_dict)


# Files.


@pytest.mark.parametrize("dtype", DTYPES)
def test_file_of_jax_opens_in_torch(dtype, rng, tmp_path):
    expected = torch_state(randomise(torch_block(dtype), rng))
    module, twin = jax_block(dtype), torch_block(dtype)
    load_torch_state_dict(module, expected)
    save_weights(module, tmp_path / "block.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "block.safetensors")
    twin.load_state_dict(tensors, strict=True)
    assert bits(torch_state(twin)) == bits(expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_file_of_torch_opens_in_jax(dtype, rng, tmp_path):
    torch_module = randomise(torch_block(dtype), rng)
    safetensors.torch.save_file(
        torch_module.state_dict(), tmp_path / "block.safetensors"
    )
    module = jax_block(dtype)
    load_weights(module, tmp_path / "block.safetensors")
    actual = torch_copy(to_torch_state_dict(module), torch_block(dtype))
    assert bits(actual) == bits(torch_state(torch_module))


@pytest.mark.parametrize("dtype", DTYPES)
def test_file_of_jax_opens_in_jax(dtype, tmp_path):
    block, twin = jax_block(dtype, seed=1), jax_block(dtype)
    save_weights(block, str(tmp_path / "block.safetensors"))
    load_weights(twin, str(tmp_path / "block.safetensors"))
    assert module_bits(twin) == module_bits(block)


def test_shared_router_survives_a_file(tmp_path):
    module, twin = build(TwoLayers, seed=1), build(TwoLayers, seed=0)
    save_weights(module, tmp_path / "layers.safetensors")
    load_weights(twin, tmp_path / "layers.safetensors")
    assert module_bits(twin) == module_bits(module)


def file_refusal(module, path, error: type[Exception] = ValueError):
    """Returns the message of the refusal, and asserts that nothing was loaded."""
    before = module_bits(module)
    with pytest.raises(error) as caught:
        load_weights(module, path)
    assert module_bits(module) == before
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.1, 0.5, 0.999])
def test_truncated_file_is_refused(kept, tmp_path):
    path = tmp_path / "block.safetensors"
    save_weights(jax_block(seed=1), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert "is truncated" in file_refusal(jax_block(), path)


def test_file_of_torch_save_is_refused(tmp_path):
    path = tmp_path / "block.pt"
    torch.save(torch_block().state_dict(), path)
    assert "no safetensors file" in file_refusal(jax_block(), path)


def test_text_file_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no weights in here")
    assert "no safetensors file" in file_refusal(jax_block(), path)


def test_file_of_a_dtype_unknown_to_numpy_is_refused(tmp_path):
    path = tmp_path / "narrow.safetensors"
    narrow = torch.ones(3).to(torch.float8_e5m2)
    safetensors.torch.save_file({"weight": narrow}, path)
    assert "dtype" in file_refusal(jax_block(), path)


def test_missing_file_is_refused(tmp_path):
    file_refusal(jax_block(), tmp_path / "none.safetensors", FileNotFoundError)


def test_folder_in_place_of_a_file_is_refused(tmp_path):
    file_refusal(jax_block(), tmp_path, IsADirectoryError)


def test_file_that_does_not_fit_is_refused_by_path_and_key(tmp_path):
    path = tmp_path / "layer.safetensors"
    save_weights(jax_conv(2), path)
    message = file_refusal(jax_block(), path)
    assert "missing key: dyn.weight" in message
    assert "unexpected key: fc1.weight" in message


def raise_no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_failed_save_keeps_the_old_file_and_leaves_no_other(
    function, tmp_path, monkeypatch
):
    path = tmp_path / "block.safetensors"
    save_weights(jax_block(), path)
    content = path.read_bytes()
    monkeypatch.setattr(os, function, raise_no_space)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        save_weights(jax_block(seed=1), path)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == [path.name]


def test_save_replaces_an_existing_file(tmp_path):
    path = tmp_path / "block.safetensors"
    block, twin = jax_block(seed=1), jax_block()
    save_weights(twin, path)
    save_weights(block, path)
    load_weights(twin, path)
    assert module_bits(twin) == module_bits(block)
    assert os.listdir(tmp_path) == [path.name]


def test_save_into_an_unwritable_folder_leaves_nothing(tmp_path, monkeypatch):
    def refuse(path, *_):  # permissions would not stop root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(PermissionError, match=str(tmp_path)):
            save_weights(jax_block(), tmp_path / "block.safetensors")
    assert os.listdir(tmp_path) == []


def test_save_into_a_missing_folder_leaves_nothing(tmp_path):
    folder = tmp_path / "none"
    with pytest.raises(FileNotFoundError, match=str(folder)):
        save_weights(jax_block(), folder / "block.safetensors")
    assert os.listdir(tmp_path) == []


def test_save_over_a_folder_leaves_nothing(tmp_path):
    folder = tmp_path / "block.safetensors"
    folder.mkdir()
    with pytest.raises(IsADirectoryError, match=str(folder)):
        save_weights(jax_block(), folder)
    assert os.listdir(tmp_path) == [folder.name]
    assert os.listdir(folder) == []


def test_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    save_weights(jax_block(), tmp_path / "block.safetensors")
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_bfloat16_is_kept_in_a_state_dict():
    assert to_torch_state_dict(jax_conv(2, "bfloat16"))["weight"].dtype == (
        ml_dtypes.bfloat16
    )


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_cannot_divide_is_refused(value):
    layer = dynconv_jax.DynamicConv(3, 4, (3,), rngs=nnx.Rngs(0))
    state_dict = to_torch_state_dict(layer) | {"temperature": np.asarray(value)}
    with pytest.raises(ValueError, match="wrong value: temperature.*positive"):
        load_torch_state_dict(layer, state_dict)
    assert float(layer.router.temperature[...]) == 1.0


def test_what_a_module_has_sown_is_no_weight():
    class Sower(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
            self.seen = nnx.Intermediate((jnp.ones(2),))

    assert set(to_torch_state_dict(Sower())) == {"linear.weight", "linear.bias"}


def test_stacked_layers_keep_their_temperatures():
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(key):
        return dynconv_jax.DynamicConv(3, 4, (3,), rngs=nnx.Rngs(key))

    layers = build(jax.random.split(jax.random.key(0), 2))
    assert to_torch_state_dict(layers)["temperature"].tolist() == [1.0, 1.0]
