"""Networks of KernelWarehouse are recognised in both layouts, or it is told why not."""

import re

import numpy as np
import pytest
import torch

import dynconv_jax
import dynconv_torch
from dynconv_jax import load_torch_state_dict, to_torch_state_dict
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.weights.networks.kw_networks import call_of
from dynconv_torch.weights.identify import identify as identify_torch
from parity_tests.tools import kw_checkpoints
from parity_tests.tools.checkpoints import refusal, shapes_of, zeros

BOTH = pytest.mark.parametrize(
    "package", [pytest.param(dynconv_jax, marks=pytest.mark.slow), dynconv_torch]
)

HEADS = "fc", "classifier"
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
                dict(num_classes=10, ratio=ratio)
                | ({} if width == 1 else dict(width_mult=width)),
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


def read(shapes):
    """Returns name and options that are read off shapes, without doubts."""
    call = call_of(shapes)
    assert call is not None and call.doubts == ()
    return call.name, call.options


@pytest.mark.parametrize(
    ("call", "shapes"), NETWORKS, ids=[f"{name} {o}" for (name, o), _ in NETWORKS]
)
def test_checkpoints_are_known_by_their_shapes(call, shapes):
    name, options = call
    assert read(shapes) == call
    assert read(shapes_of(name, **options)) == call


def test_images_of_other_channels_are_known():
    options = dict(num_classes=1000, ratio=1, in_channels=1)
    assert read(shapes_of("kw_resnet18", in_channels=1)) == ("kw_resnet18", options)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("dynamic", ["paper", "all"])
def test_other_networks_with_warehouses_are_none_of_them(name, dynamic):
    options = dict(conv="kernel_warehouse", dynamic=dynamic)
    match = identify_torch(zeros(shapes_of(name, **options)))
    assert match is not None and match.problems == [] and match.call.name == name


def test_a_sibling_is_refused_with_the_call_that_takes_it():
    shapes = kw_checkpoints.resnet((2, 2, 2, 2), 0.5, is_bottleneck=False)
    zeros = {k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()}
    call = r"create_model\('kw_resnet18', num_classes=1000, ratio=0.5\)"
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


@pytest.mark.parametrize(
    ("name", "theirs", "call"),
    [
        ("kw_resnet18", dict(num_classes=7), "num_classes=7, ratio=1"),
        pytest.param(
            "kw_mobilenet_v2",
            dict(width_mult=0.5),
            "num_classes=1000, ratio=1, width_mult=0.5",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_siblings_of_other_heads_and_widths_are_told_by_pytorch_too(name, theirs, call):
    shapes = shapes_of(name, **theirs)
    net = dynconv_torch.create_model(name, device="meta")
    on_meta = {k: torch.empty(shape, device="meta") for k, shape in shapes.items()}
    with pytest.raises(RuntimeError) as caught:
        net.load_state_dict(on_meta, strict=True)
    told_of = f"the state dict is of what `create_model('{name}', {call})` makes"
    assert told_of in str(caught.value)
    # Without its head it may be of any.
    body = {k: v for k, v in on_meta.items() if k.partition(".")[0] not in HEADS}
    twin = dynconv_torch.create_model(name, **theirs, device="meta")
    with pytest.raises(RuntimeError) as caught:
        twin.load_state_dict(body, strict=True)
    assert "is of what" not in str(caught.value) and len(body) < len(shapes)


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


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("kw_resnet18", "warehouses.0.cells", ()),
        ("kw_resnet18", "fc.bias", ()),
        ("kw_resnet18", "conv1.weight", (64,)),
        ("kw_mobilenet_v2", "warehouses.0.cells", ()),
        ("kw_mobilenet_v2", "features.17.conv.3.weight", (320, 1)),
        ("kw_mobilenet_v2", "features.0.0.attention.fc1.weight", (16,)),
    ],
)
def test_absurd_shapes_of_a_network_with_warehouses_are_told(name, key, shape):
    shapes = shapes_of(name, ratio=1) | {key: shape}
    match = identify_torch(zeros(shapes))
    assert match is not None
    assert any(text.startswith(f"{key} has {shape}") for _, text in match.problems)


def test_a_network_with_warehouses_lacks_but_its_head():
    shapes = shapes_of("kw_resnet18", ratio=1)
    body = {k: v for k, v in shapes.items() if not k.startswith("fc.")}
    match = identify_torch(zeros(body))
    assert match is not None and match.call.name == "kw_resnet18"
    assert {kind for kind, _ in match.problems} == {"missing key"}


@BOTH
@pytest.mark.parametrize(
    ("name", "index"), [("kw_resnet50", 0), ("kw_mobilenet_v2", 2)]
)
def test_a_wrong_warehouse_is_told_of_the_network_that_it_is_of(package, name, index):
    key = f"warehouses.{index}.cells"
    shapes = shapes_of(name, num_classes=7) | {key: (50, 64, 64, 1, 1)}
    message = refusal(package, zeros(shapes))
    assert f"looks like {name}, but is not quite" in message
    assert f"1 wrong shape ({key} has (50, 64, 64, 1, 1), the module" in message
