"""ConvNeXt: the names and shapes of its authors, the same in both frameworks."""

from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import ConvNeXt, count_parameters
from dynconv_jax.models import head_of, layer_groups
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.convnext import Block
from dynconv_jax.models.convolutions import Convolutions
from dynconv_jax.weights.torch_layout import torch_shapes
from dynconv_torch import ConvNeXt as TorchConvNeXt
from parity_tests.tools.networks import assert_networks_agree, dynamic_layers

SMALL: Any = (1, 1, 1, 1), (4, 4, 8, 8), 3
TINY: Any = (3, 3, 9, 3), (96, 192, 384, 768)


def abstract(*sizes, **options) -> Any:
    return abstract_module(lambda rngs: ConvNeXt(*sizes, rngs=rngs, **options))


def on_meta(*sizes, **options) -> Any:
    return TorchConvNeXt(*sizes, device="meta", **options)


def shapes_of(net):
    if isinstance(net, torch.nn.Module):
        return {key: tuple(value.shape) for key, value in net.state_dict().items()}
    return torch_shapes(net)


BUILDERS = pytest.mark.parametrize("build", [abstract, on_meta])


def test_a_small_network_agrees(rng):
    theirs = TorchConvNeXt(*SMALL, layer_scale=0.5, dtype=torch.float64)
    for name, parameter in theirs.named_parameters():
        if parameter.ndim == 1:
            parameter.data.copy_(torch.from_numpy(rng.normal(size=parameter.shape)))
        elif "conv" in name or "downsample" in name:
            parameter.data.mul_(30)  # which are drawn small
    images = rng.normal(size=(2, 33, 64, 3))
    assert_networks_agree(abstract(*SMALL, param_dtype="float64"), theirs, images)


@BUILDERS
def test_the_tiny_network_has_the_shapes_and_the_count_of_its_authors(build):
    shapes = shapes_of(net := build(*TINY))
    assert shapes["downsample_layers.0.0.weight"] == (96, 3, 4, 4)
    assert shapes["downsample_layers.0.1.bias"] == (96,)
    assert shapes["downsample_layers.2.0.weight"] == (192,)
    assert shapes["downsample_layers.2.1.weight"] == (384, 192, 2, 2)
    assert shapes["stages.2.8.dwconv.weight"] == (384, 1, 7, 7)
    assert shapes["stages.2.8.gamma"] == (1, 384, 1, 1)
    assert shapes["stages.3.2.pwconv1.weight"] == (3072, 768, 1, 1)
    assert shapes["stages.3.2.pwconv2.bias"] == shapes["norm.weight"] == (768,)
    assert shapes["head.weight"] == (1000, 768)
    is_torch = isinstance(net, torch.nn.Module)
    count = sum(p.numel() for p in net.parameters()) if is_torch else 0
    assert (count or count_parameters(net)) == 28_589_128


def test_both_frameworks_agree_on_keys_with_dynamic_convolutions():
    ours = abstract(*SMALL, conv=dynconv_jax.DynamicConv)
    theirs = on_meta(*SMALL, conv=dynconv_torch.DynamicConv2d)
    assert shapes_of(ours) == shapes_of(theirs)
    assert "downsample_layers.0.0" not in dynamic_layers(theirs)
    assert "downsample_layers.1.1" in dynamic_layers(theirs)
    assert "stages.0.0.dwconv" in dynamic_layers(theirs)
    assert theirs.stages[0][0].pwconv1.bias.shape == (4, 16)


def test_layers_are_drawn_as_those_of_the_authors():
    make = Convolutions(None, "all", stages=4, init="convnext", rngs=nnx.Rngs(0))
    block = Block(16, stage=1, drop_path_rate=0.0, layer_scale=0.5, make=make)
    theirs = TorchConvNeXt((1, 1, 1, 1), (16, 16, 16, 16), 64, layer_scale=0.5)
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    own = {
        f"stages.3.0.{key}": value
        for key, value in dynconv_jax.to_torch_state_dict(block).items()
    }
    for arrays in (own, state):
        assert (arrays["stages.3.0.gamma"] == 0.5).all()
        assert abs(arrays["stages.3.0.pwconv1.weight"].std() / 0.02 - 1) < 0.15
        assert not arrays["stages.3.0.pwconv1.bias"].any()
    assert abs(state["head.weight"].std() / 0.02 - 1) < 0.15
    assert not state["head.bias"].any()


def test_groups_are_the_stem_each_block_and_the_head():
    groups = layer_groups(abstract(*SMALL))
    assert groups == [
        ("downsample_layers.0",),
        ("stages.0.0",),
        ("downsample_layers.1", "stages.1.0"),
        ("downsample_layers.2", "stages.2.0"),
        ("downsample_layers.3", "stages.3.0", "norm"),
        ("head",),
    ]
    assert head_of(abstract(*SMALL)) == ("head",)


def test_samples_skip_blocks_more_often_the_later_they_are():
    net = abstract((1, 1, 2, 1), SMALL[1], drop_path_rate=0.4)
    rates = [block.drop_path.rate for stage in net.stages for block in stage.layers]
    assert np.allclose(rates, [0, 0.1, 0.2, 0.3, 0.4])
    twin = on_meta((1, 1, 2, 1), SMALL[1], drop_path_rate=0.4)
    assert [block.drop_path.p for stage in twin.stages for block in stage] == rates


@pytest.mark.parametrize(
    ("build", "conv"),
    [(abstract, dynconv_jax.CondConv), (on_meta, dynconv_torch.CondConv2d)],
)
def test_convolutions_without_a_router_are_refused(build, conv):
    with pytest.raises(ValueError, match="^`conv` takes its attention from outside"):
        build(*SMALL, conv=conv)


@BUILDERS
def test_other_numbers_of_stages_are_refused(build):
    with pytest.raises(ValueError, match=r"^`depths` \(=\(1, 1\)\) must have four"):
        build((1, 1), SMALL[1])
    with pytest.raises(ValueError, match=r"^`widths` \(=\(8,\)\) must have four"):
        build(SMALL[0], (8,))
