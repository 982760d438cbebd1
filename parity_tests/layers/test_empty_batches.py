"""Of no images a layer gives no images, of the size that others have."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx

import dynconv_torch
from parity_tests.tools.family import LAYERS, layer


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_take_an_empty_batch(name, groups):
    of_groups: dict[str, Any] = dict(
        feature_group_count=groups, padding="SAME", param_dtype="float64"
    )
    module = layer(name, 4, 6, (3, 3), **of_groups)
    module = nnx.view(module, use_running_average=True, raise_if_not_found=False)
    found = jax.eval_shape(module, jnp.ones((2, 8, 10, 4))).shape
    assert jax.eval_shape(module, jnp.ones((0, 8, 10, 4))).shape == (0, *found[1:])


@pytest.mark.parametrize("implementation", ["experts", "auto"])
def test_outputs_mixed_per_bin_are_none_of_none(implementation):
    module = layer(
        "FrequencyDynamicConv", implementation=implementation, param_dtype="float64"
    )
    module = nnx.view(module, use_running_average=True, raise_if_not_found=False)
    assert len(module(jnp.ones((0, 8, 10, 4)))) == 0


@pytest.mark.parametrize("low_pass", ["ideal", "stretched", "one_sided"])
def test_no_spectrum_is_masked(low_pass):
    module = dynconv_torch.FDConv2d(
        32, 24, 3, padding=1, num_experts=4, low_pass=low_pass
    )
    images = torch.ones(0, 32, 10, 9, requires_grad=True)
    outputs = module(images)
    outputs.sum().backward()
    assert outputs.shape == (0, 24, 10, 9) and images.grad is not None
