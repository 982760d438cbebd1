"""A checkpoint alone becomes its network, bit by bit, in both frameworks, or none."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax.gating import Temperature
from dynconv_torch.layers import to_chen_layout
from parity_tests.parity import as_torch
from parity_tests.tolerances import assert_close
from parity_tests.tools.checkpoints import (
    CONVOLUTIONS,
    SMALL,
    as_published,
    refusal,
    shapes_of,
    trained,
    zeros,
)
from parity_tests.tools.saved import state_of
from parity_tests.tools.slow import thinned

BOTH = pytest.mark.parametrize("package", [dynconv_jax, dynconv_torch])


def made(package, given, told=0, **options):
    """Returns the network of a checkpoint; `told` warnings were given meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net = package.create_model_from_checkpoint(given, **options)
    assert [each.category for each in caught] == [UserWarning] * told
    assert all(each.filename == __file__ for each in caught)
    return net


def assert_holds(net, state_dict):
    """Asserts that a network has these arrays, bit by bit."""
    found = state_of(net)
    for key, value in state_dict.items():
        np.testing.assert_array_equal(found[key], np.asarray(value), err_msg=key)
    more = found.keys() - state_dict.keys()
    assert all(key.endswith((".temperature", ".assignment")) for key in more)


@pytest.mark.parametrize(
    "member", thinned(CONVOLUTIONS, "static", "odconv", "kernel_warehouse")
)
def test_a_checkpoint_becomes_the_same_network_in_both(member, rng):
    state_dict = as_published(trained(**SMALL, **CONVOLUTIONS[member]))
    told = int(member == "fdconv")  # of its low-pass
    packages = dynconv_jax, dynconv_torch
    ours, theirs = (made(each, state_dict, told) for each in packages)
    for net in (ours, theirs):
        assert_holds(net, state_dict)
    images = rng.normal(size=(2, 9, 7, 3)).astype("float32")
    expected = theirs(as_torch(np.moveaxis(images, -1, 1))).detach().numpy()
    assert_close({"output": ours(images)}, {"output": expected}, dtype="float32")


def test_every_member_has_a_case():
    assert CONVOLUTIONS.keys() == {*dynconv_jax.list_convolutions()}


@BOTH
def test_the_port_of_chen_becomes_a_network_and_comes_back(package):
    own = {"router": "chen", "num_experts": 2}
    options: dict[str, Any] = dict(conv="dynamic", conv_options=own)
    state_dict = to_chen_layout(trained(**SMALL, **options))
    net = made(package, state_dict)
    if package is dynconv_jax:
        found = dynconv_jax.to_torch_state_dict(net, layout="chen")
    else:
        found = to_chen_layout(net.state_dict())
    assert found.keys() == state_dict.keys()
    for key, value in state_dict.items():
        np.testing.assert_array_equal(np.asarray(found[key]), value.numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", dict(conv="odconv", dynamic=1)),
        ("resnet50", dict(conv="static")),
        ("efficientnet_cc_b0_4e", dict(tensorflow=True)),
    ],
)
def test_networks_at_full_size_hold_the_checkpoint_in_both(name, options):
    state_dict = as_published(trained(name, **options))
    for package in (dynconv_jax, dynconv_torch):
        told = int(name.startswith("efficientnet"))
        assert_holds(made(package, state_dict, told), state_dict)


# What is around a state dict


@BOTH
@pytest.mark.parametrize(
    ("prefix", "told"), [("module.", 1), ("backbone.", 1), ("module.net.", 2)]
)
def test_prefixes_are_taken_off_aloud(package, prefix, told):
    state_dict = trained(**SMALL)
    wrapped = {f"{prefix}{key}": value for key, value in state_dict.items()}
    assert_holds(made(package, wrapped, told), state_dict)


@BOTH
def test_the_averaged_weights_of_a_checkpoint_are_those_that_are_loaded(package):
    state_dict = trained(**SMALL)
    other = {key: torch.zeros_like(value) for key, value in state_dict.items()}
    whole = {"epoch": 3, "state_dict": other, "state_dict_ema": state_dict}
    assert_holds(made(package, whole, 1), state_dict)


@BOTH
def test_arrays_of_every_kind_are_taken(package):
    state_dict = trained(**SMALL, dtype=torch.bfloat16)
    arrays: dict[str, Any] = {
        key: value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if value.dtype == torch.bfloat16
        else value.numpy()
        for key, value in state_dict.items()
    }
    arrays["fc.bias"] = jnp.asarray(arrays["fc.bias"])
    net = made(package, arrays)
    expected = {key: value.float() for key, value in state_dict.items() if value.ndim}
    found = state_of(net)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value.numpy(), err_msg=key)


# Files


@BOTH
def test_files_of_both_kinds_are_read(package, tmp_path):
    state_dict = trained(**SMALL)
    safetensors.torch.save_file(state_dict, tmp_path / "net.safetensors")
    torch.save({"model": state_dict, "lr": 0.1}, tmp_path / "net.pth")
    assert_holds(made(package, str(tmp_path / "net.safetensors")), state_dict)
    assert_holds(made(package, tmp_path / "net.pth", 1), state_dict)


@BOTH
@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors"])
def test_a_directory_of_others_is_read(package, name, tmp_path):
    state_dict = trained(**SMALL)
    (tmp_path / "config.json").write_text('{"architecture": "net"}')
    safetensors.torch.save_file(state_dict, tmp_path / name)
    assert_holds(made(package, tmp_path), state_dict)


@BOTH
def test_a_saved_model_is_opened_as_it_was_saved(package, tmp_path):
    net = dynconv_torch.create_model(**SMALL, conv="dynamic", top_k=2)
    dynconv_torch.save_pretrained(net, tmp_path / "net")
    again = made(package, tmp_path / "net")
    assert_holds(again, net.state_dict())
    dyn = again.stage1.dyn
    assert (dyn.top_k if package is dynconv_torch else dyn.router.top_k) == 2


@BOTH
def test_what_was_made_can_be_saved_as_a_model(package, tmp_path):
    state_dict = trained(**SMALL, **CONVOLUTIONS["odconv"])
    package.save_pretrained(made(package, state_dict), tmp_path / "net")
    assert_holds(dynconv_torch.from_pretrained(tmp_path / "net"), state_dict)


@BOTH
def test_a_pickle_of_more_than_tensors_is_refused_and_not_run(package, tmp_path):
    torch.save({"model": torch.nn.Linear(3, 2)}, tmp_path / "net.pt")
    message = refusal(package, tmp_path / "net.pt")
    assert "more than tensors" in message and "net.pt" in message


@BOTH
@pytest.mark.parametrize("content", [b"", b"\x80\x02damaged", b"PK\x03\x04", b"words"])
def test_damaged_files_are_refused(package, content, tmp_path):
    (tmp_path / "net.pt").write_bytes(content)
    message = refusal(package, tmp_path / "net.pt")
    assert message.startswith("`state_dict_or_path` (='") and "net.pt'): " in message


@BOTH
def test_a_directory_without_weights_is_refused(package, tmp_path):
    message = refusal(package, tmp_path, FileNotFoundError)
    assert message.startswith("`state_dict_or_path` (='")
    assert "none of model.safetensors, weights.safetensors" in message


@BOTH
def test_errors_about_a_saved_model_name_the_argument(package, tmp_path):
    net = dynconv_torch.create_model(**SMALL)
    dynconv_torch.save_pretrained(net, tmp_path / "net")
    (tmp_path / "net" / "model.safetensors").write_bytes(b"damaged")
    message = refusal(package, tmp_path / "net")
    assert message.startswith("`state_dict_or_path` (='") and "truncated" in message


# What no array tells


@BOTH
def test_the_network_is_in_evaluation_mode(package):
    net = made(package, trained(**SMALL, **CONVOLUTIONS["odconv"]))
    if package is dynconv_torch:
        assert not any(part.training for part in net.modules())
    else:
        norms = [part for _, part in nnx.iter_modules(net)]
        flags = [getattr(each, "use_running_average", True) for each in norms]
        assert all(flags)


@BOTH
@pytest.mark.parametrize("member", ["dynamic", "odconv"])
def test_options_that_no_array_tells_reach_network_and_layers(package, member):
    state_dict = trained(**SMALL, **CONVOLUTIONS[member])
    for given in (state_dict, as_published(state_dict)):
        net = made(package, given, temperature=3.0)
        temperatures = [
            float(value)
            for key, value in state_of(net).items()
            if key.endswith(".temperature")
        ]
        assert temperatures == [3.0] * 3
    again = made(package, state_dict)
    assert float(state_of(again)["stage1.dyn." + key_of[member]]) == 1.0


key_of = {"dynamic": "temperature", "odconv": "attention.temperature"}


@BOTH
def test_the_temperature_of_the_checkpoint_is_kept(package):
    state_dict = trained(**SMALL)
    state_dict["stage2.dyn.temperature"].fill_(0.6)
    assert float(state_of(made(package, state_dict))["stage2.dyn.temperature"]) == 0.6


def test_random_streams_are_those_that_are_given():
    state_dict = trained(**SMALL)
    nets = [
        made(dynconv_jax, state_dict, rngs=nnx.Rngs(seed), router_dropout=0.5)
        for seed in (0, 0, 1)
    ]
    images = jnp.ones((2, 9, 7, 3))
    for net in nets:
        net.train()
    run = nnx.jit(lambda net: net(images))
    first, same, other = (np.asarray(run(net)) for net in nets)
    assert (first == same).all() and (first != other).any()


def test_an_outline_keeps_no_abstract_values():
    net = made(dynconv_jax, as_published(trained(**SMALL)), router_dropout=0.5)
    for path, part in nnx.iter_graph(net):
        if isinstance(part, nnx.Variable):
            assert isinstance(part.get_value(), jnp.ndarray | np.ndarray), path
    kinds = [part for _, part in nnx.iter_graph(net) if isinstance(part, Temperature)]
    assert len(kinds) == 3


@BOTH
def test_that_padding_is_a_guess_is_told_unless_it_is_said(package):
    state_dict = zeros(shapes_of("efficientnet_cc_b0_4e", num_classes=2))
    with pytest.warns(UserWarning, match="`tensorflow` is taken to be True: no array"):
        net = package.create_model_from_checkpoint(state_dict)
    norm = net.bn1
    epsilon = norm.eps if package is dynconv_torch else norm.epsilon
    assert epsilon == 1e-3


@BOTH
@pytest.mark.parametrize(
    "options", [{"low_pass": "stretched"}, {"conv_options": {"low_pass": "stretched"}}]
)
def test_that_a_low_pass_is_a_guess_is_told_unless_it_is_said(package, options):
    state_dict = trained(**SMALL, **CONVOLUTIONS["fdconv"])
    with pytest.warns(UserWarning, match="`low_pass` is taken to be 'ideal': no array"):
        package.create_model_from_checkpoint(state_dict)
    layer = made(package, state_dict, **options).stage3.dyn
    bands = layer.FBM if package is dynconv_torch else layer.modulation
    assert bands.low_pass == "stretched"


@BOTH
@pytest.mark.parametrize(
    "options", [{"axis": "time"}, {"conv_options": {"axis": "time"}}]
)
def test_an_axis_that_no_array_tells_may_be_said(package, options):
    state_dict = zeros(shapes_of("fdy_cnn", num_classes=2, width_mult=1 / 32))
    net = made(package, state_dict, temperature=31.0, **options)
    layer = net.cnn.conv1 if package is dynconv_torch else net.block1.conv
    assert layer.axis == "time"


def test_a_dtype_that_jax_has_switched_off_is_refused_with_the_switch():
    state_dict = trained(**SMALL)
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match="jax_enable_x64', True"),
    ):
        dynconv_jax.create_model_from_checkpoint(state_dict, param_dtype="float64")


@BOTH
def test_an_option_that_says_the_same_otherwise_is_none(package):
    state_dict = trained(**SMALL)
    assert_holds(made(package, state_dict, width_mult=0.2501), state_dict)


def test_a_dtype_that_holds_them_is_taken():
    state_dict = trained(**SMALL, dtype=torch.float64)
    assert_holds(made(dynconv_torch, state_dict, dtype=torch.float64), state_dict)
    assert_holds(made(dynconv_jax, state_dict, param_dtype=jnp.float64), state_dict)


@BOTH
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", ">f4", "float16"])
def test_arrays_that_float32_holds_are_taken_whatever_their_dtype(package, dtype):
    dtype = getattr(ml_dtypes, dtype, dtype)
    values = np.arange(7, dtype=np.float32).astype(dtype)
    state_dict = as_published(zeros(shapes_of(**SMALL)))
    net = made(package, {**state_dict, "fc.bias": values})
    np.testing.assert_array_equal(state_of(net)["fc.bias"], np.arange(7))
