"""KernelWarehouse's checkpoints: they load into both packages and come back."""

import copy
import pickle
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import load_torch_state_dict, to_torch_state_dict
from parity_tests.parity import as_torch, channels_first
from parity_tests.tolerances import assert_close
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
