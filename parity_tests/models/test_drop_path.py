"""Stochastic depth: whole samples, in training alone, and alike in both frameworks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch.models.drop_path as twin
from dynconv_jax import models
from dynconv_jax.models import resnet
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.convolutions import Convolutions
from dynconv_jax.models.drop_path import DropPath
from dynconv_jax.models.mobilenet_v2 import InvertedResidual
from dynconv_jax.weights.torch_layout import torch_shapes
from dynconv_torch import models as torch_models
from dynconv_torch.models import resnet as torch_resnet
from dynconv_torch.models.convolutions import Convolutions as TorchConvolutions
from dynconv_torch.models.mobilenet_v2 import InvertedResidual as TorchInvertedResidual
from parity_tests.parity import assert_parity
from parity_tests.tolerances import assert_close
from parity_tests.tools import networks

BLOCKS: dict[str, tuple[Any, Any]] = {
    "BasicBlock": (resnet.BasicBlock, torch_resnet.BasicBlock),
    "Bottleneck": (resnet.Bottleneck, torch_resnet.Bottleneck),
    "InvertedResidual": (InvertedResidual, TorchInvertedResidual),
}
DEPTHS = (1, 2, 1, 1)
STAGES = ((1, 8, 1, 1), (2, 8, 2, 1), (2, 16, 2, 2))
NETWORKS: dict[str, tuple[Any, Any]] = {
    **{
        name: (
            functools.partial(models.ResNet, BLOCKS[name][0], DEPTHS),
            functools.partial(torch_models.ResNet, BLOCKS[name][1], DEPTHS),
        )
        for name in ("BasicBlock", "Bottleneck")
    },
    "InvertedResidual": (
        functools.partial(models.MobileNetV2, stages=STAGES),
        functools.partial(torch_models.MobileNetV2, stages=STAGES),
    ),
}
RATES = {
    "BasicBlock": [0.0, 0.1, 0.2, 0.3, 0.4],
    "Bottleneck": [0.0, 0.1, 0.2, 0.3, 0.4],
    "InvertedResidual": [0.0, 0.08, 0.16, 0.24, 0.32],
}


def test_whole_samples_are_dropped_and_the_others_scaled_up(rng):
    x = rng.uniform(1, 2, size=(200, 2, 3, 4))
    ours = DropPath(0.25, nnx.Rngs(0))
    theirs = twin.DropPath(0.25)
    images = torch.from_numpy(x)
    for outputs, still in (
        (np.asarray(ours(jnp.asarray(x))), nnx.view(ours, deterministic=True)),
        (theirs(images).numpy(), None),
    ):
        kept = outputs[:, 0, 0, 0] != 0
        assert 0.6 < kept.mean() < 0.9
        expected = np.where(kept[:, None, None, None], x / 0.75, 0)
        assert_close({"x": outputs}, {"x": expected}, dtype="float64")
        if still is not None:
            np.testing.assert_array_equal(still(jnp.asarray(x)), x)
    assert torch.equal(theirs.eval()(images), images)


@pytest.mark.parametrize("name", NETWORKS)
def test_rate_grows_over_the_blocks_and_is_0_by_default(name):
    build, torch_build = NETWORKS[name]
    ours = abstract_module(lambda rngs: build(drop_path_rate=0.4, rngs=rngs))
    theirs = torch_build(drop_path_rate=0.4, device="meta")
    rates = [each.rate for each in parts(ours, DropPath)]
    np.testing.assert_allclose(rates, RATES[name])
    assert rates == [
        each.p for each in theirs.modules() if isinstance(each, twin.DropPath)
    ]
    plain = abstract_module(lambda rngs: build(dropout=0.0, rngs=rngs))
    assert not jax.tree.leaves(nnx.state(plain, nnx.RngState))
    assert torch_shapes(ours) == torch_shapes(plain)
    assert theirs.state_dict().keys() == torch_build(device="meta").state_dict().keys()


def parts(net: nnx.Module, kind: type) -> list[Any]:
    return [part for _, part in nnx.iter_modules(net) if isinstance(part, kind)]


def kept(count: int, keep_rate: float) -> np.ndarray:
    """Returns which samples keep their branch, of those of a rate the same ones."""
    mask = np.random.default_rng(round(keep_rate * 1e6)).random(count) < keep_rate
    mask[0], mask[-1] = True, False
    return mask


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("BasicBlock", (3, 4, 2)),
        ("Bottleneck", (3, 4, 2)),
        ("InvertedResidual", (3, 3, 1, 2)),
    ],
)
def test_blocks_that_drop_the_same_samples_agree(name, place, monkeypatch, rng):
    def bernoulli(key, p, shape, out_sharding=None):
        return jnp.asarray(kept(shape[0], p).reshape(shape))

    def dropout(input, p, training, inplace):
        assert training
        return (
            input * torch.from_numpy(kept(len(input), 1 - p)).view_as(input) / (1 - p)
        )

    def make_jax(*place, conv, **options):
        make = Convolutions(conv, "paper", stages=4, **options)
        return BLOCKS[name][0](*place, stage=1, drop_path_rate=0.4, make=make)

    def make_torch(*place, conv, **options):
        make = TorchConvolutions(conv, "paper", stages=4, **options)
        return BLOCKS[name][1](*place, stage=1, drop_path_rate=0.4, make=make)

    monkeypatch.setattr(jax.random, "bernoulli", bernoulli)
    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    x = rng.normal(size=(4, 7, 6, 3))
    _, theirs = networks.twins(make_jax, make_torch, x, rng, *place)
    shared: dict[str, Any] = dict(param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    assert_parity(make_jax(*place, conv=None, **shared), theirs, x)


@pytest.mark.parametrize("name", NETWORKS)
def test_impossible_rate_is_refused(name):
    build, torch_build = NETWORKS[name]
    for net, options in (build, dict(rngs=nnx.Rngs(0))), (torch_build, {}):
        with pytest.raises(ValueError, match=r"`drop_path_rate` \(=1.0\)"):
            net(drop_path_rate=1.0, **options)
