"""DecomposedConv: what a user of nnx.Conv or torch.nn.Conv2d expects of a layer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import DecomposedConv, load_torch_state_dict
from dynconv_jax.gating import Attention
from dynconv_jax.layers.decomposition import hard_gate as jax_gate
from dynconv_torch.layers.decomposition import hard_gate as torch_gate
from parity_tests.layers.test_decomposed_conv import layers, torch_layer
from parity_tests.parity import assert_parity
from parity_tests.tolerances import assert_close

# Batches and dtypes


@pytest.mark.parametrize("batch", [(), (2, 2)])
def test_any_number_of_batch_dimensions_is_accepted(batch, rng):
    layer, _ = layers(3, 4, (3,), padding=1)
    layer = nnx.view(layer, use_running_average=True)
    x = jnp.asarray(rng.normal(size=(*batch, 5, 3)))

    def results(x):
        return {"y": layer(x), **layer.decomposition(x)._asdict()}

    expected = {
        name: value.reshape(*batch, *value.shape[1:])
        for name, value in results(x.reshape(-1, 5, 3)).items()
    }
    assert_close(results(x), expected, dtype="float64")


def test_an_empty_batch_is_accepted():
    ours, theirs = layers(3, 4, (3, 3), padding=1, pool=2)
    assert ours(jnp.ones((0, 5, 6, 3))).shape == (0, 5, 6, 4)
    assert ours.decomposition(jnp.ones((0, 5, 6, 3))).phi.shape == (0, 3, 3)
    assert theirs.eval()(torch.ones(0, 3, 5, 6).double()).shape == (0, 4, 5, 6)


def test_gates_have_the_gradient_of_pytorch_at_their_kinks():
    logits = np.array([-3.0, 0.0, 3.0])
    leaf = torch.tensor(logits, requires_grad=True)
    torch_gate(leaf).sum().backward()
    actual = jax.grad(lambda x: jax_gate(x).sum())(jnp.asarray(logits))
    assert leaf.grad is not None
    np.testing.assert_array_equal(actual, leaf.grad.numpy())


def test_unbatched_input_is_accepted_by_the_twin():
    layer = torch_layer(3, 4, (3,), padding=1).eval()
    x = torch.randn(3, 5, dtype=torch.float64)
    assert torch.equal(layer(x), layer(x[None])[0])
    assert torch.equal(layer.decomposition(x).phi, layer.decomposition(x[None]).phi[0])


def test_one_value_a_channel_cannot_be_trained_on():
    ours, theirs = layers(3, 4, (3,), padding=1)
    sentence = (
        r"gives the batch norms of the layer one value per channel, whose variance is "
        "not defined in training; train with .*evaluation mode"
    )
    with pytest.raises(
        ValueError, match=r"^`inputs` \(shape \(1, 1, 3\)\) " + sentence
    ):
        ours(jnp.ones((1, 1, 3)))
    for x in (torch.ones(1, 3, 1).double(), torch.ones(3, 1).double()):
        with pytest.raises(ValueError, match=r"^`x` \(shape \(1, 3, 1\)\) " + sentence):
            theirs(x)
    assert nnx.view(ours, use_running_average=True)(jnp.ones((1, 1, 3))).shape[0] == 1
    assert theirs.eval()(torch.ones(1, 3, 1).double()).shape[0] == 1


def test_what_is_dynamic_is_computed_in_float32_at_least():
    ours, theirs = layers(3, 4, (3,), "bfloat16", padding=1)
    evaluated = nnx.view(ours, use_running_average=True)
    x = jax.ShapeDtypeStruct((2, 5, 3), "bfloat16")
    found = jax.eval_shape(evaluated.decomposition, x)
    assert {each.dtype for each in found} == {jnp.dtype("float32")}
    assert jax.eval_shape(evaluated, x).dtype == jnp.bfloat16
    tensor = torch.randn(2, 3, 5).bfloat16()
    found = theirs.decomposition(tensor)
    assert {each.dtype for each in found} == {torch.float32}
    assert theirs(tensor).dtype == torch.bfloat16
    wide = dynconv_torch.DecomposedConv1d(3, 4, 3, padding=1).eval()
    expected = wide.decomposition(tensor.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for actual, other in zip(
            wide.decomposition(tensor.float()), expected, strict=True
        ):
            assert torch.equal(actual, other)


# Programs


def loss_of(layer):
    graphdef, state = nnx.split(nnx.view(layer, use_running_average=True))

    def loss(state, x):
        outputs = nnx.merge(graphdef, state)(x)
        return jnp.sin(outputs).sum(), outputs

    return loss, state


def test_layer_exports_with_a_free_batch_and_its_gradient(rng):
    layer, _ = layers(4, 6, (3, 3), padding=1, stride=2, groups=2)
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


@pytest.mark.parametrize("groups", [1, 2])
def test_no_convolution_is_grouped_over_the_batch(groups):
    layer, _ = layers(4, 4, (3, 3), groups=groups, padding=1)
    loss, state = loss_of(layer)
    gradient = jax.grad(loss, argnums=(0, 1), allow_int=True, has_aux=True)
    program = jax.jit(gradient).lower(state, jnp.ones((5, 6, 7, 4))).as_text()
    found = re.findall(r"(?:feature|batch)_group_count = (\d+)", program)
    assert found and {int(count) for count in found} <= {1, groups}


def test_layer_works_under_vmap_and_remat(rng):
    layer, _ = layers(3, 4, (3,), padding=1)
    graphdef, state = nnx.split(nnx.view(layer, use_running_average=True))
    x = jnp.asarray(rng.normal(size=(2, 5, 3)))

    def forward(state, x):
        return nnx.merge(graphdef, state)(x)

    ensemble = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    mapped = jax.jit(jax.vmap(forward, in_axes=(0, None)))(ensemble, x)
    actual = {"vmap": mapped[1], "remat": jax.jit(jax.checkpoint(forward))(state, x)}
    assert_close(actual, dict.fromkeys(actual, forward(state, x)), dtype="float64")


def test_scale_and_phi_are_recorded_by_name(rng):
    layer, _ = layers(3, 4, (3,), padding=1)
    x = jnp.asarray(rng.normal(size=(2, 5, 3)))
    expected = layer.decomposition(x)._asdict()
    _, captured = nnx.capture(layer, Attention)(x)
    recorded = {
        str(path[-1]): variable.get_value()[0]
        for path, variable in nnx.to_flat_state(captured)
    }
    assert_close(recorded, expected, dtype="float64")


# At the door


@pytest.mark.parametrize(
    "kernel_size, padding, dilation",
    [
        ((3, 3), 0, 1),
        ((3, 3), 2, 1),
        ((3, 3), 1, 2),
        ((1, 1), 1, 1),
        ((2, 2), 1, 1),
        ((3, 3), ((1, 1), (1, 0)), 1),
    ],
)
def test_padding_that_gives_another_size_is_refused(kernel_size, padding, dilation):
    with pytest.raises(ValueError, match="padding` .*must add"):
        DecomposedConv(
            3,
            4,
            kernel_size,
            padding=padding,
            kernel_dilation=dilation,
            rngs=nnx.Rngs(0),
        )
    with pytest.raises(ValueError, match="padding` .*must add"):
        dynconv_torch.DecomposedConv2d(
            3, 4, kernel_size, padding=padding, dilation=dilation
        )


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_has_the_size_of_the_latent(size, stride):
    def apply(x):
        layer = DecomposedConv(3, 4, (2,), stride, rngs=nnx.Rngs(0))
        return layer(x)

    inputs = jnp.ones((2, size, 3), jnp.float32)
    assert jax.eval_shape(apply, inputs).shape[1] == -(-size // stride)


@pytest.mark.parametrize("size", [4, 5])
def test_padding_of_tensorflow_is_that_of_jax(size, rng):
    theirs = torch_layer(3, 4, (2, 3), stride=2, padding="tf_same")
    ours = DecomposedConv(
        3, 4, (2, 3), 2, padding="SAME", param_dtype="float64", rngs=nnx.Rngs(0)
    )
    assert "tf_same" in repr(theirs.conv)
    assert_parity(ours, theirs, rng.normal(size=(2, size, 6, 3)))


BAD_ARGUMENTS = {
    "pool": (dict(pool=0), ValueError, r"pool` \(=0\)"),
    "reduction": (dict(reduction=0), ValueError, r"reduction` \(=0\)"),
    "hidden": (dict(min_hidden=1.5), TypeError, r"min_hidden` \(=1.5\)"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_at_the_door(name):
    options, error, message = BAD_ARGUMENTS[name]
    with pytest.raises(error, match=message):
        DecomposedConv(3, 4, (1, 1), rngs=nnx.Rngs(0), **options)
    with pytest.raises(error, match=message):
        dynconv_torch.DecomposedConv2d(3, 4, 1, **options)


def test_bad_inputs_are_refused():
    ours, theirs = layers(3, 4, (3, 3), padding=1)
    with pytest.raises(ValueError, match=r"inputs.*in_features` \(=3\)"):
        ours(jnp.ones((2, 5, 6, 2)))
    with pytest.raises(ValueError, match="empty"):
        ours(jnp.ones((2, 0, 6, 3)))
    with pytest.raises(ValueError, match=r"in_channels` \(=3\)"):
        theirs(torch.ones(2, 2, 5, 6))
    with pytest.raises(ValueError, match="empty"):
        theirs(torch.ones(2, 3, 0, 6))
    with pytest.raises(TypeError, match=r"kernel_size` \(=3\).*tuple"):
        DecomposedConv(3, 4, 3, rngs=nnx.Rngs(0))  # pyright: ignore


@pytest.mark.slow
def test_float16_does_not_overflow_before_the_norm(rng):
    ours, theirs = layers(32, 4, (3,), padding=1)
    x = rng.uniform(1e4, 3e4, size=(4, 9, 32)).astype("float16")
    with torch.no_grad():
        theirs.fc_phi.weight.mul_(8)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    load_torch_state_dict(ours, state)
    narrow = DecomposedConv(32, 4, (3,), padding=1, dtype="float16", rngs=nnx.Rngs(0))
    load_torch_state_dict(
        narrow,
        {
            key: value.astype("float32") if value.dtype == "float64" else value
            for key, value in state.items()
        },
    )
    wide = jnp.asarray(x, "float64")
    assert jnp.abs(ours.decomposition(wide).phi).max() > 65504  # none of float16
    expected = ours(wide)
    assert jnp.abs(expected).max() < 65504
    assert_close({"": narrow(jnp.asarray(x))}, {"": expected}, dtype="bfloat16")
    outputs = theirs.half()(torch.from_numpy(x.swapaxes(1, 2)))
    outputs = outputs.detach().numpy().swapaxes(1, 2)
    assert_close({"": outputs}, {"": expected}, dtype="bfloat16")
