"""A checkpoint alone becomes its network, bit by bit, in both frameworks, or none."""

import warnings
from typing import Any

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
from parity_tests.tools.checkpoints import as_published, shapes_of, trained, zeros
from parity_tests.tools.saved import state_of

BOTH = pytest.mark.parametrize("package", [dynconv_jax, dynconv_torch])
SMALL: dict[str, Any] = dict(name="dynamic_net", width_mult=0.25, num_classes=7)


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


def refusal(package, given, kind: type[Exception] = ValueError, **options) -> str:
    with pytest.raises(kind) as caught:
        package.create_model_from_checkpoint(given, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


MEMBERS: dict[str, dict[str, Any]] = {
    "static": dict(conv="static"),
    "dynamic": dict(conv="dynamic", conv_options={"num_experts": 2}),
    "condconv": dict(conv="condconv", conv_options={"num_experts": 3}),
    "odconv": dict(conv="odconv", conv_options={"num_experts": 1}),
    "decomposed": dict(conv="decomposed"),
    "kernel_warehouse": dict(conv="kernel_warehouse", conv_options={"ratio": 0.5}),
    "fdconv": dict(conv="fdconv", conv_options={"num_experts": 3}),
    "frequency_dynamic": dict(conv="frequency_dynamic"),
}


@pytest.mark.parametrize("member", MEMBERS)
def test_a_checkpoint_becomes_the_same_network_in_both(member, rng):
    state_dict = as_published(trained(**SMALL, **MEMBERS[member]))
    ours, theirs = (made(each, state_dict) for each in (dynconv_jax, dynconv_torch))
    for net in (ours, theirs):
        assert_holds(net, state_dict)
    images = rng.normal(size=(2, 9, 7, 3)).astype("float32")
    expected = theirs(as_torch(np.moveaxis(images, -1, 1))).detach().numpy()
    assert_close({"output": ours(images)}, {"output": expected}, dtype="float32")


def test_every_member_has_a_case():
    assert MEMBERS.keys() == {*dynconv_jax.list_convolutions()}


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
        ("mobilenet_v2", dict(conv="dynamic", width_mult=0.1, in_channels=2)),
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
    state_dict = trained(**SMALL, **MEMBERS["odconv"])
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
    assert "net.pt" in refusal(package, tmp_path / "net.pt")


@BOTH
def test_a_directory_without_weights_is_refused(package, tmp_path):
    message = refusal(package, tmp_path, FileNotFoundError)
    assert "none of model.safetensors, weights.safetensors" in message


# What no array tells


@BOTH
def test_the_network_is_in_evaluation_mode(package):
    net = made(package, trained(**SMALL, **MEMBERS["odconv"]))
    if package is dynconv_torch:
        assert not any(part.training for part in net.modules())
    else:
        norms = [part for _, part in nnx.iter_modules(net)]
        flags = [getattr(each, "use_running_average", True) for each in norms]
        assert all(flags)


@BOTH
@pytest.mark.parametrize("member", ["dynamic", "odconv"])
def test_options_that_no_array_tells_reach_network_and_layers(package, member):
    state_dict = trained(**SMALL, **MEMBERS[member])
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
    first, same, other = (np.asarray(net(images)) for net in nets)
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


# Refusals


@BOTH
def test_a_checkpoint_of_no_known_network_is_refused(package):
    message = refusal(package, {"encoder.fc_phi.weight": np.ones((16, 4))})
    assert "of no network that is known; its keys are encoder.fc_phi.weight" in message
    assert "ResNet" in message and "Decomposition" in message


@BOTH
def test_a_checkpoint_of_nearly_a_network_is_told_what_differs(package):
    state_dict = zeros(shapes_of(**SMALL))
    more = {f"stage4.conv{n}.weight": np.ones(3) for n in range(5)}
    message = refusal(package, state_dict | more)
    assert "create_model('dynamic_net', width_mult=0.25, num_classes=7)" in message
    assert "5 unexpected keys (stage4.conv0.weight, " in message
    assert message.endswith(" and 2 more)")


@BOTH
def test_without_its_head_a_checkpoint_is_told_the_way(package):
    state_dict = zeros(shapes_of(**SMALL))
    body = {k: v for k, v in state_dict.items() if not k.startswith("fc.")}
    message = refusal(package, body)
    assert "2 missing keys (fc.weight, of shape (10, 64), fc.bias" in message
    way = "ignore=('fc',)" if package is dynconv_jax else "strict=False"
    assert way in message


@BOTH
@pytest.mark.parametrize(
    ("member", "options", "words"),
    [
        ("static", {"num_classes": 9}, "`num_classes` (=9) contradicts it, .* says 7"),
        (
            "dynamic",
            {"width_mult": 0.5},
            "`width_mult` (=0.5) contradicts .* says 0.25",
        ),
        ("odconv", {"norm": "layer"}, "with `norm` (='layer') it does not fit"),
    ],
)
def test_options_that_contradict_the_arrays_are_refused(
    package, member, options, words
):
    state_dict = trained(**SMALL, **MEMBERS[member])
    message = refusal(package, state_dict, **options)
    first, _, second = words.partition(" .* ")
    assert first in message and second in message


@BOTH
def test_an_option_that_says_the_same_otherwise_is_none(package):
    state_dict = trained(**SMALL)
    assert_holds(made(package, state_dict, width_mult=0.2501), state_dict)


@BOTH
def test_an_unknown_option_is_refused_by_name(package):
    message = refusal(package, trained(**SMALL), TypeError, top_q=2)
    assert "'top_q'; did you mean 'top_k'? dynamic_net and its" in message


@BOTH
def test_a_dtype_that_cannot_hold_the_arrays_is_refused(package):
    state_dict = trained(**SMALL, dtype=torch.float64)
    message = refusal(package, state_dict)
    assert "float64" in message and "cannot hold" in message


def test_a_dtype_that_holds_them_is_taken():
    state_dict = trained(**SMALL, dtype=torch.float64)
    assert_holds(made(dynconv_torch, state_dict, dtype=torch.float64), state_dict)
    assert_holds(made(dynconv_jax, state_dict, param_dtype=jnp.float64), state_dict)


@BOTH
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_none_is_refused(package, value):
    state_dict = trained(**SMALL)
    state_dict["stage1.dyn.temperature"].fill_(value)
    message = refusal(package, state_dict)
    assert "stage1.dyn.temperature is " in message and "positive" in message


@BOTH
def test_an_array_larger_than_any_network_is_refused(package):
    state_dict = zeros(shapes_of(**SMALL) | {"fc.weight": (10**12, 64)})
    message = refusal(package, state_dict)
    assert "fc.weight alone the shape (1000000000000, 64)" in message


@BOTH
def test_more_experts_than_any_layer_has_are_refused(package):
    shapes = shapes_of(**SMALL)
    for stage in (1, 2, 3):
        prefix = f"stage{stage}.dyn."
        for key in (f"{prefix}weight", f"{prefix}fc2.weight", f"{prefix}fc2.bias"):
            shapes[key] = (5000, *shapes[key][1:])
    message = refusal(package, zeros(shapes))
    assert "`num_experts` (=5000)" in message and "4096" in message


@BOTH
@pytest.mark.parametrize("given", [None, 3, [], {3: np.ones(2)}])
def test_what_is_no_checkpoint_is_refused(package, given):
    message = refusal(package, given, TypeError)
    assert message.startswith("`state_dict_or_path` must be a dict of arrays")


@BOTH
def test_a_module_is_told_to_give_its_state_dict(package):
    message = refusal(package, torch.nn.Linear(3, 2), TypeError)
    assert message.endswith("not the Linear; give its `.state_dict()`")


@BOTH
def test_a_module_in_a_checkpoint_is_told_to_give_its_state_dict(package):
    message = refusal(package, {"epoch": 3, "model": torch.nn.Linear(3, 2)}, TypeError)
    assert message.endswith(
        "a Linear under 'model', not arrays; give its `.state_dict()`"
    )


@BOTH
def test_a_refusal_tells_what_was_taken_off_before(package):
    state_dict = zeros(shapes_of(**SMALL))
    body = {f"net.{k}": v for k, v in state_dict.items() if not k.startswith("fc.")}
    message = refusal(package, {"model": body})
    assert message.endswith(
        "; before, the weights are those of the entry 'model'; before, the prefix "
        "'net.' was taken off all keys"
    )


@BOTH
def test_what_is_no_array_is_told_by_its_key(package):
    state_dict = {**zeros(shapes_of(**SMALL)), "fc.bias": None}
    assert "fc.bias is no" in (message := refusal(package, state_dict))
    assert message.endswith("it is a NoneType")


@BOTH
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fc.bias", np.ones(7, np.int64)),
        ("fc.bias", np.ones(7, complex)),
        ("stage1.bn.running_mean", np.ones(16)),
        ("stage1.bn.num_batches_tracked", np.array(3.5)),
    ],
)
def test_no_array_is_rounded_to_be_held(package, key, value):
    message = refusal(package, {**zeros(shapes_of(**SMALL)), key: value})
    assert f"{key} is " in message and "cannot hold" in message
    assert ("dtype=" in message) <= (key == "stage1.bn.running_mean")


@BOTH
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", ">f4", "float16"])
def test_arrays_that_float32_holds_are_taken_whatever_their_dtype(package, dtype):
    dtype = getattr(ml_dtypes, dtype, dtype)
    values = np.arange(7, dtype=np.float32).astype(dtype)
    state_dict = as_published(zeros(shapes_of(**SMALL)))
    net = made(package, {**state_dict, "fc.bias": values})
    np.testing.assert_array_equal(state_of(net)["fc.bias"], np.arange(7))


def test_a_quantized_tensor_is_refused_with_the_way():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch is to drop such tensors
        bias = torch.quantize_per_tensor(torch.ones(7), 0.1, 0, torch.qint8)
    message = refusal(dynconv_torch, {**zeros(shapes_of(**SMALL)), "fc.bias": bias})
    assert message.endswith("fc.bias is quantized; give its `.dequantize()`")


# What loading says of a checkpoint of others


def test_loading_names_the_network_that_a_state_dict_is_of():
    state_dict = zeros(shapes_of(**SMALL, conv="odconv"))
    module = dynconv_jax.create_model(**SMALL, conv="condconv", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError) as caught:
        dynconv_jax.load_torch_state_dict(module, as_published(state_dict))
    assert str(caught.value).endswith(
        "The state dict is of dynamic_net with ODConv: `create_model('dynamic_net', "
        "width_mult=0.25, num_classes=7, conv='odconv')` takes it."
    )


def test_loading_says_how_to_take_all_but_the_head():
    state_dict = zeros(shapes_of(**SMALL))
    other: dict[str, Any] = {**SMALL, "num_classes": 3}
    module = dynconv_jax.create_model(**other, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError) as caught:
        dynconv_jax.load_torch_state_dict(module, as_published(state_dict))
    message = str(caught.value)
    assert message.endswith("`ignore=('fc',)` loads all but its head.")


@BOTH
def test_a_saved_model_with_weights_of_another_names_that(package, tmp_path):
    net = dynconv_torch.create_model(**SMALL)
    dynconv_torch.save_pretrained(net, tmp_path / "net")
    others = as_published(trained(**SMALL, conv="static"))
    safetensors.torch.save_file(others, tmp_path / "net" / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        package.from_pretrained(tmp_path / "net")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(
        "; it is of dynamic_net: `create_model('dynamic_net', width_mult=0.25, "
        "num_classes=7, conv='static')` takes it"
    )
