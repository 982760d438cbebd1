"""A saved model is built again from its directory alone, in either framework."""

import copy
import functools
import json
import os
import re
import shutil
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
from dynconv_jax.weights.torch_layout import torch_variables
from parity_tests.parity import as_numpy, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.jax_modules import build

SMALL: dict[str, Any] = dict(name="dynamic_net", num_classes=7, width_mult=0.25)


def jax_net(**options):
    """A network of JAX with random values, as far as they may be random."""
    made = dynconv_jax.create_model
    net = build(lambda: made(**{**SMALL, **options}, rngs=nnx.Rngs(0)))
    for key, variable in torch_variables(net).items():
        if key.endswith(".assignment"):  # a share
            variable.set_value(jnp.full_like(variable.get_value(), 0.25))
    return net


def torch_net(**options) -> Any:
    """A network of PyTorch."""
    return dynconv_torch.create_model(**{**SMALL, **options})


PAIRS = {"jax": (dynconv_jax, jax_net), "torch": (dynconv_torch, torch_net)}
BOTH = pytest.mark.parametrize(("package", "make"), PAIRS.values(), ids=PAIRS)


def state_of(net):
    if isinstance(net, torch.nn.Module):
        return torch_state(net)
    return dynconv_jax.to_torch_state_dict(net)


def assert_equal_states(net, other):
    state, others = state_of(net), state_of(other)
    assert state.keys() == others.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(value, others[key], err_msg=key)


def edit(path, **changes):
    """Writes other fields into the configuration of a saved model."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture(scope="module")
def shared(tmp_path_factory, numerics):
    """Saved models of both frameworks, only to be copied."""
    folder = tmp_path_factory.mktemp("saved")
    for name, (package, make) in PAIRS.items():
        package.save_pretrained(make(), folder / name)
    return folder


@pytest.fixture
def saved(shared, tmp_path):
    """A saved model, to be changed at will."""
    return shutil.copytree(shared / "jax", tmp_path / "net")


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


@pytest.mark.parametrize("name", MODELS)
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


@BOTH
def test_directory_is_that_of_a_model_on_the_hub(package, make, tmp_path):
    package.save_pretrained(make(), tmp_path / "net", card="# Mine\n")
    assert sorted(os.listdir(tmp_path / "net")) == [
        *("README.md", "config.json", "model.safetensors")
    ]
    assert (tmp_path / "net" / "README.md").read_text() == "# Mine\n"
    assert os.listdir(tmp_path) == ["net"]


@BOTH
def test_card_has_the_front_matter_of_the_hub(package, make, tmp_path):
    package.save_pretrained(make(), tmp_path / "net")
    card = (tmp_path / "net" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: dynconv\n")
    assert "\n# dynamic_net\n" in card


def test_words_of_the_file_are_those_of_pytorch(tmp_path):
    options = dict(in_features=2, conv="dynamic")
    own = dict(router_hidden_features=5, kernel_dilation=2)
    net = jax_net(**options, conv_options=own, param_dtype=jnp.float64)
    dynconv_jax.save_pretrained(net, tmp_path / "net")
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert config["options"] == dict(in_channels=2, num_classes=7, width_mult=0.25)
    assert config["conv_options"] == dict(router_hidden_channels=5, dilation=2)
    assert config["param_dtype"] == "float64"
    theirs = dynconv_torch.from_pretrained(tmp_path / "net")
    assert theirs.stage1.dyn.dilation == (2, 2)
    assert theirs.fc.weight.dtype == torch.float64
    again = dynconv_jax.from_pretrained(tmp_path / "net")
    assert again.stage1.dyn.kernel_dilation == (2, 2)
    assert_equal_states(again, net)


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
@pytest.mark.parametrize("name", ["notes.txt", "README.md"])
def test_files_of_others_are_left_alone(package, make, name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        FileExistsError, match=f"holds files of others, such as '{name}"
    ):
        package.save_pretrained(make(), tmp_path)
    assert os.listdir(tmp_path) == [name]


@BOTH
def test_a_model_of_another_library_is_left_alone(package, make, saved):
    edit(saved, library="another")
    content = (saved / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match="files of others"):
        package.save_pretrained(make(), saved)
    assert (saved / "config.json").read_bytes() == content


@BOTH
def test_a_file_in_the_place_of_the_directory_is_refused(package, make, tmp_path):
    (tmp_path / "net").write_text("mine")
    with pytest.raises(FileExistsError, match="`path` .* is a file"):
        package.save_pretrained(make(), tmp_path / "net")


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
def test_a_card_that_is_no_text_is_refused(package, make, tmp_path):
    with pytest.raises(TypeError, match="`card` .a int. must be text, or None"):
        package.save_pretrained(make(), tmp_path / "net", card=3)


@BOTH
def test_what_is_no_module_or_no_path_is_refused(package, make, tmp_path):
    with pytest.raises(TypeError, match="`model` must be"):
        package.save_pretrained("net", tmp_path / "net")
    with pytest.raises(TypeError, match="`path` .a NoneType. must be a path"):
        package.save_pretrained(make(), None)


# Opening


@BOTH
def test_a_missing_directory_is_refused_with_where_to_get_it(package, make, tmp_path):
    with pytest.raises(FileNotFoundError, match="`huggingface_hub.snapshot_download"):
        package.from_pretrained(tmp_path / "user/net")
    with pytest.raises(TypeError, match="`path` .a int. must be a path"):
        package.from_pretrained(3)


@BOTH
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_refused_by_its_name(package, make, name, saved):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}; give a directory"):
        package.from_pretrained(saved)


@BOTH
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"library": NaN}', "is no JSON: NaN is no number"),
        (b"[]", "of another library"),
        (b'{"model_type": "bert"}', "of another library"),
    ],
    ids=range(6),
)
def test_a_configuration_of_another_kind_is_refused(
    package, make, content, words, saved
):
    (saved / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"^`path`: .*config.json' .*{words}"):
        package.from_pretrained(saved)


@BOTH
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(format_version=2), r"`format_version` \(=2\) is newer than this dynconv"),
        (dict(format_version=True), "`format_version` .=True. must be a number from 1"),
        (dict(model=3), "`model` .=3. must be a word"),
        (dict(conv=[]), "`conv` .=... must be a word or null"),
        (dict(options=[1]), "`options` .=.1.. must be options by name"),
        (dict(param_dtype="int8"), "`param_dtype` .='int8'. must be one of: float16"),
        (dict(model="resnet81"), "'resnet81'. is not known; did you mean 'resnet18'"),
        (dict(conv="dynamik"), "'dynamik'. is not known; did you mean 'dynamic'"),
        (dict(options=dict(width_mult=-1)), "`width_mult` .=-1. must be positive"),
        (dict(options=dict(width=1)), "'width'; did you mean 'width_mult'"),
        (dict(options=dict(device="cuda")), "`options` must not have `device`"),
        (dict(conv_options=dict(top_k=1)), "`conv_options` .* choose one by `conv`"),
    ],
)
def test_a_wrong_configuration_is_refused_by_the_field(
    package, make, changes, words, saved
):
    edit(saved, **changes)
    with pytest.raises(ValueError, match=f"^`path`: .*config.json'.*{words}") as caught:
        package.from_pretrained(saved)
    assert "\n" not in str(caught.value)


def test_float64_is_refused_with_what_has_jax_take_it(tmp_path):
    net = torch_net(dtype=torch.float64)
    dynconv_torch.save_pretrained(net, tmp_path / "net")
    with jax.enable_x64(False), pytest.raises(ValueError, match="`param_dtype` is flo"):
        dynconv_jax.from_pretrained(tmp_path / "net")
    with jax.enable_x64(True):
        assert_equal_states(dynconv_jax.from_pretrained(tmp_path / "net"), net)


@BOTH
@pytest.mark.parametrize("count", [10**13, 10**30])
def test_a_model_larger_than_any_memory_is_refused(package, make, count, saved):
    edit(saved, options=dict(num_classes=count, width_mult=0.25))
    with pytest.raises(ValueError, match="^`path`"):
        package.from_pretrained(saved)


@BOTH
def test_a_field_that_is_missing_is_named(package, make, saved):
    config = json.loads((saved / "config.json").read_text())
    del config["conv_options"]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="it has no `conv_options`"):
        package.from_pretrained(saved)


@BOTH
def test_weights_that_do_not_fit_are_refused_by_key(package, make, saved):
    edit(saved, options=dict(num_classes=8, width_mult=0.25))
    with pytest.raises(ValueError, match=r"fc.weight has .*\(7, 64\).*\(8, 64\)"):
        package.from_pretrained(saved)


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


# The two schemas are one


def test_both_packages_have_one_schema():
    texts = {
        re.sub(r"dynconv_\w+", "package", path.read_text())
        for path in ROOT.glob("dynconv_*/weights/pretrained_config.py")
    }
    assert len(texts) == 1
