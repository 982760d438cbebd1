"""What is no module is refused under the name of the argument, by all that take one."""

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch

IMAGES = jnp.ones((1, 6, 5, 3))


def layer() -> dynconv_jax.DynamicConv:
    return dynconv_jax.DynamicConv(3, 4, (3, 3), rngs=nnx.Rngs(0))


def static() -> nnx.Conv:
    return nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=nnx.Rngs(0))


TAKE_A_MODULE = {
    "set_temperature": lambda given: dynconv_jax.set_temperature(given, 2.0),
    "set_assignment": lambda given: dynconv_jax.set_assignment(given, 1.0),
    "diagnose": lambda given: dynconv_jax.diagnose(given, IMAGES),
    "capture_attention": lambda given: dynconv_jax.capture_attention(given, IMAGES),
    "capture_routers": lambda given: dynconv_jax.capture_routers(given, IMAGES),
    "compare_experts": dynconv_jax.compare_experts,
    "count_multiply_adds": lambda given: dynconv_jax.count_multiply_adds(given, IMAGES),
    "fold_batch_norm": lambda given: dynconv_jax.fold_batch_norm(given, IMAGES),
    "to_torch_state_dict": dynconv_jax.to_torch_state_dict,
    "init_from_static": lambda given: dynconv_jax.init_from_static(given, static()),
    "init_from_static, from": lambda given: dynconv_jax.init_from_static(
        layer(), given
    ),
    "collapse": lambda given: dynconv_jax.collapse(given, static(), jnp.ones(4)),
    "collapse, into": lambda given: dynconv_jax.collapse(layer(), given, jnp.ones(4)),
}
NO_MODULES = {
    "an array": (lambda: IMAGES, "an array of JAX"),
    "a class": (lambda: dynconv_jax.DynamicNet, "the class DynamicNet; build one"),
    "a state": (lambda: nnx.state(layer()), "nnx.merge"),
    "None": (lambda: None, "None"),
    "a number": (lambda: 3, "a int"),
    "a twin": (lambda: dynconv_torch.DynamicNet(), "the PyTorch module DynamicNet"),
}


@pytest.mark.parametrize("given", NO_MODULES)
@pytest.mark.parametrize("function", TAKE_A_MODULE)
def test_what_is_no_module_of_flax_is_refused_by_name(function, given):
    build, kind = NO_MODULES[given]
    message = rf"^`(module|model|static)` must be an `nnx.Module`, not {kind}"
    with pytest.raises(TypeError, match=message if kind != "nnx.merge" else kind):
        TAKE_A_MODULE[function](build())


TAKE_A_TORCH_MODULE = {
    "set_temperature": lambda given: dynconv_torch.set_temperature(given, 2.0),
    "set_assignment": lambda given: dynconv_torch.set_assignment(given, 1.0),
    "capture_routers": lambda given: dynconv_torch.capture_routers(
        given, torch.ones(1, 3, 6, 5)
    ),
}
NO_TORCH_MODULES = {
    "a tensor": (lambda: torch.ones(2), "a Tensor"),
    "a class": (lambda: dynconv_torch.DynamicNet, "the class DynamicNet; build one"),
    "a twin": (layer, "the JAX module DynamicConv"),
    "a state dict": (dict, "a dict"),
    "an array": (lambda: jax.numpy.ones(2), "a ArrayImpl"),
}


@pytest.mark.parametrize("given", NO_TORCH_MODULES)
@pytest.mark.parametrize("function", TAKE_A_TORCH_MODULE)
def test_what_is_no_module_of_pytorch_is_refused_by_name(function, given):
    build, kind = NO_TORCH_MODULES[given]
    message = rf"^`(module|model)` must be a `torch.nn.Module`, not {kind}"
    with pytest.raises(TypeError, match=message):
        TAKE_A_TORCH_MODULE[function](build())
