"""The counter of multiply-adds, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx
from torch.utils.flop_counter import FlopCounterMode

import dynconv_torch
from dynconv_jax import DynamicConv, DynamicNet, ModulatedConv, Router
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.multiply_adds import count_multiply_adds, count_parameters


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, "float32")


@pytest.mark.parametrize("implementation", ["auto", "experts", "scan", "patches"])
def test_a_dynamic_layer_convolves_once_mixes_and_routes(implementation):
    layer = DynamicConv(
        8, 6, (3, 2), 2, padding=1, implementation=implementation, rngs=nnx.Rngs(0)
    )
    convolution = 3 * (5 * 5) * 6 * (3 * 2 * 8)
    mixing = 3 * 4 * (3 * 2 * 8 * 6)
    router = 3 * (8 * 2 + 2 * 4)
    counted = count_multiply_adds(layer, shape(3, 9, 8, 8))
    assert counted == convolution + mixing + router


def test_a_depthwise_layer_counts_its_taps_only():
    layer = DynamicConv(
        6, 6, (5, 5), feature_group_count=6, num_experts=2, rngs=nnx.Rngs(0)
    )
    attention = shape(4, 2)
    counted = count_multiply_adds(layer, shape(4, 9, 7, 6), attention)
    assert counted == 4 * 9 * 7 * 6 * 25 + 4 * 2 * 25 * 6


def test_a_modulated_layer_adds_two_small_products():
    layer = ModulatedConv(8, 6, (3, 2), 2, style_features=5, rngs=nnx.Rngs(0))
    convolution = 3 * (5 * 4) * 6 * (3 * 2 * 8)
    styles_and_norms = 3 * 8 * 5 + 3 * 8 * 6
    counted = count_multiply_adds(layer, shape(3, 9, 8, 8), shape(3, 5))
    assert counted == convolution + styles_and_norms


def test_a_network_costs_what_the_counter_of_pytorch_says():
    net = abstract_module(lambda rngs: DynamicNet(rngs=rngs))
    twin = dynconv_torch.DynamicNet(implementation="loop").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(torch.zeros(3, 3, 16, 12))
    counted = count_multiply_adds(net, shape(3, 16, 12, 3))
    assert counted == counter.get_total_flops() // 2


class Loop(nnx.Module):
    """A product in a loop of a known length, and one in a branch."""

    def __call__(self, x, flag):
        x, _ = jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)
        return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x, x)


def test_loops_count_every_step_and_branches_the_dearer_one():
    assert count_multiply_adds(Loop(), shape(3, 3), True) == (5 + 2) * 27


class Endless(nnx.Module):
    """A loop that runs until it has enough."""

    def __call__(self, x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x)


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(NotImplementedError, match="while"):
        count_multiply_adds(Endless(), jnp.zeros(2))


def test_the_counted_module_is_left_as_it_was():
    layer = DynamicConv(3, 4, (3,), rngs=nnx.Rngs(0))
    count_multiply_adds(layer, shape(2, 5, 3))
    assert layer.implementation == "auto"


def test_parameters_that_two_layers_share_count_once():
    router = Router(3, rngs=nnx.Rngs(0))
    first, second = (
        DynamicConv(3, 4, (1,), router=router, rngs=nnx.Rngs(seed)) for seed in (0, 1)
    )
    both = nnx.Sequential(first, second)
    alone, shared = count_parameters(first), count_parameters(router)
    assert count_parameters(both) == 2 * alone - shared
