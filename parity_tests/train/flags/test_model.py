"""The model of the flags: any by name, options checked, and where it starts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import nnx

from dynconv_jax import CondConv, DynamicConv, ODConv, list_convolutions
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.grad_checkpointing import Checkpointing
from dynconv_jax.weights import save_weights, to_torch_state_dict
from parity_tests.tolerances import assert_close
from train.errors import TrainError
from train.flags.config import Config
from train.learning.model import create, static_twin, twin_of

# The program is run as a user runs it.
DEFAULT_NUMERICS = True

CLASSES = 7
SMALL: dict[str, Any] = dict(num_experts=2)


def abstract(**flags) -> Any:
    return abstract_module(lambda rngs: create(Config(**flags), CLASSES, 2, rngs))


def layers_of(model: nnx.Module, kind: type) -> list:
    return [part for _, part in nnx.iter_modules(model) if isinstance(part, kind)]


# Names


@pytest.mark.parametrize("conv", [None, *list_convolutions()])
@pytest.mark.parametrize(
    "name", ["dynamic_net", pytest.param("resnet18", marks=pytest.mark.slow)]
)
def test_every_convolution_is_made_by_name(name, conv):
    model = abstract(model=name, conv=conv, dtype="bfloat16")
    graphdef, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((4, 8, 8, 2), "float32")
    logits = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, image)
    assert (logits.shape, logits.dtype) == ((4, CLASSES), jnp.bfloat16)
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert {leaf.dtype for leaf in params} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("name", "experts"), [("b0_4e", 4), ("b0_8e", 8)])
def test_named_convolution_of_a_model_keeps_its_experts(name, experts):
    model = abstract(model=f"efficientnet_cc_{name}", conv="condconv")
    layers = layers_of(model, CondConv)
    assert layers
    assert {layer.num_experts for layer in layers} == {experts}


# Options


def test_flags_and_named_options_reach_the_convolutions():
    model = abstract(
        model="resnet18",
        conv="dynamic",
        num_experts=3,
        reduction=8,
        top_k=2,
        router_dropout=0.25,
        router_noise=0.5,
        conv_options=("implementation=vmap",),
        drop_path=0.125,
        model_options=("dynamic=1", "dropout=0.5"),
    )
    layers = layers_of(model, DynamicConv)
    assert len(layers) == 4  # of the last stage alone
    for layer in layers:
        assert layer.num_experts == 3
        assert layer.implementation == "vmap"
        router = layer.router
        assert (router.reduction, router.top_k, router.dropout.rate) == (8, 2, 0.25)
        assert router.noise.std == 0.5
    assert model.dropout.rate == 0.5
    assert model.layer4.layers[-1].drop_path.rate == 0.125


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(model="resnet81"), ["--model (=resnet81)", "'resnet18'"]),
        (dict(conv="dinamic"), ["--conv (=dinamic)", "did you mean 'dynamic'"]),
        (
            dict(model="resnet18", num_experts=3),
            ["--num-experts (=3)", "--model resnet18", "--conv"],
        ),
        (dict(conv="condconv", top_k=2), ["--top-k (=2)", "--conv condconv"]),
        (
            dict(conv="odconv", router_dropout=0.1),
            ["--router-dropout (=0.1)", "--conv odconv"],
        ),
        (dict(top_k=7), ["--top-k (=7)", "--num-experts (=4)"]),
        (
            dict(model="resnet18", conv="dynamic", model_options=("dynamic=often",)),
            ["--model-options (=dynamic=often)", "'pointwise'"],
        ),
        (
            dict(model="resnet18", model_options=("dynamik=all",)),
            ["--model-options (=dynamik=all)", "not known"],
        ),
        (
            dict(conv_options=("num_experts=3",)),
            ["--conv-options (=num_experts=3)", "set by --num-experts"],
        ),
        (
            dict(model_options=("num_classes=3",)),
            ["--model-options (=num_classes=3)", "set by the data"],
        ),
        (
            dict(conv_options=("use_bias=True", "use_bias=False")),
            ["--conv-options (=use_bias=False)", "an earlier one"],
        ),
        (
            dict(conv="kernel_warehouse", conv_options=("ratio=0.3",)),
            ["--conv kernel_warehouse", "`ratio` (=0.3)"],
        ),
        (
            dict(conv="decomposed", load_balance=0.1),
            ["--load-balance (=0.1)", "--conv decomposed"],
        ),
        (
            dict(num_experts=1, load_balance=0.1),
            ["--load-balance (=0.1)", "no router over several experts"],
        ),
        (
            dict(conv="condconv", router_z_loss=0.1),
            ["--router-z-loss (=0.1)", "--conv condconv", "no softmax"],
        ),
        (dict(drop_path=0.1), ["--drop-path (=0.1)", "--model dynamic_net"]),
        (
            dict(
                model="resnet18", drop_path=0.1, model_options=("drop_path_rate=0.2",)
            ),
            ["--drop-path (=0.1)", "--model-options drop_path_rate"],
        ),
        (
            dict(conv="odconv", router_noise=0.1),
            ["--router-noise (=0.1)", "--conv odconv"],
        ),
        (
            dict(model="resnet18", twin=True),
            ["--twin (=True)", "--model resnet18", "static already", "--conv"],
        ),
    ],
)
def test_what_a_model_cannot_take_is_refused_in_one_line(flags, words):
    with pytest.raises(TrainError) as caught:
        abstract(**flags)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("flag", [True, False])
def test_blocks_are_computed_anew_where_that_is_asked(flag):
    for name in ("dynamic_net", "resnet18"):
        model = abstract(model=name, grad_checkpointing=flag)
        parts = layers_of(model, Checkpointing)
        assert parts
        assert {part.grad_checkpointing for part in parts} == {flag}


# Where it starts


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """A static model, and the file that it is saved to."""
    path = tmp_path_factory.mktemp("weights") / "static.safetensors"
    model = static_twin(Config(**SMALL), CLASSES, 1, nnx.Rngs(5))
    save_weights(model, path)
    return model, path


def logits(model: nnx.Module, images: np.ndarray) -> jax.Array:
    graphdef, state = nnx.split(nnx.view(model, use_running_average=True))
    return jax.jit(lambda s, x: nnx.merge(graphdef, s)(x))(state, images)


def test_twin_is_static_and_has_the_other_options():
    config = Config(model="resnet18", conv="odconv", num_experts=2)
    twin: Any = abstract_module(lambda rngs: static_twin(config, CLASSES, 2, rngs))
    assert not layers_of(twin, ODConv)
    assert twin.conv1.kernel.shape == (7, 7, 2, 64)


def test_twin_leaves_out_how_dynamic_convolutions_are_computed():
    options = ("implementation=patches", "width_mult=0.5")
    config = Config(model_options=options)
    twin: Any = abstract_module(lambda rngs: static_twin(config, CLASSES, 1, rngs))
    assert twin.fc.kernel.shape == (128, CLASSES)


def test_flags_of_the_twin_are_without_those_of_routers():
    shared: dict[str, Any] = dict(steps=7, seed=3, label_smoothing=0.1)
    routers: dict[str, Any] = dict(
        **dict(num_experts=3, reduction=2, top_k=2, conv_options=("use_bias=True",)),
        **dict(router_dropout=0.1, router_noise=0.1, load_balance=0.1),
        router_z_loss=0.1,
    )
    config = Config(twin=True, **shared, **routers)
    assert twin_of(config) == Config(conv="static", **shared)


@pytest.mark.slow
def test_dynamic_model_starts_with_the_function_of_a_static_one(static, images):
    model, path = static
    config = Config(init_from=path, **SMALL)
    started = create(config, CLASSES, 1, nnx.Rngs(0))
    assert_close(
        {"": logits(started, images)}, {"": logits(model, images)}, dtype="float32"
    )


@pytest.mark.slow
def test_noise_sets_the_experts_apart(static):
    _, path = static
    noisy: Any = create(
        Config(init_from=path, init_noise=0.1, **SMALL), CLASSES, 1, nnx.Rngs(0)
    )
    one, other = noisy.stage1.dyn.kernel[...]
    assert not np.array_equal(one, other)


def test_model_starts_from_a_file_of_its_own(tmp_path):
    path = tmp_path / "own.safetensors"
    trained = create(Config(**SMALL), CLASSES, 1, nnx.Rngs(5))
    save_weights(trained, path)
    started = create(Config(init_from=path, **SMALL), CLASSES, 1, nnx.Rngs(0))
    actual, expected = map(to_torch_state_dict, (started, trained))
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array)
    with pytest.raises(TrainError, match=r"--init-noise \(=0.1\) must be 0"):
        create(Config(init_from=path, init_noise=0.1, **SMALL), CLASSES, 1, nnx.Rngs(0))
    with pytest.raises(TrainError, match=r"--twin \(=True\) must be left out with --i"):
        create(Config(init_from=path, twin=True, **SMALL), CLASSES, 1, nnx.Rngs(0))


def test_twin_starts_from_the_file_of_a_static_model(static):
    model, path = static
    config = Config(init_from=path, init_noise=0.1, twin=True, **SMALL)
    started = create(twin_of(config), CLASSES, 1, nnx.Rngs(0))
    actual, expected = map(to_torch_state_dict, (started, model))
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array)


def test_checkpoint_of_a_wrapped_torch_module_starts_a_run_and_says_so(
    tmp_path, capsys
):
    path = tmp_path / "wrapped.pth"
    source = create(Config(**SMALL), CLASSES, 1, nnx.Rngs(1))
    values = to_torch_state_dict(source)
    tensors = {f"module.{key}": torch.from_numpy(values[key]) for key in values}
    torch.save({"state_dict": tensors, "epoch": 3}, path)
    started = create(Config(init_from=path, **SMALL), CLASSES, 1, nnx.Rngs(0))
    assert_close(to_torch_state_dict(started), values, dtype="float32")
    told = capsys.readouterr().err
    assert told.startswith("train: warning: ") and "'module.'" in told


@pytest.mark.parametrize("content", [None, b"no weights", "foreign"])
def test_file_that_does_not_fit_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "weights.safetensors"
    if content == "foreign":
        safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(TrainError) as caught:
        create(Config(init_from=path, **SMALL), CLASSES, 1, nnx.Rngs(0))
    message = str(caught.value)
    assert message.startswith(f"--init-from (={path})")
    assert "\n" not in message
