"""Gradient checkpointing: blocks that are computed anew change no gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dynconv_jax import DynamicConv, capture_routers, models, to_torch_state_dict
from dynconv_jax.models import set_grad_checkpointing
from dynconv_jax.models.abstract import abstract_module
from dynconv_torch import DynamicConv2d
from dynconv_torch import capture_routers as torch_capture_routers
from dynconv_torch import models as torch_models
from dynconv_torch.gating import RECORDED
from parity_tests.parity import as_torch, channels_first, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.registered import SLOW

# Blocks that stride and such that do not, with routers, dropout and stochastic depth.
ROUTED: dict[str, Any] = dict(num_experts=2, router_dropout=0.5)
STAGES = ((1, 8, 1, 1), (2, 8, 2, 1))
OPTIONS: dict[str, dict[str, Any]] = {
    "DynamicNet": dict(width_mult=0.125),
    "MobileNetV2": dict(stages=STAGES, width_mult=0.25, dynamic=1, drop_path_rate=0.5),
}
BLOCKS = {"DynamicNet": 3, "MobileNetV2": 3}


def jax_net(name: str, rngs: nnx.Rngs) -> Any:
    return getattr(models, name)(
        num_classes=5,
        conv=functools.partial(DynamicConv, **ROUTED),
        param_dtype=jnp.float64,
        rngs=rngs,
        **OPTIONS[name],
    )


def torch_net(name: str) -> Any:
    torch.manual_seed(0)
    return getattr(torch_models, name)(
        num_classes=5,
        conv=functools.partial(DynamicConv2d, **ROUTED),
        dtype=torch.float64,
        **OPTIONS[name],
    )


def differentiate(net: nnx.Module, inputs: np.ndarray) -> dict[str, Any]:
    """Returns what a network answers, records, becomes, and its gradients."""
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)

    def loss_of(params, rest, inputs):
        merged = nnx.merge(graphdef, params, rest, copy=True)
        logits, routers = capture_routers(merged, inputs)
        spread = sum(each.attention.std() for each in routers.values())
        state = nnx.state(merged, nnx.Not(nnx.Param))
        return (logits**2).sum() + spread, (logits, routers, state)

    found = jax.jit(jax.grad(loss_of, argnums=(0, 2), has_aux=True))
    (of_params, of_inputs), (logits, routers, state) = found(
        params, rest, jnp.asarray(inputs)
    )
    return {
        "gradients": to_torch_state_dict(nnx.merge(graphdef, of_params, rest)),
        "logits": logits,
        "of inputs": of_inputs,
        "buffers": to_torch_state_dict(nnx.merge(graphdef, params, state)),
        "routers": {path: each.attention for path, each in routers.items()},
        "counts": [
            int(count[...])
            for _, count in nnx.to_flat_state(nnx.state(state, nnx.RngCount))
        ],
    }


@pytest.mark.parametrize(
    "name", ["DynamicNet", pytest.param("MobileNetV2", marks=pytest.mark.slow)]
)
def test_blocks_computed_anew_change_nothing(name, rng):
    x = rng.normal(size=(3, 8, 7, 3))
    plain, anew = (jax_net(name, nnx.Rngs(0)) for _ in range(2))
    set_grad_checkpointing(anew)
    expected, actual = differentiate(plain, x), differentiate(anew, x)
    for part in ("gradients", "buffers", "routers"):
        assert_close(actual[part], expected[part], dtype="float64")
    for part in ("logits", "of inputs"):
        assert_close({part: actual[part]}, {part: expected[part]}, dtype="float64")
    # Batch statistics and random state have moved on, and once.
    before = to_torch_state_dict(plain)
    moved = {key for key in before if (before[key] != expected["buffers"][key]).any()}
    assert any("running_mean" in key for key in moved)
    assert actual["counts"] == expected["counts"] != []
    assert max(actual["counts"]) == 1 + max(counts_of(plain))


def counts_of(net: nnx.Module) -> list[int]:
    state = nnx.to_flat_state(nnx.state(net, nnx.RngCount))
    return [int(count[...]) for _, count in state]


@pytest.mark.parametrize("name", OPTIONS)
def test_each_block_is_computed_anew_where_that_is_asked(name):
    net = abstract_module(functools.partial(jax_net, name))

    def count() -> int:
        graphdef, state = nnx.split(net)
        program = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(
            state, jnp.ones((2, 12, 9, 3))
        )
        return str(program).count("= remat2[")

    counts = [count()]
    for enable in (True, False):
        set_grad_checkpointing(net, enable)
        counts.append(count())
    assert counts == [0, BLOCKS[name], 0]


@pytest.mark.slow
def test_network_of_warehouses_has_its_gradient(rng):
    # Blocks that share what lies in none of them.
    net = models.create_model(
        *("dynamic_net", 5),
        conv="kernel_warehouse",
        width_mult=0.25,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
    )
    x = rng.normal(size=(4, 12, 9, 3))
    expected = differentiate(net, x)
    set_grad_checkpointing(net)
    for part in ("gradients", "buffers"):
        assert_close(differentiate(net, x)[part], expected[part], dtype="float64")


# In PyTorch


def run(net: torch.nn.Module, inputs: np.ndarray) -> dict[str, Any]:
    torch.manual_seed(1)
    leaf = as_torch(channels_first(inputs)).requires_grad_()
    logits, routers = torch_capture_routers(net, leaf)
    attention = {path: each.attention for path, each in routers.items()}
    spread = torch.stack([each.std() for each in attention.values()]).sum()
    ((logits**2).sum() + spread).backward()
    return {
        "logits": logits.detach().numpy(),
        "of inputs": gradient(leaf),
        "gradients": {key: gradient(p) for key, p in net.named_parameters()},
        "buffers": torch_state(net),
        "routers": {path: each.detach().numpy() for path, each in attention.items()},
    }


def gradient(tensor: torch.Tensor) -> np.ndarray:
    assert tensor.grad is not None
    return tensor.grad.numpy()


@pytest.mark.parametrize("name", OPTIONS)
def test_blocks_of_the_twin_computed_anew_change_nothing(name, rng):
    x = rng.normal(size=(4, 12, 9, 3))
    plain, anew = torch_net(name), torch_net(name)
    torch_models.set_grad_checkpointing(anew)
    expected, actual = run(plain, x), run(anew, x)
    for part in ("gradients", "buffers", "routers"):
        assert_close(actual[part], expected[part], dtype="float64")
    for part in ("logits", "of inputs"):
        assert_close({part: actual[part]}, {part: expected[part]}, dtype="float64")
    counts = [
        int(value)
        for key, value in actual["buffers"].items()
        if key.endswith("num_batches_tracked")
    ]
    assert {*counts} == {1}
    norms = [part for part in anew.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
    assert not any(hasattr(part, RECORDED) for part in anew.modules())


@pytest.mark.parametrize("enable", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_block_of_the_twin_is_computed_anew_where_that_is_asked(name, enable, rng):
    net = torch_net(name)
    torch_models.set_grad_checkpointing(net, enable)
    calls = []
    layers = [part for part in net.modules() if isinstance(part, DynamicConv2d)]
    for layer in layers:
        layer.register_forward_hook(lambda *arguments: calls.append(None))
    run(net, rng.normal(size=(4, 12, 9, 3)))
    assert len(calls) == len(layers) * (2 if enable else 1)


# Both


def test_all_networks_have_blocks_to_compute_anew():
    for name in models.list_models():
        if name.startswith("tf_") or name in ("resnet34", "resnet50", *SLOW):
            continue  # built as another one is
        net = torch_models.create_model(name, device="meta")
        torch_models.set_grad_checkpointing(net)


def test_module_without_blocks_is_refused():
    with pytest.raises(TypeError, match="`model` .a Linear. has no blocks.*nnx.remat"):
        set_grad_checkpointing(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="`model` .a Linear. has no blocks.*torch.ut"):
        torch_models.set_grad_checkpointing(torch.nn.Linear(2, 3))
