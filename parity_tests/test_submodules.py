"""What hooks, replaces or quantizes a part of a module is heard: parts are called."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn.utils import parametrize, prune

import dynconv_jax
import dynconv_torch
from dynconv_jax.functional import Geometry
from dynconv_torch.functional.numerics import call_wide
from parity_tests.parity import as_numpy
from parity_tests.tolerances import assert_close
from parity_tests.tools.torch_layers import ALL, build, images

LINEAR = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def linear_parts(module):
    """Returns the linear layers and convolutions within a module, by their names."""
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, LINEAR)
        and not isinstance(part, dynconv_torch.SigmoidRouter)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_forward_hooks_of_all_parts_with_parameters_are_called(name, dtype):
    module, called = build(name, dtype), set()
    expected = {
        part
        for part, each in module.named_modules()
        # A warehouse holds cells and a list layers, and neither is one.
        if list(each.parameters())
        and not isinstance(each, (dynconv_torch.KernelWarehouse, nn.ModuleList))
    }
    for part in expected:
        module.get_submodule(part).register_forward_hook(
            lambda *_, part=part: called.add(part)
        )
    module(images(name, 2, dtype))
    assert called == expected


class Adapted(nn.Module):
    """A layer, and a low-rank one beside it, as adapters have it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        cls = type(base)
        linear = isinstance(base, nn.Linear)
        sizes = base.weight.shape[1], base.weight.shape[0]
        width = () if linear else (1,)
        self.down = cls(sizes[0], 2, *width, bias=False).to(base.weight.dtype)
        self.up = cls(2, sizes[1], *width, bias=False).to(base.weight.dtype)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))

    def merged(self):
        """Returns the one layer that computes the same."""
        product = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        with torch.no_grad():
            self.base.weight += product.reshape(self.base.weight.shape)
        return self.base


ROUTERS = ["dynamic 1d", "odconv 2d", "warehouse 2d", "decomposed 1d", "transposed 2d"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROUTERS)
def test_wrapped_layers_take_effect(name, dtype):
    module = build(name, dtype)
    wrapped = {}
    for path, part in linear_parts(module).items():
        if all(size == 1 for size in part.weight.shape[2:]) and path != "q":
            wrapped[path] = Adapted(part)
            parent, _, attribute = path.rpartition(".")
            setattr(module.get_submodule(parent), attribute, wrapped[path])
    x = images(name, 3, dtype)
    actual = module(x)
    for path, part in wrapped.items():
        parent, _, attribute = path.rpartition(".")
        setattr(module.get_submodule(parent), attribute, part.merged())
    assert len(wrapped) >= 2
    assert_close(
        {"output": as_numpy(actual)},
        {"output": as_numpy(module(x))},
        dtype=str(dtype).removeprefix("torch."),
    )


class Doubled(nn.Module):
    """Twice a weight."""

    def forward(self, weight):
        return 2 * weight


def double_the_weight(part):
    part.weight.data *= 2


def prune_half(part):
    prune.l1_unstructured(part, "weight", 0.5)


def prune_half_for_good(part):
    prune.l1_unstructured(part, "weight", 0.5)
    prune.remove(part, "weight")


def of_unit_norm(part):
    nn.utils.parametrizations.weight_norm(part)
    part.parametrizations.weight.original0.data.fill_(1.0)


def of_unit_norm_for_good(part):
    of_unit_norm(part)
    parametrize.remove_parametrizations(part, "weight")


CHANGED = {
    "parametrized": (
        lambda part: parametrize.register_parametrization(part, "weight", Doubled()),
        double_the_weight,
    ),
    "pruned": (prune_half, prune_half_for_good),
    "weight norm": (of_unit_norm, of_unit_norm_for_good),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("name", ["dynamic 2d", "odconv 2d", "decomposed 2d"])
def test_changed_weights_take_effect(name, change, dtype):
    ours, expected = build(name, dtype), build(name, dtype)
    expected.load_state_dict(ours.state_dict())
    for apply, module in zip(CHANGED[change], (ours, expected), strict=True):
        for part in linear_parts(module).values():
            apply(part)
    x = images(name, 3, dtype)
    assert_close(
        {"output": as_numpy(ours(x))},
        {"output": as_numpy(expected(x))},
        dtype=str(dtype).removeprefix("torch."),
    )


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, :UserWarning")
@pytest.mark.parametrize("name", [name for name in ALL if "3d" not in name])
def test_quantized_linear_layers_answer_nearly_the_same(name):
    module = build(name, torch.float32)
    quantized = torch.ao.quantization.quantize_dynamic(module, {nn.Linear})
    has_linear = any(type(part) is nn.Linear for part in module.modules())
    found = sum("quantized" in type(part).__module__ for part in quantized.modules())
    assert bool(found) == has_linear
    x = images(name, 3, torch.float32)
    assert_close(
        {"output": as_numpy(quantized(x))},
        {"output": as_numpy(module(x))},
        dtype="int8",
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_is_called_in_the_width_of_what_it_is_given(dtype):
    layer, seen = nn.Linear(3, 5).to(dtype), []
    layer.register_forward_hook(lambda part, x, y: seen.append((part.weight.dtype, y)))
    output = call_wide(layer, torch.ones(2, 3))
    assert output.dtype == torch.float32
    assert [(width, each is output) for width, each in seen] == [(torch.float32, True)]
    assert layer.weight.dtype == dtype


def test_a_wide_call_keeps_the_buffers_that_training_moves():
    layer = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).bfloat16()
    wide = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    wide.load_state_dict(layer.state_dict())
    x = torch.randn(4, 3)
    call_wide(layer, x)
    wide(x)
    for name, buffer in wide.named_buffers():
        torch.testing.assert_close(
            layer.get_buffer(name), buffer.to(layer.get_buffer(name).dtype)
        )


def test_a_wide_call_narrows_nothing():
    layer = nn.PReLU(dtype=torch.float64)
    seen = []
    layer.register_forward_pre_hook(lambda part, x: seen.append(part.weight.dtype))
    with pytest.raises(RuntimeError):  # of PyTorch, which takes no two dtypes
        call_wide(layer, torch.ones(2, 3))
    assert seen == [torch.float64]


class Tripled(nnx.Linear):
    """Three times a linear layer."""

    def __call__(self, inputs, out_sharding=None):
        """Applies the layer."""
        return 3 * super().__call__(inputs)


def jax_member(name):
    rngs = nnx.Rngs(0)
    if name == "dynamic":
        return dynconv_jax.DynamicConv(4, 6, (3,), rngs=rngs)
    if name == "odconv":
        return dynconv_jax.ODConv(4, 6, (3,), norm="none", rngs=rngs)
    if name == "decomposed":
        return dynconv_jax.DecomposedConv(4, 6, (3,), padding="SAME", rngs=rngs)
    geometry = Geometry.create(4, 6, (3,))
    warehouse = dynconv_jax.KernelWarehouse([geometry], rngs=rngs)
    return dynconv_jax.WarehouseConv(warehouse, norm="layer", rngs=rngs)


@pytest.mark.parametrize("name", ["dynamic", "odconv", "decomposed", "warehouse"])
def test_replaced_linear_layers_of_jax_take_effect(name, rng):
    replaced, scaled = jax_member(name), jax_member(name)
    inputs = jnp.asarray(rng.normal(size=(3, 9, 4)), jnp.float32)
    paths = [
        path
        for path, part in nnx.iter_modules(replaced)
        if isinstance(part, nnx.Linear)
    ]
    assert len(paths) >= 2
    for path in paths:
        get = functools.partial(functools.reduce, _child)
        linear = get(path, scaled)
        linear.kernel[...] = 3 * linear.kernel[...]
        if linear.bias is not None:
            linear.bias[...] = 3 * linear.bias[...]
        parent, part = get(path[:-1], replaced), get(path, replaced)
        other = Tripled(
            *part.kernel.shape, use_bias=part.bias is not None, rngs=nnx.Rngs(0)
        )
        other.kernel[...] = part.kernel[...]
        if other.bias is not None:
            other.bias[...] = part.bias[...]
        if isinstance(path[-1], int):
            parent[path[-1]] = other
        else:
            setattr(parent, str(path[-1]), other)
    assert_close(
        {"output": np.asarray(replaced(inputs))},
        {"output": np.asarray(scaled(inputs))},
        dtype="float32",
    )


def _child(module, name):
    return module[name] if isinstance(name, int) else getattr(module, name)
