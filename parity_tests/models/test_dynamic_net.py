"""DynamicNet: the whole network, and its training, in both frameworks."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import DynamicNet
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.weights import to_torch_state_dict
from dynconv_jax.weights.torch_layout import torch_shapes
from parity_tests.parity import (
    OPTIMIZERS,
    assert_training_parity,
    torch_state,
)
from parity_tests.passes import run_torch
from parity_tests.tolerances import assert_close
from parity_tests.tools import reference, whole
from parity_tests.tools.networks import assert_networks_agree


def nets(num_experts=4, temperature=1.0, in_features=3, dtype="float64", **options):
    ours = abstract_module(
        lambda rngs: DynamicNet(
            in_features,
            7,
            num_experts=num_experts,
            temperature=temperature,
            param_dtype=dtype,
            rngs=rngs,
            **options,
        )
    )
    theirs = dynconv_torch.DynamicNet(
        in_features, 7, num_experts, temperature, **options
    )
    return ours, theirs.to(getattr(torch, dtype))


@pytest.mark.parametrize(
    ("experts", "temperature", "size", "batch"),
    [
        (5, 0.6, (37, 29), 1),
        pytest.param(8, 30.0, (33, 40), 3, marks=pytest.mark.slow),
    ],
)
def test_both_agree_with_the_plain_reference(experts, temperature, size, batch, rng):
    plain = reference.PlainNet(3, 7, experts, temperature).double()
    ours, theirs = nets(experts, temperature)
    theirs.load_state_dict(plain.state_dict(), strict=True)
    inputs = rng.normal(size=(batch, *size, 3))
    cotangent = rng.normal(size=(batch, 7))
    assert_networks_agree(ours, theirs, inputs)

    theirs.load_state_dict(plain.state_dict(), strict=True)
    for training in (False, True):
        actual, expected = (
            run_torch(net, inputs, cotangent, training=training)
            for net in (theirs, plain)
        )
        assert_close({"output": actual[0]}, {"output": expected[0]}, dtype="float64")
        assert_close(actual[1], expected[1], dtype="float64")
        state = {key: actual[2][key] for key in expected[2]}
        assert_close(state, expected[2], dtype="float64")
    plain.load_state_dict(
        {key: torch.from_numpy(value) for key, value in exported(ours, plain).items()},
        strict=True,
    )


def exported(net, plain):
    """The state of a JAX net, less the temperatures that a plain one does not have."""
    return {
        key: value
        for key, value in to_torch_state_dict(net).items()
        if key in plain.state_dict()
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nets_train_alike(optimizer, rng):
    ours, theirs = nets(in_features=1, width_mult=0.25)
    assert_training_parity(
        ours,
        theirs,
        rng.normal(size=(2, 3, 9, 8, 1)),
        rng.integers(7, size=(2, 3)),
        optimizer=optimizer,
        steps=4,
    )


def test_a_whole_network_agrees(rng):
    whole.assert_whole_parity("dynamic_net", rng)


@pytest.mark.slow
def test_nets_agree_in_float32(rng):
    ours, theirs = nets(dtype="float32")
    assert_networks_agree(
        ours, theirs, rng.normal(size=(4, 24, 20, 3)).astype("float32")
    )


@pytest.mark.slow
def test_net_computes_in_bfloat16_from_float32_parameters(rng):
    ours = DynamicNet(num_classes=7, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    wide = DynamicNet(num_classes=7, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(4, 24, 20, 3)), jnp.float32)
    outputs = ours(x)
    assert outputs.dtype == jnp.bfloat16
    assert_close({"logits": outputs}, {"logits": wide(x)}, dtype="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["experts", "rows"])
def test_net_takes_an_implementation(implementation, rng):
    ours = abstract_module(
        lambda rngs: DynamicNet(
            1, 7, implementation=implementation, param_dtype="float64", rngs=rngs
        )
    )
    theirs = dynconv_torch.DynamicNet(1, 7, implementation="loop").double()
    assert_networks_agree(ours, theirs, rng.normal(size=(1, 9, 10, 1)))


@pytest.mark.parametrize(
    ("width_mult", "widths"),
    [
        (1.0, (32, 64, 128, 256)),
        (0.5, (16, 32, 64, 128)),
        (0.29, (9, 19, 37, 74)),  # 9.28, 18.56, 37.12, 74.24
        (0.046875, (2, 3, 6, 12)),  # the half of 1.5 goes up
        (0.001, (1, 1, 1, 1)),
    ],
)
def test_width_mult_rounds_to_whole_channels(width_mult, widths):
    ours = abstract_module(lambda rngs: DynamicNet(width_mult=width_mult, rngs=rngs))
    theirs = dynconv_torch.DynamicNet(width_mult=width_mult, device="meta")
    shapes = torch_shapes(ours)
    assert shapes == {key: tuple(a.shape) for key, a in theirs.state_dict().items()}
    norms = ("stem.1", "stage1.bn", "stage2.bn", "stage3.bn")
    assert tuple(shapes[f"{norm}.weight"][0] for norm in norms) == widths
    assert shapes["fc.weight"] == (10, widths[-1])


@pytest.mark.parametrize(
    "options", [{"conv": None}, pytest.param({}, marks=pytest.mark.slow)]
)
def test_nets_of_another_width_agree(options, rng):
    options = {"width_mult": 0.29, **options}
    ours = DynamicNet(2, 7, param_dtype="float64", rngs=nnx.Rngs(0), **options)
    theirs = dynconv_torch.DynamicNet(2, 7, **options).double()
    assert_networks_agree(ours, theirs, rng.normal(size=(2, 13, 10, 2)))


@pytest.mark.parametrize("width_mult", [0, -1.0, float("nan"), float("inf")])
def test_impossible_factors_of_the_width_are_refused(width_mult):
    for build in (
        lambda: DynamicNet(width_mult=width_mult, rngs=nnx.Rngs(0)),
        lambda: dynconv_torch.DynamicNet(width_mult=width_mult, device="meta"),
    ):
        with pytest.raises(ValueError, match="`width_mult` .*must be positive"):
            build()


SHAPES = """\
input: (2, 64, 64, 3)
stem: (2, 64, 64, 32)
s1: (2, 32, 32, 64)
s2: (2, 16, 16, 128)
s3: (2, 8, 8, 256)
out: (2, 10)
"""


def test_verbose_prints_the_shapes_as_specified(capsys):
    net = DynamicNet(rngs=nnx.Rngs(0))
    net(jnp.ones((2, 64, 64, 3), jnp.float32), verbose=True)
    assert capsys.readouterr().out == SHAPES


def test_verbose_twin_prints_the_shapes_channels_first(capsys):
    dynconv_torch.DynamicNet()(torch.ones(2, 3, 64, 64), verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["input: (2, 3, 64, 64)", "stem: (2, 32, 64, 64)"]
    assert lines[-2:] == ["s3: (2, 256, 8, 8)", "out: (2, 10)"]


def test_nothing_is_printed_unasked(capsys):
    DynamicNet(rngs=nnx.Rngs(0))(jnp.ones((1, 16, 16, 3), jnp.float32))
    assert capsys.readouterr().out == ""


def test_keys_are_those_of_published_checkpoints():
    plain = reference.PlainNet(3, 10, 4, 1.0)
    ours = to_torch_state_dict(DynamicNet(rngs=nnx.Rngs(0)))
    theirs = torch_state(dynconv_torch.DynamicNet())
    temperatures = {f"stage{n}.dyn.temperature" for n in (1, 2, 3)}
    expected = {key: value.shape for key, value in plain.state_dict().items()}
    for state in (ours, theirs):
        assert state.keys() - expected.keys() == temperatures
        shapes = {key: state[key].shape for key in expected}
        assert shapes == {key: tuple(shape) for key, shape in expected.items()}


@pytest.mark.parametrize("shape", [(16, 16, 3), (2, 16, 16, 4)])
def test_images_of_the_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"inputs.*height, width.*\(=3\)"):
        DynamicNet(rngs=nnx.Rngs(0))(jnp.ones(shape))


@pytest.mark.parametrize("name", ["in_features", "num_classes"])
def test_impossible_widths_are_refused(name):
    widths = {"in_features": 3, "num_classes": 7} | {name: 0}
    with pytest.raises(ValueError, match=rf"{name}` \(=0\)"):
        DynamicNet(widths["in_features"], widths["num_classes"], rngs=nnx.Rngs(0))


def test_net_can_be_pickled():
    net = DynamicNet(rngs=nnx.Rngs(0))
    twin = pickle.loads(pickle.dumps(net))
    assert (twin.fc.kernel[...] == net.fc.kernel[...]).all()


@pytest.mark.slow
def test_nan_is_passed_through():
    net = nnx.view(DynamicNet(rngs=nnx.Rngs(0)), use_running_average=True)
    x = np.ones((2, 16, 16, 3), np.float32)
    x[0, 4, 5, 1] = np.nan
    logits = np.asarray(net(jnp.asarray(x)))
    assert np.isnan(logits[0]).all()
    assert np.isfinite(logits[1]).all()
