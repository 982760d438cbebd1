"""ODConv: what a user of nnx.Conv or torch.nn.Conv2d expects of a layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import ODConv
from dynconv_jax.gating import Attention
from parity_tests.layers.test_od_conv import layers, torch_layer
from parity_tests.tolerances import assert_close

# Batches


def test_training_on_one_sample_names_the_way_out():
    ours, theirs = layers(3, 4, (3,), num_experts=2)
    with pytest.raises(ValueError, match="norm` .*'batch'.*`norm='layer'`"):
        ours(jnp.ones((1, 5, 3)))
    with pytest.raises(ValueError, match="norm` .*'batch'.*`norm='layer'`"):
        theirs(torch.ones(1, 3, 5).double())
    evaluated = nnx.view(ours, use_running_average=True)
    assert evaluated(jnp.ones((1, 5, 3))).shape == (1, 5, 4)
    assert theirs.eval()(torch.ones(1, 3, 5).double()).shape == (1, 4, 3)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_dimensions_is_accepted(batch, rng):
    layer, _ = layers(3, 4, (3,), norm="layer", num_experts=2, padding=1)
    x = jnp.asarray(rng.normal(size=(*batch, 5, 3)))
    flat = x.reshape(-1, 5, 3)

    def results(x):
        return {"y": layer(x), "a": layer.routing(x), **layer.attentions(x)._asdict()}

    expected = {
        name: value.reshape(*batch, *value.shape[1:])
        for name, value in results(flat).items()
    }
    assert_close(results(x), expected, dtype="float64")


def test_unbatched_input_is_accepted_by_the_twin():
    layer = torch_layer(3, 4, (3,), norm="layer", num_experts=2)
    x = torch.randn(3, 5, dtype=torch.float64)
    assert torch.equal(layer(x), layer(x[None])[0])
    assert torch.equal(layer.routing(x), layer.routing(x[None])[0])


def test_routing_answers_the_attention_over_the_experts(rng):
    ours, theirs = layers(3, 4, (3,), num_experts=3)
    x = rng.normal(size=(2, 5, 3))
    rows = ours.routing(jnp.asarray(x))
    assert rows.shape == (2, 3)
    assert_close({"sums": rows.sum(-1)}, {"sums": np.ones(2)}, dtype="float64")
    ours, theirs = layers(3, 4, (3,), num_experts=1)
    assert ours.routing(jnp.asarray(x)).tolist() == [[1.0], [1.0]]
    assert theirs.routing(torch.ones(2, 3, 5).double()).tolist() == [[1.0], [1.0]]


# Programs


def loss_of(layer):
    graphdef, state = nnx.split(nnx.view(layer, use_running_average=True))

    def loss(state, x):
        outputs = nnx.merge(graphdef, state)(x)
        return jnp.sin(outputs).sum(), outputs

    return loss, state


def test_layer_exports_with_a_free_batch_and_its_gradient(rng):
    layer, _ = layers(4, 4, (3, 3), num_experts=2, padding=1, groups=2)
    loss, state = loss_of(layer)
    gradient = jax.jit(lambda x: jax.grad(loss, argnums=1, has_aux=True)(state, x))
    free = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 5, 6, 4"), "float64")
    artifact = jax.export.export(gradient)(free)
    x = rng.normal(size=(3, 5, 6, 4))
    whole = dict(zip("gy", gradient(x), strict=True))
    for batch in (1, 3):
        few = dict(zip("gy", artifact.call(x[:batch]), strict=True))
        expected = {name: value[:batch] for name, value in whole.items()}
        assert_close(few, expected, dtype="float64")


@pytest.mark.parametrize("groups, experts", [(1, 2), (2, 1), (4, 2)])
def test_no_convolution_is_grouped_over_the_batch(groups, experts):
    layer, _ = layers(4, 4, (3, 3), num_experts=experts, groups=groups, padding=1)
    loss, state = loss_of(layer)
    gradient = jax.grad(loss, argnums=(0, 1), allow_int=True, has_aux=True)
    program = jax.jit(gradient).lower(state, jnp.ones((5, 6, 7, 4))).as_text()
    assert "dot_general" in program and "convolution" not in program


def test_one_kernel_is_never_made_for_each_sample():
    layer, _ = layers(7, 11, (1, 1), num_experts=1)
    loss, state = loss_of(layer)
    gradient = jax.grad(loss, argnums=(0, 1), allow_int=True, has_aux=True)
    program = jax.jit(gradient).lower(state, jnp.ones((5, 6, 4, 7))).as_text()
    assert "tensor<1x1x1x7x11x" in program and "tensor<7x11x" in program
    assert "convolution" not in program
    assert not any(f"tensor<5x{one}7x11x" in program for one in ("", "1x1x"))


def test_layer_works_under_vmap_and_remat(rng):
    layer, _ = layers(3, 4, (3,), norm="none", num_experts=2, padding=1)
    graphdef, state = nnx.split(layer)
    x = jnp.asarray(rng.normal(size=(2, 5, 3)))

    def forward(state, x):
        return nnx.merge(graphdef, state)(x)

    ensemble = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    mapped = jax.jit(jax.vmap(forward, in_axes=(0, None)))(ensemble, x)
    actual = {"vmap": mapped[1], "remat": jax.jit(jax.checkpoint(forward))(state, x)}
    assert_close(actual, dict.fromkeys(actual, layer(x)), dtype="float64")


def test_attentions_are_recorded_by_name(rng):
    layer, _ = layers(3, 4, (3,), num_experts=2, padding=1)
    x = jnp.asarray(rng.normal(size=(2, 5, 3)))
    expected = layer.attentions(x)._asdict()
    _, captured = nnx.capture(layer, Attention)(x)
    recorded = {
        str(path[-1]): variable.get_value()[0].reshape(2, -1)
        for path, variable in nnx.to_flat_state(captured)
    }
    expected["attention"] = expected.pop("kernel")
    assert_close(recorded, expected, dtype="float64")


# At the door

BAD_ARGUMENTS = {
    "norm": (dict(norm="group"), ValueError, "norm` .*'group'.*'layer'"),
    "reduction": (dict(reduction=0), ValueError, r"reduction` \(=0\)"),
    "hidden": (dict(min_hidden=1.5), TypeError, r"min_hidden` \(=1.5\)"),
    "temperature": (dict(temperature=0.0), ValueError, r"temperature` \(=0.0\)"),
    "experts": (dict(num_experts=0), ValueError, r"num_experts` \(=0\)"),
    "form": (dict(implementation="fft"), ValueError, "implementation` .*'fft'"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_at_the_door(name):
    options, error, message = BAD_ARGUMENTS[name]
    with pytest.raises(error, match=message):
        ODConv(3, 4, (3, 3), rngs=nnx.Rngs(0), **options)
    with pytest.raises(error, match=message):
        dynconv_torch.ODConv2d(3, 4, 3, **options)


def test_bad_inputs_are_refused():
    ours, theirs = layers(3, 4, (3, 3))
    with pytest.raises(ValueError, match=r"inputs.*in_features` \(=3\)"):
        ours(jnp.ones((2, 5, 6, 2)))
    with pytest.raises(ValueError, match=r"in_channels` \(=3\)"):
        theirs(torch.ones(2, 2, 5, 6))
    with pytest.raises(TypeError, match=r"kernel_size` \(=3\).*tuple"):
        ODConv(3, 4, 3, rngs=nnx.Rngs(0))  # pyright: ignore
