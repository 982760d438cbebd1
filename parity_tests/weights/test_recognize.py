"""A state dict of another model is refused, and called by its name."""

import numpy as np
import pytest
from flax import nnx

import dynconv_jax
from dynconv_jax import create_model, load_torch_state_dict
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.weights.recognize import (
    describe,
    recognize_layers,
    recognize_models,
)
from dynconv_jax.weights.torch_layout import torch_shapes


def abstract(name, *arguments, **options):
    return abstract_module(
        lambda rngs: create_model(name, *arguments, rngs=rngs, **options)
    )


def zeros(shapes):
    """Arrays of these shapes, that take no memory."""
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", dynconv_jax.list_models())
def test_every_model_is_recognised_whatever_its_classes_and_images(name):
    net = abstract(name, 7, in_features=5)
    # What pads as TensorFlow does has the same arrays.
    assert recognize_models(torch_shapes(net)) == [name.removeprefix("tf_")]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_model_is_recognised_whatever_its_convolutions(name):
    shapes = torch_shapes(abstract(name, 7, conv="dynamic", dynamic=2))
    assert recognize_models(shapes) == [name]
    assert describe(zeros(shapes)) == f"{name} with DynamicConv"


def test_norms_inside_a_layer_do_not_hide_the_model():
    shapes = torch_shapes(abstract("resnet18"))
    shapes["layer1.0.conv1.weight"] = (4, 64, 64, 3, 3)
    shapes["layer1.0.conv1.attention.fc.weight"] = (16, 64, 1, 1)
    shapes["layer1.0.conv1.attention.bn.running_mean"] = (16,)
    shapes["layer1.0.conv1.attention.kernel_fc.weight"] = (4, 16, 1, 1)
    assert describe(zeros(shapes)) == "resnet18 with ODConv"


@pytest.mark.parametrize(
    "change",
    [
        {"layer1.2.bn1.running_mean": (64,)},  # a deeper network
        {"layer4.1.bn2.running_mean": (1024,)},  # a wider one
    ],
)
def test_an_unknown_network_is_not_called_by_a_name(change):
    shapes = torch_shapes(abstract("resnet18")) | change
    assert recognize_models(shapes) == []
    assert describe(zeros(shapes)) == ""


@pytest.mark.parametrize(
    ("key", "shape", "layer"),
    [
        ("attention.channel_fc.weight", (8, 16, 1, 1), "ODConv"),
        ("attention.spatial_fc.weight", (9, 16, 1, 1), "ODConv"),
        ("attention.norm1.running_mean", (16,), "KernelWarehouse"),
        ("attention.fc1.weight", (3, 8, 1, 1), "Chen et al"),
        ("attention.fc1.weight", (3, 8, 1), "Chen et al"),
        ("fc_phi.weight", (16, 4), "Decomposition"),
        ("routing_fn.weight", (4, 8), "CondConv"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "layer2.0.conv1."])
def test_a_member_of_the_family_is_known_by_its_keys(key, shape, layer, prefix):
    found = recognize_layers({f"{prefix}weight": (4, 8, 8, 3, 3), prefix + key: shape})
    assert len(found) == 1 and layer in found[0]


def test_layers_of_the_family_are_named_in_whatever_network():
    shapes = {"net.0.routing_fn.weight": (4, 3), "net.1.fc_phi.weight": (16, 4)}
    expected = "a network or layer with Dynamic Convolution Decomposition and CondConv"
    assert describe(zeros(shapes)) == expected
    assert describe(zeros({"net.0.weight": (4, 3)})) == ""


def test_keys_that_only_resemble_are_not_recognised():
    shapes = {
        "attention.fc1.weight": (8, 4),  # two axes: a linear layer
        "self_routing_fn.weight": (4, 8),
        "mlp.fc1.weight": (8, 4),
        "mlp.fc2.weight": (4, 8),
        "mlp.weight": (4, 8),
    }
    assert recognize_layers(shapes) == []


def refusal(module, state_dict):
    with pytest.raises(ValueError) as caught:
        load_torch_state_dict(module, state_dict)
    return str(caught.value)


def test_the_weights_of_a_sibling_are_refused_by_key_and_name():
    state_dict = zeros(torch_shapes(abstract("resnet34")))
    message = refusal(abstract("resnet18"), state_dict)
    assert "does not fit the ResNet" in message
    assert "unexpected key: layer1.2.conv1.weight" in message
    assert message.endswith("The state dict looks like resnet34.")


def test_the_weights_of_another_convolution_are_refused_by_its_name():
    state_dict = zeros(torch_shapes(abstract("resnet18", conv="dynamic")))
    message = refusal(abstract("resnet18"), state_dict)
    assert "wrong shape: layer1.0.conv1.weight has (4, 64, 64, 3, 3)" in message
    assert message.endswith("The state dict looks like resnet18 with DynamicConv.")


def test_nothing_is_said_of_what_is_not_known():
    layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    assert "looks like" not in refusal(layer, {"weight": np.ones((4, 3)), "b": [1.0]})
