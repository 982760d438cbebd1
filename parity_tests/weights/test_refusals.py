"""What is said of a checkpoint that is refused, and what would take it."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from parity_tests.tools.checkpoints import (
    CONVOLUTIONS,
    SMALL,
    as_published,
    refusal,
    shapes_of,
    trained,
    zeros,
)

BOTH = pytest.mark.parametrize("package", [dynconv_jax, dynconv_torch])


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
@pytest.mark.parametrize(
    "key",
    [
        "features.4.block.2.conc_se_layers.0.fc1.weight",
        "classifier.5.weight",
        "classifier.subspace_proj.weight",
    ],
)
def test_a_relative_that_none_computes_is_told_by_its_name(package, key):
    given = [key, "features.0.1.weight", "features.1.block.0.1.weight"]
    message = refusal(package, {key: np.ones(4) for key in given})
    assert "it is of a MobileNetV3 of EfficientAT (`mn`): its gates are li" in message
    assert "\n" not in message


@BOTH
def test_without_its_head_a_checkpoint_is_told_the_way(package):
    state_dict = zeros(shapes_of(**SMALL))
    body = {k: v for k, v in state_dict.items() if not k.startswith("fc.")}
    message = refusal(package, body)
    assert "2 missing keys (fc.weight, of shape (10, 64), fc.bias" in message
    way = "ignore=('fc',)" if package is dynconv_jax else "strict=False"
    assert way in message


@BOTH
def test_a_temperature_that_is_given_does_not_change_the_way(package):
    state_dict = zeros(shapes_of(**SMALL))
    body = {k: v for k, v in state_dict.items() if not k.startswith("fc.")}
    assert refusal(package, body, temperature=2.0) == refusal(package, body)


@BOTH
@pytest.mark.parametrize(("taken", "put"), [("backbone.", ""), ("", "cnn."), ("", "")])
def test_the_way_without_a_head_is_one_for_the_keys_that_were_given(
    package, taken, put
):
    small: dict[str, Any] = SMALL
    if put:
        small = dict(name="fdy_cnn", width_mult=1 / 32)
    keys = [key for key in shapes_of(**small) if not key.startswith("fc.")]
    state_dict = {
        f"{taken}{key.removeprefix(put)}": value
        for key, value in zeros(shapes_of(**small)).items()
        if key in keys
    }
    way = refusal(package, state_dict).partition("give it what is there: ")[2]
    (written,) = re.findall(r"\(?(?:net, )?(\{key.*?\}|\{'.*?\}|state_dict), ", way)[:1]
    assert [*eval(written, {"state_dict": state_dict})] == keys


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
    state_dict = trained(**SMALL, **CONVOLUTIONS[member])
    message = refusal(package, state_dict, **options)
    first, _, second = words.partition(" .* ")
    assert first in message and second in message


@BOTH
def test_an_unknown_option_is_refused_by_name(package):
    message = refusal(package, trained(**SMALL), TypeError, top_q=2)
    assert "'top_q'; did you mean 'top_k'? dynamic_net and its" in message


@BOTH
def test_a_dtype_that_cannot_hold_the_arrays_is_refused(package):
    state_dict = trained(**SMALL, dtype=torch.float64)
    message = refusal(package, state_dict)
    assert "float64" in message and "cannot hold" in message


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


@BOTH
@pytest.mark.parametrize("known", [{}, SMALL])
def test_a_key_of_several_lines_is_told_in_one(package, known):
    shapes = shapes_of(**known) if known else {}
    message = refusal(package, zeros(shapes | {"odd\nkey": (3,)}))
    assert "odd\\nkey" in message
    message = refusal(package, {**zeros(shapes), "odd\nkey": "text"})
    assert "odd\\nkey" in message
