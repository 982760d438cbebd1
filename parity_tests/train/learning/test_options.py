"""The options of models and convolutions, read from where the library says them."""

from typing import Any, cast

import pytest

from dynconv_jax import list_convolutions, list_models
from dynconv_jax.models.options import option_names
from dynconv_jax.models.registry import CONVOLUTIONS, MODELS
from dynconv_jax.weights.torch_layout import torch_shapes
from parity_tests.tools import registered
from train.errors import TrainError
from train.flags.config import Config
from train.learning.options import Option, options_of, outline

# The program is run as a user runs it.
DEFAULT_NUMERICS = True


def by_name(field: str, **flags) -> dict[str, Option]:
    return {each.name: each for each in options_of(Config(**flags), field)}


def test_option_has_its_type_default_and_meaning():
    options = by_name("conv_options", conv="odconv")
    assert options["min_hidden"] == Option(
        name="min_hidden",
        flag="",
        kind="int",
        default=16,
        meaning="How many units the trunk has at least.",
    )


def test_option_with_a_flag_of_its_own_is_told_by_it():
    options = by_name("conv_options", conv="odconv")
    assert options["reduction"].flag == "--reduction"
    assert (options["num_experts"].flag, options["num_experts"].default) == (
        "--num-experts",
        4,
    )


def test_option_that_all_members_have_is_explained_by_the_layer_that_spells_it_out():
    own, passed_on = (
        by_name("conv_options", conv=conv)["implementation"]
        for conv in ("dynamic", "condconv")
    )
    assert own == passed_on
    assert own.meaning.startswith('How to compute it: `"auto"`')


def test_default_of_the_model_is_that_of_its_convolutions(monkeypatch):
    monkeypatch.setattr("train.learning.options.outline", lambda config: None)
    named = dict(model="efficientnet_cc_b0_8e")
    options = by_name("conv_options", **named)
    assert options["num_experts"].default == 8
    assert by_name("conv_options", conv="odconv", **named)["num_experts"].default == 4


@pytest.mark.parametrize("conv", sorted({*list_convolutions()} - {"static"}))
def test_options_of_every_convolution_are_told(conv):
    told = by_name("conv_options", conv=conv)
    assert told
    assert told.keys() <= {*(option_names(cast(Any, CONVOLUTIONS[conv])) or ())}
    for each in told.values():
        assert each.meaning and each.kind
    # What no command line can write, or others set.
    assert not {"kernel_init", "group_by", "rngs", "dtype", "padding"} & {*told}


@pytest.mark.parametrize("model", list_models())
def test_options_of_every_model_are_told(model, monkeypatch):
    monkeypatch.setattr("train.learning.options.outline", lambda config: None)
    told = by_name("model_options", model=model)
    assert told.keys() <= {*(option_names(MODELS[model]) or ())}
    assert {"width_mult", "dropout", "layer_scale"} & {*told}
    assert all(each.meaning for each in told.values())
    assert not {"conv", "num_classes", "stages", "dtype"} & {*told}


def test_static_convolutions_have_no_options():
    with pytest.raises(
        TrainError, match=r"--conv-options \(=help\).*resnet18 are stati"
    ):
        options_of(Config(model="resnet18"), "conv_options")


@pytest.mark.parametrize("field", ["conv_options", "model_options"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(model="resnet81"), r"--model \(=resnet81\) is not known"),
        (dict(conv="odd"), r"--conv \(=odd\) is not known"),
    ],
)
def test_options_of_what_there_is_not_are_refused(field, flags, words):
    with pytest.raises(TrainError, match=words):
        options_of(Config(**flags), field)


# `test_registry` tries every convolution of the others.
ARCHITECTURES = sorted(
    {*registered.ARCHITECTURES}
    - {"dynamic_net", "mobilenet_v2", "resnet18", "resnet50"}
    - {"tf_efficientnet_cc_b0_4e"}  # which pads otherwise
)


@pytest.mark.slow
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_every_architecture_takes_convolutions_of_every_kind(model):
    # Mixed kernels, what is shared by layers, mixed outputs; others are built alike.
    convolutions = ["static", "dynamic", "kernel_warehouse", "frequency_dynamic"]
    if model.startswith("kw_"):
        convolutions = [None, "static"]
    outlines = [outline(Config(model=model, conv=conv)) for conv in convolutions]
    keys = {frozenset(torch_shapes(each)) for each in outlines}
    assert len(keys) == len(convolutions)


def test_what_a_published_network_has_settled_is_not_told(monkeypatch):
    monkeypatch.setattr("train.learning.options.outline", lambda config: None)
    assert "dynamic" not in by_name("model_options", model="kw_resnet18")
    assert "dynamic" in by_name("model_options", model="resnet18")
