"""The optimizer: what decays, by how much; learning rates; clipping; LAMB."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from dynconv_jax import DynamicConvBlock, count_parameters, create_model
from dynconv_jax.models.abstract import abstract_module
from parity_tests.tolerances import assert_close
from train.flags.config import Config
from train.learning.optimizer import (
    clip_by_global_norm,
    decayed_parameters,
    learning_rate_factors,
    make_optimizer,
)


def groups_of(model: nnx.Module) -> dict[str, tuple[bool, bool]]:
    own, routing = (dict(nnx.to_flat_state(mask)) for mask in decayed_parameters(model))
    return {".".join(map(str, path)): (own[path], routing[path]) for path in own}


def with_conv(conv: str) -> nnx.Module:
    return abstract_module(
        lambda rngs: create_model("dynamic_net", conv=conv, rngs=rngs)
    )


@pytest.fixture(scope="module")
def block() -> DynamicConvBlock:
    return DynamicConvBlock(4, 6, param_dtype=jnp.float64, rngs=nnx.Rngs(0))


# Decay


@pytest.mark.parametrize(
    ("conv", "own", "routing"),
    [
        (
            "dynamic",
            ["stage2.dyn.kernel"],
            ["stage2.dyn.router.fc1.kernel", "stage2.dyn.router.fc2.kernel"],
        ),
        ("condconv", ["stage2.dyn.kernel"], ["stage2.routing_fn.kernel"]),
        (
            "odconv",
            ["stage2.dyn.kernel"],
            [
                f"stage2.dyn.attention.{name}.kernel"
                for name in ("fc", "channel_fc", "filter_fc", "spatial_fc", "kernel_fc")
            ],
        ),
        (
            "decomposed",
            [f"stage2.dyn.{name}.kernel" for name in ("conv", "q", "p")],
            [
                "stage2.dyn.fc.layers.0.kernel",
                "stage2.dyn.fc.layers.1.fc.layers.0.kernel",
                "stage2.dyn.fc_phi.kernel",
                "stage2.dyn.fc_scale.kernel",
            ],
        ),
        (
            "kernel_warehouse",
            ["stage2.dyn._warehouse.cells"],
            [f"stage2.dyn.attention.{name}.kernel" for name in ("fc1", "fc2")],
        ),
        ("static", ["stage2.dyn.kernel"], []),
    ],
)
def test_kernels_decay_in_two_groups_and_nothing_else_does(conv, own, routing):
    groups = groups_of(with_conv(conv))
    in_stage = {name: each for name, each in groups.items() if "stage2" in name}
    assert {name for name, each in in_stage.items() if each == (True, False)} == {*own}
    assert {name for name, each in in_stage.items() if each == (False, True)} == {
        *routing
    }
    assert groups["stem.layers.0.kernel"] == groups["fc.kernel"] == (True, False)
    spared = {name for name, each in groups.items() if each == (False, False)}
    assert spared == {name for name in groups if name.endswith(("bias", "scale"))}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_decay_shrinks_each_group_by_its_own_rate(optimizer, block):
    config = Config(
        optimizer=optimizer,
        learning_rate=0.5,
        warmup_steps=0,
        weight_decay=0.1,
        router_weight_decay=0.4,
    )
    model = nnx.clone(block)
    gradients = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    make_optimizer(model, config).update(model, gradients)
    for kept, path in [
        (1 - 0.5 * 0.1, ("dyn", "kernel")),
        (1 - 0.5 * 0.4, ("dyn", "router", "fc1", "kernel")),
        (1, ("dyn", "router", "fc1", "bias")),
        (1, ("bn", "scale")),
    ]:
        before, after = (
            dict(nnx.to_flat_state(nnx.state(each)))[path][...]
            for each in (block, model)
        )
        assert_close({"": after}, {"": kept * before}, dtype="float64")


# Learning rates


RATES = Config(
    steps=9,
    warmup_steps=1,
    learning_rate=0.5,
    layer_decay=0.5,
    head_learning_rate=1.0,
    router_learning_rate=0.125,
    weight_decay=0.1,
    router_weight_decay=0.4,
)
# By the module and whether it is a router's: what 0.5 is multiplied with.
FACTORS: dict[Any, float] = {
    ("stem", False): 1 / 16,
    ("stage1", False): 1 / 8,
    ("stage1", True): 1 / 32,
    ("stage2", False): 1 / 4,
    ("stage2", True): 1 / 16,
    ("stage3", False): 1 / 2,
    ("stage3", True): 1 / 8,
    ("fc", False): 2.0,
}


def small_net() -> nnx.Module:
    return create_model(
        "dynamic_net", 3, width_mult=0.1, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )


def after_steps(config: Config, count: int = 2) -> dict[tuple, Any]:
    """The parameters of a net after steps with some gradients."""
    rng = np.random.default_rng(0)
    model = small_net()
    optimizer = make_optimizer(model, config)
    for _ in range(count):
        gradients = jax.tree.map(
            lambda each: jnp.asarray(rng.normal(size=each.shape)),
            nnx.state(model, nnx.Param),
        )
        optimizer.update(model, gradients)
    return dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))


def test_each_parameter_moves_as_if_its_rate_were_that_of_all():
    config = dataclasses.replace(RATES, optimizer="sgd")
    actual = after_steps(config)
    one_rate = dict.fromkeys(("head_learning_rate", "router_learning_rate"))
    for factor in {*FACTORS.values()}:
        rate = 0.5 * factor
        alone = after_steps(
            dataclasses.replace(config, learning_rate=rate, layer_decay=1.0, **one_rate)
        )
        of_factor = [
            path for path in actual if FACTORS[path[0], "router" in path] == factor
        ]
        assert of_factor
        for path in of_factor:
            assert_close(
                {"": actual[path][...]}, {"": alone[path][...]}, dtype="float64"
            )


def test_layer_decay_and_own_rates_are_those_of_plain_optax():
    """Written out with one optimizer for each rate, as one would by hand."""
    config = dataclasses.replace(RATES, router_weight_decay=0.1, schedule="constant")
    rng = np.random.default_rng(0)
    model = small_net()
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    params: Any = {path: variable[...] for path, variable in flat}

    def kernels(tree: Any) -> Any:
        return {path: path[-1] == "kernel" for path in tree}

    by_hand = optax.multi_transform(
        {
            factor: optax.adamw(
                lambda step, rate=0.5 * factor: jnp.where(step == 0, rate / 2, rate),
                weight_decay=0.1,
                mask=kernels,
            )
            for factor in {*FACTORS.values()}
        },
        {path: FACTORS[path[0], "router" in path] for path in params},
    )
    state = by_hand.init(params)
    for _ in range(2):
        gradients = {
            path: jnp.asarray(rng.normal(size=each.shape))
            for path, each in params.items()
        }
        updates, state = by_hand.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    actual = after_steps(config)
    assert_close(
        {".".join(map(str, path)): each[...] for path, each in actual.items()},
        {".".join(map(str, path)): each for path, each in params.items()},
        dtype="float64",
    )


def test_with_one_rate_there_are_no_factors(block):
    assert learning_rate_factors(block, Config()) is None


# Clipping


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_that_of_pytorch(max_norm, rng):
    gradients = {"one": rng.normal(size=(3, 4)), "two": rng.normal(size=5)}
    clipped: Any
    clipped, _ = clip_by_global_norm(max_norm).update(gradients, optax.EmptyState())
    parameters = []
    for gradient in gradients.values():
        parameters.append(torch.zeros(gradient.shape, dtype=torch.float64))
        parameters[-1].grad = torch.from_numpy(gradient.copy())
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    expected = {
        name: each.grad.numpy()
        for name, each in zip(gradients, parameters, strict=True)
    }
    assert_close(clipped, expected, dtype="float64")


# LAMB


def test_lamb_takes_steps_in_proportion_to_the_kernels(block, rng):
    config = Config(optimizer="lamb", learning_rate=0.1, warmup_steps=0)
    model = nnx.clone(block)
    gradients = jax.tree.map(
        lambda each: jnp.asarray(rng.normal(size=each.shape)),
        nnx.state(model, nnx.Param),
    )
    make_optimizer(model, config).update(model, gradients)
    groups = groups_of(block)
    before, after = (
        dict(nnx.to_flat_state(nnx.state(each, nnx.Param))) for each in (block, model)
    )
    for path, old in before.items():
        step = np.linalg.norm(after[path][...] - old[...])
        if any(groups[".".join(map(str, path))]):
            expected = 0.1 * np.linalg.norm(old[...])
        else:  # as Adam: 0.1 an entry, but for its eps of 1e-6
            entries = np.asarray(dict(nnx.to_flat_state(gradients))[path][...])
            entries = np.abs(entries) / (np.abs(entries) + 1e-6)
            expected = 0.1 * np.linalg.norm(entries)
        assert_close({"": step}, {"": np.asarray(expected)}, dtype="float64")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_each_parameter_has_its_moments_in_float32(optimizer):
    model = with_conv("dynamic")
    state = nnx.eval_shape(lambda: make_optimizer(model, Config(optimizer=optimizer)))
    moments = [
        leaf
        for leaf in jax.tree.leaves(nnx.state(state))
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert {leaf.dtype for leaf in moments} == {jnp.dtype("float32")}
    per_parameter = 1 if optimizer == "sgd" else 2
    size = sum(leaf.size for leaf in moments)
    assert size == per_parameter * count_parameters(model)
