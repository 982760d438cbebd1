"""`Conv` beside `nnx.Conv`, and models that are changed to it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from dynconv_jax import (
    BatchNorm,
    Conv,
    load_torch_state_dict,
    replace_convs,
    to_torch_state_dict,
)
from dynconv_jax.functional import conv_general_dilated
from dynconv_jax.functional.static import few_channel_conv
from parity_tests.tolerances import assert_close

OPTIONS = {
    "same": {},
    "valid": dict(padding="VALID", strides=2),
    "same lower": dict(padding="SAME_LOWER", strides=2),
    "circular": dict(padding="CIRCULAR"),
    "reflect": dict(padding="REFLECT", kernel_dilation=2),
    "numbers": dict(padding=((1, 2), (0, 1)), input_dilation=2),
    "groups": dict(feature_group_count=2, use_bias=False),
    "masked": dict(mask=np.tril(np.ones((3, 2, 4, 6)))),
    "narrow": dict(dtype=jnp.bfloat16, preferred_element_type=jnp.float32),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_it_computes_what_nnx_conv_does(name, rng):
    options = OPTIONS[name]
    inputs = jnp.asarray(rng.normal(size=(2, 7, 5, 4)), jnp.float32)
    ours, theirs = (
        kind(4, 6, (3, 2), rngs=nnx.Rngs(0), **options) for kind in (Conv, nnx.Conv)
    )
    with jax.numpy_dtype_promotion("standard"):
        assert (ours(inputs) == theirs(inputs)).all()


def test_causal_windows_and_inputs_without_a_batch():
    ours, theirs = (
        kind(4, 6, 3, padding="CAUSAL", rngs=nnx.Rngs(0)) for kind in (Conv, nnx.Conv)
    )
    inputs = jax.random.normal(jax.random.key(0), (9, 4), jnp.float32)
    assert (ours(inputs) == theirs(inputs)).all()


def test_its_weights_move_as_those_of_nnx_conv():
    ours, theirs = (kind(4, 6, (3, 2), rngs=nnx.Rngs(0)) for kind in (Conv, nnx.Conv))
    state = to_torch_state_dict(ours)
    expected = to_torch_state_dict(theirs)
    assert state.keys() == expected.keys()
    load_torch_state_dict(theirs, state)
    assert (theirs.kernel[...] == ours.kernel[...]).all()


class Residual(nnx.Module):
    """A network of flax's layers, with shortcuts and batch norms."""

    def __init__(self, rngs):
        options = dict(param_dtype=jnp.float64, rngs=rngs)
        self.stem = nnx.Conv(3, 8, (3, 3), use_bias=False, **options)
        self.norm = BatchNorm(8, **options)
        self.down = nnx.Conv(8, 8, (3, 3), strides=2, padding=1, **options)
        self.depthwise = nnx.Conv(8, 8, (3, 3), feature_group_count=8, **options)
        self.head = nnx.Linear(8, 5, **options)

    def __call__(self, images):
        features = nnx.relu(self.norm(self.stem(images)))
        features = self.down(features)
        features = features + self.depthwise(features)
        return self.head(features.mean((1, 2)))


def train(model, images, labels):
    """Takes three steps."""
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    def loss(model):
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    for _ in range(3):
        optimizer.update(model, nnx.grad(loss)(model))


@nnx.split_rngs(splits=3)
@nnx.vmap
def create_three(rngs):
    """Returns three models, stacked."""
    return Residual(rngs)


@pytest.mark.slow
def test_models_that_are_stacked_train_as_each_alone(rng):
    images = jnp.asarray(rng.normal(size=(3, 4, 8, 6, 3)))
    labels = jnp.asarray(rng.integers(5, size=(3, 4)))
    models = create_three(nnx.Rngs(0))
    graph, states = nnx.split(models)
    apart = [jax.tree.map(lambda x, at=at: x[at], states) for at in range(3)]
    assert replace_convs(models) == ["depthwise", "down", "stem"]
    with jax.numpy_dtype_promotion("standard"):  # flax's batch norm asks for it
        nnx.jit(nnx.vmap(train))(models, images, labels)
        found = dict(nnx.to_flat_state(nnx.state(models)))
        for at, state in enumerate(apart):
            alone = nnx.merge(graph, state)
            nnx.jit(train)(alone, images[at], labels[at])
            expected = dict(nnx.to_flat_state(nnx.state(alone)))
            assert_close(
                {str(path): each[...][at] for path, each in found.items()},
                {str(path): each[...] for path, each in expected.items()},
                dtype="float64",
            )


def test_program_of_stacked_models_has_no_group_for_each():
    models = create_three(nnx.Rngs(0))
    replace_convs(models)
    graph, parameters, rest = nnx.split(models, nnx.Param, ...)
    images = jnp.ones((3, 4, 8, 6, 3))

    def loss(parameters):
        models = nnx.merge(graph, parameters, rest, copy=True)
        return nnx.vmap(lambda model, x: model(x))(models, images).sum()

    with jax.numpy_dtype_promotion("standard"):
        text = jax.jit(jax.grad(loss)).lower(parameters).as_text()
    found = re.findall(r"(?:feature|batch)_group_count ?= ?(\d+)", text)
    assert set(found) <= {"1"}


class Shifted(nnx.Conv):
    """A convolution with a `__call__` of its own."""

    def __call__(self, inputs):
        return super().__call__(inputs + 1)


class Named(nnx.Conv):
    """A convolution that computes as `nnx.Conv`."""


def test_layers_with_a_call_of_their_own_are_named_and_left():
    model = nnx.Sequential(Shifted(3, 4, (3, 3), rngs=nnx.Rngs(0)))
    with pytest.warns(UserWarning, match=r"layers\.0 \(Shifted has a `__call__` of"):
        assert replace_convs(model) == []
    assert model.layers[0].conv_general_dilated is lax.conv_general_dilated


def test_layers_whose_convolution_was_chosen_are_named_and_left():
    layer = nnx.Conv(
        *(3, 4, (3, 3)), conv_general_dilated=lambda *_, **__: 0, rngs=nnx.Rngs(0)
    )
    with pytest.warns(UserWarning, match="`conv_general_dilated` of its own"):
        assert replace_convs(nnx.Sequential(layer)) == []


def test_subclasses_that_compute_alike_are_changed():
    model = nnx.Sequential(Named(3, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.relu)
    assert replace_convs(model) == ["layers.0"]
    assert model.layers[0].conv_general_dilated is conv_general_dilated


def test_what_maps_well_already_is_left_without_a_word():
    layers = [Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)) for _ in range(2)]
    layers[1].conv_general_dilated = few_channel_conv
    assert replace_convs(nnx.Sequential(*layers)) == []
