"""What `config.json` of a saved model must hold, and where it may be written."""

import json
import os
import re

import jax.numpy as jnp
import pytest
import torch

import dynconv_jax
import dynconv_torch
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.saved import BOTH, assert_equal_states, edit, jax_net


@BOTH
def test_directory_is_that_of_a_model_on_the_hub(package, make, tmp_path):
    package.save_pretrained(make(), tmp_path / "net", card="# Mine\n")
    assert sorted(os.listdir(tmp_path / "net")) == [
        *("README.md", "config.json", "model.safetensors")
    ]
    assert (tmp_path / "net" / "README.md").read_text() == "# Mine\n"
    assert os.listdir(tmp_path) == ["net"]


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


@BOTH
def test_card_has_the_front_matter_of_the_hub(package, make, tmp_path):
    package.save_pretrained(make(), tmp_path / "net")
    card = (tmp_path / "net" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: dynconv\n")
    assert "\n# dynamic_net\n" in card


@BOTH
def test_a_card_that_is_no_text_is_refused(package, make, tmp_path):
    with pytest.raises(TypeError, match="`card` .a int. must be text, or None"):
        package.save_pretrained(make(), tmp_path / "net", card=3)


@BOTH
def test_a_card_that_no_file_can_hold_is_refused(package, make, tmp_path):
    words = r"`card` has '\\ud800' at 5, a lone surrogate"
    with pytest.raises(ValueError, match=words):
        package.save_pretrained(make(), tmp_path / "net", card="Mine \ud800")
    assert os.listdir(tmp_path) == []


# Where it may be written


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


# What is read


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
def test_a_field_that_is_missing_is_named(package, make, saved):
    config = json.loads((saved / "config.json").read_text())
    del config["conv_options"]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="it has no `conv_options`"):
        package.from_pretrained(saved)


@BOTH
def test_fields_of_the_hub_and_of_other_libraries_pass(package, make, saved, shared):
    edit(saved, architectures=["DynamicNet"], transformers_version="4.57.1")
    net = package.from_pretrained(saved)
    assert_equal_states(net, package.from_pretrained(shared / "jax"))


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
        (
            dict(options=dict(width_mult="1")),
            "`width_mult` .='1', a str. must be a number",
        ),
        (
            dict(options=dict(width_mult=True)),
            "`width_mult` .=True, a bool. must be a num",
        ),
        (
            dict(options=dict(num_experts=10**12)),
            "`num_experts` .=1000000000000. must be at most 4096",
        ),
        (dict(options=dict(width=1)), "'width'; did you mean 'width_mult'"),
        (dict(options=dict(device="cuda")), "`options` must not have `device`"),
        (
            dict(conv="static", conv_options=dict(top_k=1)),
            "`conv_options` .* choose one by `conv`",
        ),
    ],
)
def test_a_wrong_configuration_is_refused_by_the_field(
    package, make, changes, words, saved
):
    edit(saved, **changes)
    with pytest.raises(ValueError, match=f"^`path`: .*config.json'.*{words}") as caught:
        package.from_pretrained(saved)
    assert "\n" not in str(caught.value)


@BOTH
@pytest.mark.parametrize("count", [10**13, 10**30])
def test_a_model_larger_than_any_memory_is_refused(package, make, count, saved):
    edit(saved, options=dict(num_classes=count, width_mult=0.25))
    with pytest.raises(ValueError, match="^`path`"):
        package.from_pretrained(saved)


# One text


@pytest.mark.parametrize("name", ["pretrained_config", "directories"])
def test_both_packages_have_one_text(name):
    texts = {
        re.sub(r"dynconv_(jax|torch)", "package", path.read_text())
        for path in ROOT.glob(f"dynconv_*/weights/{name}.py")
    }
    assert len(texts) == 1
