"""Every accepted setting of every member trains: no parameter is without a gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from parity_tests.parity import as_torch, channels_first

# By member what its name is in both packages, and which options are tried.
SETTINGS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("DynamicConv", "DynamicConv2d"): [
        dict(),
        *(dict(top_k=top_k) for top_k in (1, 2, 4)),
        dict(top_k=1, num_experts=2, temperature=30.0),
        dict(top_k=1, temperature=0.1),
        dict(temperature=30.0),
        dict(temperature=0.1),
        dict(reduction=1, router_dropout=0.5),
        dict(reduction=100),
        dict(router_noise=0.5),
        dict(top_k=1, router_noise=0.5),
        dict(top_k=1, implementation="experts"),
    ],
    ("DynamicConvTranspose", "DynamicConvTranspose2d"): [dict(), dict(top_k=1)],
    ("CondConv", "CondConv2d"): [dict(), dict(num_experts=1)],
    ("ODConv", "ODConv2d"): [
        dict(),
        dict(norm="layer", num_experts=1),
        dict(norm="none", temperature=30.0),
    ],
    ("DecomposedConv", "DecomposedConv2d"): [dict(), dict(pool=2)],
    ("kernel_warehouse", "kernel_warehouse"): [
        dict(),
        dict(norm="layer", assignment=0.5),
        dict(norm="none", ratio=2.0),
    ],
}


def is_dear(options: dict[str, Any]) -> bool:
    """Whether a case is one more of a kind, for the slow tests."""
    return "temperature" in options or options.get("top_k", 1) > 1


CASES = [
    pytest.param(
        *(*names, options),
        id=f"{names[0]}-{options}",
        marks=pytest.mark.slow if is_dear(options) else (),
    )
    for names, settings in SETTINGS.items()
    for options in settings
]

WAREHOUSE = "kernel_warehouse"


def block_of(package: Any, name: str, options: dict[str, Any], **shared: Any) -> Any:
    """Returns a block whose convolution is a member of the family."""
    # The number of channels sees to a hidden layer of more than one unit.
    block = functools.partial(package.DynamicConvBlock, 8, 6, padding=1)
    if name != WAREHOUSE:
        conv = getattr(package, name)
        return block(conv=functools.partial(conv, **options), **shared)
    return package.with_warehouses(block, **options, **shared)


def without_gradient(gradients: dict[str, Any]) -> list[str]:
    return [name for name, each in gradients.items() if not np.any(each)]


@pytest.mark.parametrize(("name", "twin", "options"), CASES)
def test_every_parameter_has_a_gradient(name, twin, options, rng):
    block = block_of(dynconv_jax, name, options, rngs=nnx.Rngs(0))
    x = rng.normal(size=(12, 4, 3, 8)).astype("float32")
    graphdef, params, rest = nnx.split(block, nnx.Param, ...)

    @jax.jit
    @jax.grad
    def differentiate(params):
        merged = nnx.merge(graphdef, params, rest, copy=True)
        outputs = merged(x)
        return jnp.sum(rng.normal(size=outputs.shape).astype(outputs.dtype) * outputs)

    found = {
        str(path): each[...] for path, each in nnx.to_flat_state(differentiate(params))
    }
    assert without_gradient(found) == []

    theirs = block_of(dynconv_torch, twin, options)
    result = theirs(as_torch(channels_first(x)))
    torch.sum(as_torch(rng.normal(size=tuple(result.shape))) * result).backward()
    found = {
        path: 0 if each.grad is None else each.grad.numpy()
        for path, each in theirs.named_parameters()
    }
    assert without_gradient(found) == []


@pytest.mark.parametrize("options", [dict(num_experts=1), dict(num_experts=1, top_k=1)])
def test_router_without_a_choice_has_nothing_to_learn(options):
    router = dynconv_jax.Router(8, **options, rngs=nnx.Rngs(0))
    x = jnp.ones((3, 5, 8))
    gradients = nnx.grad(lambda router: jnp.sum(router(x) ** 2))(router)
    assert not any(np.any(each) for each in jax.tree.leaves(gradients))
    theirs = dynconv_torch.Router(8, **options)
    theirs(torch.ones(3, 8, 5)).square().sum().backward()
    assert not any(np.any(as_grad(each)) for each in theirs.parameters())


def as_grad(parameter: torch.nn.Parameter) -> np.ndarray:
    assert parameter.grad is not None
    return parameter.grad.numpy()


@pytest.mark.parametrize("assignment, learns", [(1.0, False), (0.99, True)])
def test_assigned_cells_alone_teach_the_attention_nothing(assignment, learns, rng):
    options = dict(norm="layer", assignment=assignment)
    theirs = block_of(dynconv_torch, WAREHOUSE, options)
    result = theirs(torch.from_numpy(rng.normal(size=(4, 8, 4, 3))).float())
    torch.sum(torch.randn_like(result) * result).backward()
    attention = theirs.dyn.attention
    gradients = [as_grad(each) for each in attention.parameters()]
    assert [bool(np.any(each)) for each in gradients] == [learns] * len(gradients)


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_router_of_equal_experts_learns_once_they_have_parted(top_k, rng):
    layer = dynconv_jax.DynamicConv(
        8, 6, (1,), top_k=top_k, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    layer.kernel[...] = jnp.broadcast_to(layer.kernel[:1], layer.kernel.shape)
    x = jnp.asarray(rng.normal(size=(12, 3, 8)))
    weights = jnp.asarray(rng.normal(size=(12, 3, 6)))
    differentiate = nnx.jit(nnx.grad(lambda layer: jnp.sum(weights * layer(x))))
    layer.kernel[...] -= 0.1 * differentiate(layer).kernel[...]
    of_router = differentiate(layer).router
    # Rounding, which is all there is while they are equal, is far below.
    largest = [float(jnp.abs(each).max()) for each in jax.tree.leaves(of_router)]
    assert min(largest) > 1e-6
