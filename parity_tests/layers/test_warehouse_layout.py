"""KernelWarehouse's checkpoints: they load into both packages and come back."""

import copy
import pickle
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import load_torch_state_dict, to_torch_state_dict
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.kw_recognition import recognize_kw_network
from dynconv_torch.models.kw_recognition import (
    recognize_kw_network as torch_recognize,
)
from parity_tests.parity import as_torch, channels_first
from parity_tests.tolerances import assert_close
from parity_tests.tools import kw_checkpoints
from parity_tests.tools.jax_modules import build


class JaxNet(nnx.Module):
    """A stem, and a classifier behind dropout, as of a MobileNetV2."""

    def __init__(self, conv, rngs):
        shared: dict[str, Any] = dict(param_dtype="float64", rngs=rngs)
        self.stem = conv(3, 4, (3, 3), padding=1, use_bias=False, **shared)
        linear = nnx.Linear(4, 2, **shared)
        self.classifier = nnx.Sequential(nnx.Dropout(0.0), linear)

    def __call__(self, x):
        return self.classifier(self.stem(x).mean((1, 2)))


class TorchNet(torch.nn.Module):
    """The twin of `JaxNet`."""

    def __init__(self, conv):
        super().__init__()
        self.stem = conv(3, 4, 3, padding=1, bias=False, dtype=torch.float64)
        linear = torch.nn.Linear(4, 2, dtype=torch.float64)
        self.classifier = torch.nn.Sequential(torch.nn.Dropout(0.0), linear)

    def forward(self, x):
        return self.classifier(self.stem(x).mean((2, 3)))


def jax_net(**options) -> Any:
    return build(
        lambda: dynconv_jax.with_warehouses(
            JaxNet, norm="layer", rngs=nnx.Rngs(0), **options
        )
    )


def torch_net(**options) -> Any:
    return dynconv_torch.with_warehouses(TorchNet, norm="layer", **options)


def checkpoint(rng, prefix="") -> dict[str, np.ndarray]:
    """A published state dict, of random numbers."""
    shapes = {
        "warehouse_manager.weights.0": (9, 4, 3, 1, 1),
        "stem.attention.fc1.weight": (16, 3),
        "stem.attention.fc1.bias": (16,),
        "stem.attention.norm1.weight": (16,),
        "stem.attention.norm1.bias": (16,),
        "stem.attention.fc2.weight": (90, 16),
        "stem.attention.fc2.bias": (90,),
        "classifier.weight": (2, 4),
        "classifier.bias": (2,),
    }
    return {prefix + key: rng.normal(size=shape) for key, shape in shapes.items()}


def tensors(arrays):
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def test_checkpoints_load_into_both_and_come_back_bit_for_bit(rng):
    expected = checkpoint(rng)
    ours, theirs = jax_net(), torch_net(assignment=0.3)
    dynconv_jax.set_assignment(ours, 0.3)
    load_torch_state_dict(ours, expected)
    theirs.load_state_dict(tensors(expected), strict=True)
    returned = dynconv_torch.to_warehouse_layout(theirs.state_dict())
    for actual in (
        to_torch_state_dict(ours, layout="kernel_warehouse"),
        {key: value.numpy() for key, value in returned.items()},
    ):
        assert actual.keys() == expected.keys()
        assert next(iter(actual)) == "warehouse_manager.weights.0"
        for key, value in expected.items():
            np.testing.assert_array_equal(actual[key], value, strict=True)
    # τ is in no checkpoint, and stays.
    assert float(ours.warehouses[0].assignment[...]) == 0.3
    assert float(theirs.warehouses[0].assignment) == 0.3
    images = rng.normal(size=(2, 5, 6, 3))
    logits = theirs(as_torch(channels_first(images))).detach().numpy()
    assert_close({"y": ours(jnp.asarray(images))}, {"y": logits}, dtype="float64")


def test_our_own_layout_loads_as_before(rng):
    theirs = torch_net()
    state = theirs.state_dict()
    torch_net().load_state_dict(state, strict=True)
    load_torch_state_dict(jax_net(), {k: v.numpy() for k, v in state.items()})


def test_a_network_may_be_part_of_another():
    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch_net()

    arrays = checkpoint(np.random.default_rng(0), "backbone.")
    detector = Detector()
    detector.load_state_dict(tensors(arrays), strict=True)
    returned = dynconv_torch.to_warehouse_layout(detector.state_dict())
    assert returned.keys() == arrays.keys()


def test_models_with_the_hook_are_copied_and_pickled(rng):
    net = torch_net()
    for twin in copy.deepcopy(net), pickle.loads(pickle.dumps(net)):
        arrays = checkpoint(rng)
        twin.load_state_dict(tensors(arrays), strict=True)
        cells = twin.warehouses[0].cells
        assert torch.equal(
            cells, torch.from_numpy(arrays["warehouse_manager.weights.0"])
        )
        assert not torch.equal(net.warehouses[0].cells, cells)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"warehouse_manager.weights.1": (9, 4, 3, 1, 1)}, "manager.weights.1"),
        ({"warehouse_manager.weights.0": (9, 4, 4, 1, 1)}, "9, 4, 4, 1, 1"),
        ({"warehouses.0.cells": (9, 4, 3, 1, 1)}, "warehouse_manager.weights.0"),
        ({"classifier.2.weight": (2, 4)}, "classifier.2.weight"),
    ],
)
def test_what_is_not_quite_the_layout_is_refused(change, words, rng):
    arrays = checkpoint(rng) | {k: np.ones(shape) for k, shape in change.items()}
    with pytest.raises(ValueError, match=words):
        load_torch_state_dict(jax_net(), arrays)
    with pytest.raises(RuntimeError, match=words):
        torch_net().load_state_dict(tensors(arrays), strict=True)


def test_a_classifier_is_renamed_beside_published_cells_alone(rng):
    arrays = checkpoint(rng)
    arrays["warehouses.0.cells"] = arrays.pop("warehouse_manager.weights.0")
    with pytest.raises(ValueError, match=r"classifier.1.weight"):
        load_torch_state_dict(jax_net(), arrays)


def test_what_has_no_warehouses_has_no_place_in_the_layout():
    layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no cells"):
        to_torch_state_dict(layer, layout="kernel_warehouse")
    with pytest.raises(ValueError, match="no cells"):
        dynconv_torch.to_warehouse_layout(torch.nn.Linear(2, 3).state_dict())


# Of which network?

NETWORKS = [
    (
        ("kw_resnet18", dict(num_classes=7, ratio=0.25)),
        kw_checkpoints.resnet((2, 2, 2, 2), 0.25, is_bottleneck=False, classes=7),
    ),
    (
        ("kw_resnet50", dict(num_classes=1000, ratio=0.5)),
        kw_checkpoints.resnet((3, 4, 6, 3), 0.5, is_bottleneck=True),
    ),
    *[
        (
            (
                "kw_mobilenet_v2",
                dict(num_classes=10, ratio=ratio, width_mult=width),
            ),
            kw_checkpoints.mobilenet_v2(ratio, width, classes=10),
        )
        for width, ratio in ((1.0, 0.5), (1.0, 4), (0.5, 1))
    ],
    (
        ("kw_convnext_tiny", dict(num_classes=1000, ratio=1)),
        kw_checkpoints.convnext_tiny(),
    ),
]


@pytest.mark.parametrize(
    ("call", "shapes"), NETWORKS, ids=[f"{name} {o}" for (name, o), _ in NETWORKS]
)
def test_checkpoints_are_known_by_their_shapes(call, shapes):
    assert recognize_kw_network(shapes) == torch_recognize(shapes) == call
    name, options = call
    net = dynconv_torch.create_model(name, device="meta", **options)
    own = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert recognize_kw_network(own) == call


def test_images_of_other_channels_are_known():
    net = dynconv_torch.create_model("kw_resnet18", in_channels=1, device="meta")
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    options = dict(num_classes=1000, ratio=1)
    expected = "kw_resnet18", {**options, "in_channels": 1}
    assert recognize_kw_network(shapes) == torch_recognize(shapes) == expected


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("dynamic", ["paper", "all"])
def test_other_networks_with_warehouses_are_none_of_them(name, dynamic):
    net = dynconv_torch.create_model(
        name, conv="kernel_warehouse", dynamic=dynamic, device="meta"
    )
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert torch_recognize(shapes) is None and recognize_kw_network(shapes) is None


def test_a_sibling_is_refused_with_the_call_that_takes_it():
    shapes = kw_checkpoints.resnet((2, 2, 2, 2), 0.5, is_bottleneck=False)
    zeros = {k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()}
    call = r"create_model\('kw_resnet18', 1000, ratio=0.5\)"
    net = abstract_module(
        lambda rngs: dynconv_jax.create_model("kw_resnet18", ratio=0.25, rngs=rngs)
    )
    with pytest.raises(ValueError) as refusal:
        load_torch_state_dict(net, zeros)
    message = str(refusal.value).replace("\n", " ")
    assert re.search(r"create_model\([^)]*kw_resnet18[^)]*ratio=0.5", message)
    twin = dynconv_torch.create_model("kw_resnet18", ratio=0.25, device="meta")
    on_meta = {k: torch.empty(shape, device="meta") for k, shape in shapes.items()}
    with pytest.raises(RuntimeError, match=f"of what `{call}` makes"):
        twin.load_state_dict(on_meta, strict=True)


def test_a_published_checkpoint_alone_makes_its_network(rng):
    shapes = kw_checkpoints.mobilenet_v2(0.5, 0.5, classes=3)
    arrays = {
        key: rng.uniform(0.5, 1, shape).astype("float32")
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked")
    }
    made = dynconv_torch.create_model_from_checkpoint(arrays)
    returned = dynconv_torch.to_warehouse_layout(made.state_dict())
    for key, value in arrays.items():
        np.testing.assert_array_equal(returned[key].numpy(), value)


@pytest.mark.slow
def test_a_published_checkpoint_alone_makes_its_network_in_jax(rng):
    shapes = kw_checkpoints.mobilenet_v2(0.5, 0.5, classes=3)
    arrays = {
        key: rng.uniform(0.5, 1, shape).astype("float32")
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked")
    }
    made = dynconv_jax.create_model_from_checkpoint(arrays)
    returned = to_torch_state_dict(made, layout="kernel_warehouse")
    for key, value in arrays.items():
        np.testing.assert_array_equal(returned[key], value)
