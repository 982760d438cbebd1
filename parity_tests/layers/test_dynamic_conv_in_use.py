"""DynamicConv: what a user of nnx.Conv or torch.nn.Conv2d expects of a layer."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import DynamicConv, Router
from parity_tests.parity import torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.cases import CASES


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_any_number_of_batch_dimensions_is_accepted(batch, rng):
    layer = CASES["2d"].jax_layer()
    x = jnp.asarray(rng.normal(size=(*batch, 7, 6, 3)))
    flat = x.reshape(-1, 7, 6, 3)
    actual = {"output": layer(x), "routing": layer.routing(x)}
    expected = {
        "output": layer(flat).reshape(*batch, 7, 6, 2),
        "routing": layer.routing(flat).reshape(*batch, 3),
    }
    assert_close(actual, expected, dtype="float64")


def test_unbatched_input_is_accepted_by_the_twin():
    layer = CASES["2d"].torch_layer()
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    assert torch.equal(layer(x), layer(x[None])[0])
    assert torch.equal(layer.routing(x), layer.routing(x[None])[0])


def test_an_empty_batch_gives_an_empty_output():
    case = CASES["2d"]
    for implementation in ("patches", "experts", "vmap"):
        layer = case.jax_layer(implementation=implementation)
        assert layer(jnp.ones((0, 7, 6, 3))).shape == (0, 7, 6, 2)
    for implementation in ("loop", "grouped", "patches", "experts"):
        layer = case.torch_layer(implementation=implementation)
        x = torch.ones(0, 3, 7, 6, dtype=torch.float64)
        assert layer(x).shape == (0, 2, 7, 6)


def test_arguments_come_in_the_order_of_nnx_conv():
    layer = DynamicConv(3, 8, (3, 5), 2, rngs=nnx.Rngs(0))
    assert layer.kernel.shape == (4, 3, 5, 3, 8)
    assert layer.strides == (2, 2)
    assert layer.bias is None


def test_defaults_are_those_specified():
    layer = DynamicConv(8, 8, (3, 3), rngs=nnx.Rngs(0))
    assert layer.num_experts == 4
    assert layer.router.fc1.kernel.shape == (8, 2)
    assert float(layer.router.temperature[...]) == 1.0


def test_experts_are_drawn_as_specified():
    layer = DynamicConv(64, 64, (3, 3), use_bias=True, rngs=nnx.Rngs(0))
    twin = dynconv_torch.DynamicConv2d(64, 64, 3, bias=True)
    for kernel in (np.asarray(layer.kernel[...]), twin.weight.detach().numpy()):
        assert abs(kernel.mean()) < 1e-3
        assert 0.0195 < kernel.std() < 0.0205
    assert layer.bias is not None and not np.asarray(layer.bias[...]).any()
    assert twin.bias is not None and not twin.bias.any()
    assert (layer.kernel[...][0] != layer.kernel[...][1]).any()


def test_linear_layers_are_drawn_as_pytorch_draws_them():
    layer = DynamicConv(512, 8, (1,), reduction=1, rngs=nnx.Rngs(0))
    bound = 512**-0.5
    for variable in jax.tree.leaves(nnx.state(layer.router.fc1)):
        largest = float(jnp.abs(variable).max())
        assert 0.95 * bound < largest <= bound


def test_an_initialiser_sees_one_expert_at_a_time():
    layer = DynamicConv(
        64,
        64,
        (3, 3),
        num_experts=8,
        kernel_init=nnx.initializers.lecun_normal(),
        rngs=nnx.Rngs(0),
    )
    deviation = float(layer.kernel[...].std())
    assert abs(deviation / (9 * 64) ** -0.5 - 1) < 0.05


def test_metadata_of_an_initialiser_is_kept():
    init = nnx.with_metadata(nnx.initializers.normal(), role="experts")
    layer = DynamicConv(3, 4, (3,), kernel_init=init, rngs=nnx.Rngs(0))
    assert layer.kernel.get_metadata("role") == "experts"
    assert layer.kernel.shape == (4, 3, 3, 4)


def test_partitioning_of_an_initialiser_leaves_the_experts_whole():
    init = nnx.with_partitioning(nnx.initializers.normal(), (None, None, "model"))
    mesh = jax.make_mesh((1,), ("model",))
    with jax.set_mesh(mesh):
        layer = DynamicConv(3, 4, (3,), kernel_init=init, rngs=nnx.Rngs(0))
    assert layer.kernel.get_metadata("out_sharding") == (None, None, None, "model")


def test_dtype_is_that_of_the_output_and_param_dtype_that_of_the_parameters():
    layer = DynamicConv(3, 4, (3,), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert layer(jnp.ones((2, 5, 3), jnp.float32)).dtype == jnp.bfloat16
    assert layer.kernel[...].dtype == jnp.float32


def test_metadata_and_promotion_are_those_given():
    seen = []

    def promote(arrays, /, *, dtype=None, inexact=True):
        seen.append(len(arrays))
        return arrays

    layer = DynamicConv(
        3,
        4,
        (3,),
        use_bias=True,
        promote_dtype=promote,
        kernel_metadata={"role": "experts"},
        bias_metadata={"role": "biases"},
        rngs=nnx.Rngs(0),
    )
    layer(jnp.ones((2, 5, 3), jnp.float32))
    assert seen == [3]
    assert layer.kernel.get_metadata("role") == "experts"
    assert layer.bias is not None
    assert layer.bias.get_metadata("role") == "biases"


def test_preferred_element_type_is_the_dtype_of_the_output():
    layer = DynamicConv(
        3,
        4,
        (3,),
        dtype=jnp.bfloat16,
        preferred_element_type=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    assert layer(jnp.ones((2, 5, 3))).dtype == jnp.float32


def test_layer_works_under_vmap_remat_and_export(rng):
    layer = CASES["2d"].jax_layer()
    graphdef, state = nnx.split(layer)
    x = jnp.asarray(rng.normal(size=(2, 7, 6, 3)))

    def forward(state, x):
        return nnx.merge(graphdef, state)(x)

    ensemble = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    exported = jax.export.export(jax.jit(forward))(
        state, jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 7, 6, 3"), x.dtype)
    )
    actual = {
        "vmap": jax.vmap(forward, in_axes=(0, None))(ensemble, x)[1],
        "remat": jax.checkpoint(forward)(state, x),
        "export": exported.call(state, x),
    }
    assert_close(actual, dict.fromkeys(actual, layer(x)), dtype="float64")


def test_parameter_names_of_the_twin_are_those_of_published_checkpoints():
    layer = dynconv_torch.DynamicConv2d(8, 6, (3, 2), groups=2, bias=True)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        "weight": (4, 6, 4, 3, 2),
        "bias": (4, 6),
        "fc1.weight": (2, 8),
        "fc1.bias": (2,),
        "fc2.weight": (4, 2),
        "fc2.bias": (4,),
    }
    assert set(torch_state(layer)) == {*shapes, "temperature"}


def test_a_state_dict_without_temperature_loads_strictly_into_the_twin():
    layer = dynconv_torch.DynamicConv2d(3, 4, 3, temperature=7.0)
    state = layer.state_dict()
    del state["temperature"]
    layer.load_state_dict(state, strict=True)
    assert layer.temperature.item() == 7.0


@pytest.mark.parametrize("implementation", ["loop", "grouped", "patches", "experts"])
def test_twin_takes_any_memory_layout(implementation):
    layer = CASES["2d"].torch_layer(implementation=implementation)
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    expected = {"output": layer(x).detach().numpy()}
    for laid_out in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([x, x], dim=-1)[..., 0],
    ):
        actual = {"output": layer(laid_out).detach().numpy()}
        assert_close(actual, expected, dtype="float64")
    layer.to(memory_format=torch.channels_last)
    assert_close({"output": layer(x).detach().numpy()}, expected, dtype="float64")


def test_twin_can_be_copied_and_pickled():
    layer = CASES["2d"].torch_layer()
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


def test_twin_under_autocast_convolves_in_bfloat16_and_routes_in_float32():
    layer = dynconv_torch.DynamicConv2d(16, 8, 3, padding=1)
    x = torch.randn(2, 16, 7, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, attention = layer(x), layer.routing(x)
    assert outputs.dtype == torch.bfloat16
    assert torch.equal(attention, layer.routing(x))
    actual = {"output": outputs.detach().float().numpy()}
    assert_close(actual, {"output": layer(x).detach().numpy()}, dtype="bfloat16")


BAD_ARGUMENTS = {
    "bare int kernel": (dict(kernel_size=3), TypeError, r"kernel_size` \(=3\).*tuple"),
    "no experts": (dict(num_experts=0), ValueError, r"num_experts` \(=0\)"),
    "form": (dict(implementation="fft"), ValueError, "implementation` .*'fft'"),
    "channels": (dict(feature_group_count=2), ValueError, r"in_features` \(=3\)"),
    "router": (dict(router=1), TypeError, r"router` \(=1\).*callable"),
    "router width": (
        dict(router=Router(5, rngs=nnx.Rngs(0))),
        ValueError,
        r"router.*in_features` \(=5\).*3",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_at_the_door(name):
    changed, error, message = BAD_ARGUMENTS[name]
    arguments = dict(in_features=3, out_features=4, kernel_size=(3, 3)) | changed
    with pytest.raises(error, match=message):
        DynamicConv(**arguments, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("answer", [(4, 2), (2, 4, 1), (2, 5), (8,)])
def test_a_router_that_answers_another_shape_is_refused(answer):
    layer = DynamicConv(3, 4, (3,), router=lambda x: jnp.ones(answer), rngs=nnx.Rngs(0))
    for call in (layer, layer.routing):
        with pytest.raises(ValueError, match=r"router.*answered.*\(2, 4\)"):
            call(jnp.ones((2, 5, 3)))


def test_a_layer_as_router_of_the_twin_is_refused():
    layer = dynconv_torch.DynamicConv2d(3, 4, 3)
    with pytest.raises(TypeError, match="router.*one `Router` to"):
        dynconv_torch.DynamicConv2d(3, 4, 3, router=layer)


def test_bad_inputs_are_refused():
    layer = DynamicConv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    for shape in ((2, 5, 6, 2), (5, 3)):
        with pytest.raises(ValueError, match=r"inputs.*in_features` \(=3\)"):
            layer(jnp.ones(shape))
    twin = dynconv_torch.DynamicConv2d(3, 4, 3)
    for shape in ((2, 2, 5, 6), (3, 5), (1, 2, 3, 5, 6)):
        with pytest.raises(ValueError, match=r"in_channels` \(=3\)"):
            twin(torch.ones(shape))


@pytest.mark.parametrize("shape", [(2, 5), (4,), (1, 4), (3, 4)])
def test_attention_of_the_wrong_shape_is_refused(shape):
    layer = DynamicConv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"attention.*\(2, 4\)"):
        layer(jnp.ones((2, 5, 6, 3)), jnp.ones(shape))
    with pytest.raises(ValueError, match=r"attention.*\(2, 4\)"):
        twin = dynconv_torch.DynamicConv2d(3, 4, 3)
        twin(torch.ones(2, 3, 5, 6), torch.ones(shape))
