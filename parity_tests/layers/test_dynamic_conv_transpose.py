"""DynamicConvTranspose: parity, and what a user of the static layers expects."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import (
    DynamicConvTranspose,
    Router,
    load_torch_state_dict,
    to_torch_state_dict,
)
from parity_tests.parity import assert_parity, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.cases import TRANSPOSE_CASES

# The functions are tested on all of them.
NAMES = ("1d", "2d, uneven", "2d, grouped", "3d", "no bias")


@pytest.mark.parametrize("name", NAMES)
def test_layers_agree(name, rng):
    case = TRANSPOSE_CASES[name]
    assert_parity(case.jax_layer(), case.torch_layer(), case.inputs(rng))


@pytest.mark.parametrize(
    ("jax_form", "torch_form"),
    [("experts", "loop"), ("vmap", "experts")],
)
def test_layers_agree_in_every_implementation(jax_form, torch_form, rng):
    case = TRANSPOSE_CASES["2d, grouped"]
    assert_parity(
        case.jax_layer(implementation=jax_form),
        case.torch_layer(implementation=torch_form),
        case.inputs(rng),
    )


def test_layers_agree_with_a_router_given_and_top_k(rng):
    case = TRANSPOSE_CASES["1d"]
    sizes = case.channels, case.num_experts
    router = Router(*sizes, top_k=2, param_dtype="float64", rngs=nnx.Rngs(0))
    twin = dynconv_torch.Router(*sizes, top_k=2)
    assert_parity(
        case.jax_layer(router=router), case.torch_layer(router=twin), case.inputs(rng)
    )


def test_layers_agree_when_the_attention_is_given(rng):
    case = TRANSPOSE_CASES["1d"]
    assert_parity(
        case.jax_layer(),
        case.torch_layer(),
        case.inputs(rng),
        attention=rng.normal(size=(case.batch, case.num_experts)),
    )


def test_layers_agree_in_bfloat16(rng):
    options: dict[str, Any] = dict(param_dtype="bfloat16", rngs=nnx.Rngs(0))
    ours = DynamicConvTranspose(
        16, 8, (3,), 2, padding=1, output_padding=1, use_bias=True, **options
    )
    theirs = dynconv_torch.DynamicConvTranspose1d(16, 8, 3, 2, 1, 1, bias=True)
    inputs = jnp.asarray(rng.normal(size=(2, 7, 16)), "bfloat16")
    assert_parity(ours, theirs.bfloat16(), np.asarray(inputs))


@pytest.mark.parametrize("groups", [1, 2])
def test_one_expert_is_the_static_layer_of_pytorch(groups, rng):
    arguments = (4, 6, (3, 2), 2, 1, 1, groups)
    static = torch.nn.ConvTranspose2d(*arguments).double()
    state = static.state_dict()
    theirs = dynconv_torch.DynamicConvTranspose2d(*arguments, bias=True, num_experts=1)
    theirs = theirs.double()
    stacked = {name: value[None] for name, value in state.items()}
    theirs.load_state_dict(theirs.state_dict() | stacked)
    x = torch.from_numpy(rng.normal(size=(2, 4, 5, 3)))
    actual, expected = theirs(x).detach().numpy(), static(x).detach().numpy()
    assert_close({"output": actual}, {"output": expected}, dtype="float64")


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_one_expert_flipped_is_the_static_layer_of_flax(padding, rng):
    options: dict[str, Any] = dict(
        strides=(2, 1), padding=padding, use_bias=True, param_dtype="float64"
    )
    static = nnx.ConvTranspose(4, 6, (3, 2), rngs=nnx.Rngs(0), **options)
    ours = DynamicConvTranspose(
        4, 6, (3, 2), num_experts=1, rngs=nnx.Rngs(1), **options
    )
    ours.kernel[...] = jnp.flip(static.kernel[...], (0, 1))[None]
    x = jnp.asarray(rng.normal(size=(2, 5, 3, 4)))
    expected = {"output": static(x)}
    assert_close({"output": nnx.jit(ours)(x)}, expected, dtype="float64")


def test_weights_survive_the_way_there_and_back():
    layer = TRANSPOSE_CASES["2d, grouped"].jax_layer()
    state, kernel = to_torch_state_dict(layer), layer.kernel[...]
    assert state["weight"].shape == (3, 9, 2, 3, 2)
    layer.kernel[...] = jnp.zeros_like(kernel)
    load_torch_state_dict(layer, state)
    assert np.array_equal(layer.kernel[...], kernel)


def test_weights_of_another_shape_are_refused_with_both_shapes():
    layer = TRANSPOSE_CASES["2d, grouped"].jax_layer()
    state = to_torch_state_dict(layer)
    state["weight"] = state["weight"].swapaxes(1, 2)
    with pytest.raises(ValueError, match=r"weight has \(3, 2, 9.*\(3, 9, 2, 3, 2\)"):
        load_torch_state_dict(layer, state)


def test_parameter_names_of_the_twin_are_those_of_the_dynamic_convolution():
    layer = dynconv_torch.DynamicConvTranspose2d(8, 6, (3, 2), groups=2, bias=True)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        "weight": (4, 8, 3, 3, 2),
        "bias": (4, 6),
        "fc1.weight": (2, 8),
        "fc1.bias": (2,),
        "fc2.weight": (4, 2),
        "fc2.bias": (4,),
    }
    assert set(torch_state(layer)) == {*shapes, "temperature"}


def test_arguments_come_in_the_order_of_the_static_layers():
    layer = nnx.eval_shape(
        lambda: DynamicConvTranspose(3, 8, (3, 5), 2, rngs=nnx.Rngs(0))
    )
    assert layer.kernel.shape == (4, 3, 5, 3, 8)
    assert layer.strides == (2, 2)
    assert (layer.padding, layer.output_padding, layer.bias) == ("SAME", (0, 0), None)
    arguments = (4, 8, 3, 3, 2, 1, 4, False, 2)
    twin = dynconv_torch.DynamicConvTranspose2d(*arguments)
    static = torch.nn.ConvTranspose2d(*arguments)
    for name in ("kernel_size", "stride", "output_padding", "groups", "dilation"):
        assert getattr(twin, name) == getattr(static, name)
    assert twin(torch.ones(2, 4, 5, 6)).shape == static(torch.ones(2, 4, 5, 6)).shape
    assert "output_padding=(1, 1)" in repr(twin)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_dimensions_is_accepted(batch, rng):
    layer = nnx.jit(TRANSPOSE_CASES["2d"].jax_layer())
    x = jnp.asarray(rng.normal(size=(*batch, 4, 3, 3)))
    flat = layer(x.reshape(-1, 4, 3, 3))
    expected = {"output": flat.reshape(*batch, *flat.shape[1:])}
    assert_close({"output": layer(x)}, expected, dtype="float64")


def test_layer_works_under_remat_and_export(rng):
    layer = TRANSPOSE_CASES["2d"].jax_layer()
    graphdef, state = nnx.split(layer)
    x = jnp.asarray(rng.normal(size=(2, 4, 3, 3)))

    def forward(state, x):
        return nnx.merge(graphdef, state)(x)

    exported = jax.export.export(jax.jit(forward))(
        state, jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 4, 3, 3"), x.dtype)
    )
    actual = {
        "remat": jax.jit(jax.checkpoint(forward))(state, x),
        "export": exported.call(state, x),
    }
    assert_close(
        actual, dict.fromkeys(actual, jax.jit(forward)(state, x)), dtype="float64"
    )


def test_twin_takes_one_sample_any_memory_layout_and_can_be_copied():
    layer = TRANSPOSE_CASES["2d, grouped"].torch_layer()
    x = torch.randn(2, 9, 3, 4, dtype=torch.float64)
    expected = {"output": layer(x).detach().numpy()}
    one = torch.stack([layer(sample) for sample in x])
    laid_out = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    for outputs in (one, laid_out(x.contiguous(memory_format=torch.channels_last))):
        actual = {"output": outputs.detach().numpy()}
        assert_close(actual, expected, dtype="float64")


def test_bad_arguments_are_refused_at_the_door():
    message = r"output_padding` \(=\(2, 2\)\) must be smaller than `stride"
    with pytest.raises(ValueError, match=message):
        DynamicConvTranspose(3, 4, (3, 3), 2, output_padding=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        dynconv_torch.DynamicConvTranspose2d(3, 4, 3, 2, output_padding=2)
    with pytest.raises(ValueError, match=r"padding` \(='same'\).*no named paddings"):
        dynconv_torch.DynamicConvTranspose2d(3, 4, 3, padding="same")
    with pytest.raises(ValueError, match=r"in_features` \(=3\)"):
        DynamicConvTranspose(3, 4, (3,), rngs=nnx.Rngs(0))(jnp.ones((2, 5, 4)))
