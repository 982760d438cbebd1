"""A saved model is built again from its directory alone, in either framework."""

import copy
import functools
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from parity_tests.parity import as_numpy
from parity_tests.tolerances import assert_close
from parity_tests.tools.jax_modules import build
from parity_tests.tools.saved import (
    BOTH,
    PAIRS,
    SMALL,
    assert_equal_states,
    edit,
    jax_net,
    torch_net,
)

# There and back

MODELS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "options of the model": dict(conv="dynamic", num_experts=2, top_k=1),
    "options of the convolution": dict(conv="odconv", conv_options=dict(norm="layer")),
    "static": dict(conv="static"),
    "warehouses": dict(conv="kernel_warehouse", conv_options=dict(ratio=0.5)),
    "wide stem of resnet18": dict(
        name="resnet18", width_mult=None, conv="condconv", dynamic=1
    ),
}


def options_of(name):
    options = SMALL | MODELS[name]
    return {key: value for key, value in options.items() if value is not None}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if "resnet" in name else ())
        for name in MODELS
    ],
)
def test_each_framework_opens_what_the_other_wrote(name, tmp_path):
    options = options_of(name)
    net = dynconv_torch.create_model(**options)
    dynconv_torch.save_pretrained(net, tmp_path / "net")
    ours = dynconv_jax.from_pretrained(tmp_path / "net")
    assert_equal_states(ours, net)
    dynconv_jax.save_pretrained(ours, tmp_path / "ours")
    theirs = dynconv_torch.from_pretrained(tmp_path / "ours")
    assert_equal_states(theirs, net)
    assert type(theirs) is type(net)


@pytest.mark.parametrize("writer", PAIRS)
def test_both_compute_the_same_from_one_directory(writer, shared, rng):
    ours = dynconv_jax.from_pretrained(shared / writer)
    theirs = dynconv_torch.from_pretrained(shared / writer)
    inputs = rng.normal(size=(2, 9, 12, 3)).astype(np.float32)
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy()))
    assert_close(
        {"logits": np.asarray(ours(jnp.asarray(inputs)))},
        {"logits": as_numpy(expected)},
        dtype="float32",
    )


def test_form_of_the_other_framework_is_left_to_this_one(tmp_path):
    net = jax_net(implementation="scan", conv="dynamic")
    dynconv_jax.save_pretrained(net, tmp_path / "ours")
    own = dynconv_jax.from_pretrained(tmp_path / "ours")
    assert own.stage1.dyn.implementation == "scan"
    other = dynconv_torch.from_pretrained(tmp_path / "ours")
    assert other.stage1.dyn.implementation == "auto"
    twin = torch_net(conv="dynamic", conv_options=dict(implementation="grouped"))
    dynconv_torch.save_pretrained(twin, tmp_path / "theirs")
    own = dynconv_torch.from_pretrained(tmp_path / "theirs")
    assert own.stage1.dyn.implementation == "grouped"
    other = dynconv_jax.from_pretrained(tmp_path / "theirs")
    assert other.stage1.dyn.implementation == "auto"


@BOTH
def test_convolution_given_itself_is_saved_by_its_name(package, make, tmp_path):
    kind = "ODConv" if package is dynconv_jax else "ODConv2d"
    conv = functools.partial(getattr(package, kind), num_experts=2)
    package.save_pretrained(make(conv=conv), tmp_path / "net")
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert (config["conv"], config["conv_options"]) == ("odconv", {"num_experts": 2})


def test_initialisers_are_of_no_matter(tmp_path):
    options = dict(kernel_init=nnx.initializers.ones, num_experts=2)
    net = jax_net(conv="dynamic", conv_options=options)
    dynconv_jax.save_pretrained(net, tmp_path / "net")
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert config["conv_options"] == {"num_experts": 2}


@BOTH
def test_options_take_the_place_of_those_saved(package, make, shared):
    net = package.from_pretrained(shared / "jax", router_dropout=0.25)
    if package is dynconv_jax:
        rates = [p.rate for _, p in nnx.iter_modules(net) if isinstance(p, nnx.Dropout)]
    else:
        rates = [p.p for p in net.modules() if isinstance(p, torch.nn.Dropout)]
    assert rates == 3 * [0.25]


@BOTH
def test_options_of_the_convolution_take_the_place_of_those_saved(
    package, make, tmp_path
):
    options = dict(num_experts=2, implementation="patches")
    net = make(conv="dynamic", conv_options=options)
    package.save_pretrained(net, tmp_path / "net")
    again = package.from_pretrained(
        tmp_path / "net", conv_options={"implementation": "experts"}
    )
    assert again.stage1.dyn.implementation == "experts"
    assert again.stage1.dyn.num_experts == 2


def test_what_is_built_draws_from_the_random_numbers_given(tmp_path):
    dynconv_jax.save_pretrained(jax_net(router_dropout=0.5), tmp_path / "net")
    keys = [
        dynconv_jax.from_pretrained(
            tmp_path / "net", rngs=nnx.Rngs(seed)
        ).stage1.dyn.router.dropout.rngs.key[...]
        for seed in (0, 0, 1)
    ]
    assert keys[0] == keys[1] and keys[0] != keys[2]


def test_a_network_with_dropout_trains_at_once(tmp_path):
    dynconv_jax.save_pretrained(jax_net(router_dropout=0.5), tmp_path / "net")
    net = dynconv_jax.from_pretrained(tmp_path / "net")
    logits = nnx.eval_shape(lambda net: net(jnp.ones((2, 9, 12, 3))), net)
    assert logits.shape == (2, 7)


def test_structure_is_that_of_the_model_saved(tmp_path):
    net = jax_net(conv="dynamic", conv_options={"num_experts": 2})
    dynconv_jax.save_pretrained(net, tmp_path / "net")
    again = dynconv_jax.from_pretrained(tmp_path / "net")
    assert nnx.graphdef(again) == nnx.graphdef(net)


def test_a_model_cast_as_a_whole_is_saved_in_its_dtype(tmp_path):
    net = torch_net().to(torch.bfloat16)
    dynconv_torch.save_pretrained(net, tmp_path / "net")
    assert_equal_states(dynconv_torch.from_pretrained(tmp_path / "net"), net)
    ours = dynconv_jax.from_pretrained(tmp_path / "net")
    assert ours.fc.kernel.dtype == jnp.bfloat16


def test_statistics_are_rounded_where_pytorch_holds_them_so(tmp_path):
    net = jax_net(param_dtype=jnp.bfloat16)
    dynconv_jax.save_pretrained(net, tmp_path / "net")
    theirs = dynconv_torch.from_pretrained(tmp_path / "net")
    held = theirs.stem[1].running_mean
    assert held is not None and held.dtype == torch.bfloat16
    mean = torch.from_numpy(np.array(net.stem.layers[1].mean[...], np.float32))
    assert torch.equal(held, mean.to(torch.bfloat16))


@BOTH
def test_description_goes_where_the_model_goes(package, make, tmp_path):
    if package is dynconv_jax:
        net = nnx.view(nnx.merge(*nnx.split(make())), deterministic=True)
    else:
        net = copy.deepcopy(make()).eval()
    package.save_pretrained(net, tmp_path / "net")
    assert_equal_states(package.from_pretrained(tmp_path / "net"), net)


# Saving


@BOTH
def test_a_model_saved_before_gives_way(package, make, saved):
    net = make(num_classes=3)
    package.save_pretrained(net, saved)
    assert_equal_states(package.from_pretrained(saved), net)


@BOTH
def test_failed_save_leaves_the_old_model(package, make, saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        package.save_pretrained(make(num_classes=3), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_module_of_ones_own_is_refused_with_a_remedy(tmp_path):
    net = build(lambda: dynconv_jax.DynamicNet(width_mult=0.25, rngs=nnx.Rngs(0)))
    words = "was not made by `create_model`.*`load_torch_state_dict.made, to_torch"
    with pytest.raises(ValueError, match=words):
        dynconv_jax.save_pretrained(net, tmp_path / "net")
    twin = torch.nn.DataParallel(torch_net())
    words = r"was not made by `create_model`.*`model.module`"
    with pytest.raises(ValueError, match=words):
        dynconv_torch.save_pretrained(twin, tmp_path / "net")
    assert os.listdir(tmp_path) == []


@BOTH
def test_a_convolution_of_ones_own_is_refused_by_its_name(package, make, tmp_path):
    def special(*arguments, **options):
        kind = "DynamicConv" if package is dynconv_jax else "DynamicConv2d"
        return getattr(package, kind)(*arguments, **options)

    with pytest.raises(ValueError, match="no file can hold: `conv` .=special. is none"):
        package.save_pretrained(make(conv=special), tmp_path / "net")


@BOTH
def test_an_option_that_no_file_can_hold_is_refused_by_its_name(
    package, make, tmp_path
):
    options = {"group_by": lambda index, geometry, path: "all"}
    net = make(conv="kernel_warehouse", conv_options=options)
    with pytest.raises(ValueError, match="`group_by` in `conv_options` .=<function"):
        package.save_pretrained(net, tmp_path / "net")


@BOTH
def test_numbers_of_numpy_and_tuples_are_options(package, make, tmp_path):
    dilation = "kernel_dilation" if package is dynconv_jax else "dilation"
    net = make(
        num_classes=np.int64(7),
        width_mult=np.float32(0.25),
        conv="dynamic",
        conv_options={dilation: (1, 2), "num_experts": np.int32(2)},
    )
    package.save_pretrained(net, tmp_path / "net")
    assert_equal_states(package.from_pretrained(tmp_path / "net"), net)


def other_head(net: Any):
    if isinstance(net, torch.nn.Module):
        net.fc = torch.nn.Linear(64, 5)
    else:
        net.fc = nnx.Linear(64, 5, rngs=nnx.Rngs(0))


def other_kind(net: Any):
    stem = net.stem
    if isinstance(net, torch.nn.Module):
        options = dict(affine=True, track_running_stats=True)
        stem[1] = torch.nn.InstanceNorm2d(8, **options)
    else:
        net.stem.layers[1] = nnx.BatchNorm(8, rngs=nnx.Rngs(0))


def other_form(net: Any):
    net.stage2.dyn.implementation = "experts"


def other_stride(net: Any):
    stem = net.stem
    if isinstance(net, torch.nn.Module):
        stem[0].stride = (2, 1)
    else:
        stem.layers[0].strides = (2, 1)


def one_layer_more(net: Any):
    if isinstance(net, torch.nn.Module):
        net.more = torch.nn.Linear(2, 3)
    else:
        net.more = nnx.Linear(2, 3, rngs=nnx.Rngs(0))


@BOTH
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_head, "`out_features` of fc is 5, and was 7"),
        (other_kind, r"stem.*1 is a .*, and was a [\w.]+\.BatchNorm"),
        (other_form, "`implementation` of stage2.dyn is 'experts', and was 'auto'"),
        (other_stride, r"`strides?` of stem.*0 is \(2, 1\), and was (1|\(1, 1\)),?"),
        (one_layer_more, r"more \(a Linear\) was not there"),
    ],
)
def test_a_model_that_was_changed_is_refused(package, make, change, words, tmp_path):
    net = make()
    change(net)
    with pytest.raises(ValueError, match=f"was changed since `create_model` .*{words}"):
        package.save_pretrained(net, tmp_path / "net")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("package", "make"), [(dynconv_jax, jax_net), (dynconv_torch, torch_net)]
)
@pytest.mark.parametrize("enable", [False, True])
def test_gradient_checkpointing_is_no_change_of_a_model(
    package, make, enable, tmp_path
):
    net = make()
    package.models.set_grad_checkpointing(net, enable)
    package.save_pretrained(net, tmp_path / "net")
    assert not package.from_pretrained(tmp_path / "net").grad_checkpointing


def test_parameters_of_another_dtype_or_shape_are_refused(tmp_path):
    net = jax_net()
    net.fc.bias.set_value(net.fc.bias.get_value().astype(jnp.bfloat16))
    with pytest.raises(
        ValueError, match="fc.bias is .7,. in bfloat16, and was .7,. in"
    ):
        dynconv_jax.save_pretrained(net, tmp_path / "net")
    twin = torch_net()
    twin.fc.bias.data = torch.ones(9)
    with pytest.raises(ValueError, match=r"fc.bias is \(9,\), and was \(7,\)"):
        dynconv_torch.save_pretrained(twin, tmp_path / "net")
    twin = torch_net()
    twin.fc.half()
    with pytest.raises(ValueError, match="one dtype, and has torch.float16, torch.fl"):
        dynconv_torch.save_pretrained(twin, tmp_path / "net")


@pytest.mark.slow
def test_folded_batch_norms_are_refused_and_transplanted_weights_are_not(tmp_path):
    net = jax_net(conv="dynamic")
    folded = dynconv_jax.fold_batch_norm(net, jnp.ones((1, 9, 12, 3)))
    with pytest.raises(ValueError, match=r"is a [\w.]+ChannelShift, and was a"):
        dynconv_jax.save_pretrained(folded, tmp_path / "net")
    static = jax_net(conv="static")
    dynconv_jax.init_from_static(net, static)
    dynconv_jax.save_pretrained(net, tmp_path / "net")
    assert_equal_states(dynconv_jax.from_pretrained(tmp_path / "net"), net)


@BOTH
def test_what_is_no_module_or_no_path_is_refused(package, make, tmp_path):
    with pytest.raises(TypeError, match="`model` must be"):
        package.save_pretrained("net", tmp_path / "net")
    with pytest.raises(TypeError, match="`path` .a NoneType. must be a path"):
        package.save_pretrained(make(), None)


# Opening


def test_float64_is_refused_with_what_has_jax_take_it(tmp_path):
    net = torch_net(dtype=torch.float64)
    dynconv_torch.save_pretrained(net, tmp_path / "net")
    with jax.enable_x64(False), pytest.raises(ValueError, match="`param_dtype` is flo"):
        dynconv_jax.from_pretrained(tmp_path / "net")
    with jax.enable_x64(True):
        assert_equal_states(dynconv_jax.from_pretrained(tmp_path / "net"), net)


@BOTH
def test_weights_that_do_not_fit_are_refused_by_key(package, make, saved):
    edit(saved, options=dict(num_classes=8, width_mult=0.25))
    words = r"does not fit the DynamicNet .*fc.weight has .*\(7, 64\).*\(8, 64\)"
    with pytest.raises(ValueError, match=words) as caught:
        package.from_pretrained(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("fc.bias"), "fc.bias is missing$"),
        (lambda state: state.update(more=torch.ones(2)), "more is not known$"),
        (
            lambda state: state.update({"fc.bias": torch.ones(7, dtype=torch.float64)}),
            "fc.bias is torch.float64, which torch.float32 cannot hold$",
        ),
        (
            lambda state: state.update({"stage1.dyn.temperature": torch.tensor(-1.0)}),
            "stage1.dyn.temperature is -1; it must be",
        ),
    ],
)
def test_weights_that_do_not_fit_the_twin_are_refused_by_key(change, words, saved):
    state = safetensors.torch.load_file(saved / "model.safetensors")
    change(state)
    safetensors.torch.save_file(state, saved / "model.safetensors")
    with pytest.raises(ValueError, match=f"does not fit the DynamicNet .*{words}"):
        dynconv_torch.from_pretrained(saved)


@BOTH
def test_weights_that_are_cut_are_refused(package, make, saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="model.safetensors'.* truncated"):
        package.from_pretrained(saved)


@BOTH
def test_an_unknown_option_is_a_fault_of_the_call(package, make, saved):
    with pytest.raises(TypeError, match="'width'; did you mean 'width_mult'"):
        package.from_pretrained(saved, width=0.5)
