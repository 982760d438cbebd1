"""Routers: attention, temperature, top-k, dropout, noise, in both frameworks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import (
    DynamicConv,
    DynamicNet,
    Router,
    SigmoidRouter,
    set_temperature,
)
from dynconv_jax.logit_noise import LogitNoise
from dynconv_torch.logit_noise import LogitNoise as TorchLogitNoise
from parity_tests.parity import as_numpy, assert_parity
from parity_tests.tolerances import assert_close


def routers(in_features=9, num_experts=5, **options):
    ours = Router(
        in_features, num_experts, param_dtype="float64", rngs=nnx.Rngs(0), **options
    )
    return ours, dynconv_torch.Router(in_features, num_experts, **options).double()


@pytest.mark.parametrize("spatial", [(6,), (5, 7), (3, 4, 5)])
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(reduction=1),
        dict(reduction=100),
        dict(temperature=30.0),
        dict(temperature=1e4),
        dict(temperature=0.6, top_k=2),
        dict(temperature=0.6, top_k=1),
        dict(num_experts=1),
        dict(num_experts=1, top_k=1),
        dict(top_k=5),
    ],
    ids=str,
)
def test_routers_agree(options, spatial, rng):
    ours, theirs = routers(**options)
    assert_parity(ours, theirs, rng.normal(size=(3, *spatial, 9)))


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_routers_agree_on_inputs_of_any_magnitude(scale, rng):
    ours, theirs = routers(temperature=30.0)
    assert_parity(ours, theirs, scale * rng.normal(size=(3, 5, 4, 9)))


def test_rows_sum_to_one(rng):
    attention = routers()[0](jnp.asarray(rng.normal(size=(4, 5, 3, 9))))
    ones = {"sum": np.ones(4)}
    assert_close({"sum": attention.sum(axis=-1)}, ones, dtype="float64")


def test_nan_is_passed_through():
    assert jnp.isnan(routers()[0](jnp.full((1, 4, 9), jnp.nan))).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_attention_is_float32_for_narrower_layers(dtype):
    router = Router(9, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    assert router(jnp.ones((2, 4, 9), dtype)).dtype == jnp.float32
    theirs = dynconv_torch.Router(9).to(getattr(torch, dtype))
    assert theirs(torch.ones(2, 9, 4).to(getattr(torch, dtype))).dtype == torch.float32


def sigmoid_routers():
    ours = SigmoidRouter(9, 5, param_dtype="float64", rngs=nnx.Rngs(0))
    return ours, dynconv_torch.SigmoidRouter(9, 5).double()


@pytest.mark.parametrize("spatial", [(6,), (5, 7), (3, 4, 5)])
def test_routers_of_sigmoids_agree(spatial, rng):
    assert_parity(*sigmoid_routers(), rng.normal(size=(3, *spatial, 9)))


def test_router_of_sigmoids_answers_what_is_specified(rng):
    router, _ = sigmoid_routers()
    x = rng.normal(size=(3, 5, 4, 9))
    assert router.bias is not None
    logits = x.mean((1, 2)) @ np.asarray(router.kernel[...])
    logits += np.asarray(router.bias[...])
    expected = {"attention": 1 / (1 + np.exp(-logits))}
    assert_close({"attention": router(jnp.asarray(x))}, expected, dtype="float64")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_sigmoids_are_float32_for_narrower_layers(dtype):
    router = SigmoidRouter(9, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    assert router(jnp.ones((2, 4, 9), dtype)).dtype == jnp.float32
    theirs = dynconv_torch.SigmoidRouter(9).to(getattr(torch, dtype))
    assert theirs(torch.ones(2, 9, 4).to(getattr(torch, dtype))).dtype == torch.float32


def test_sigmoids_of_the_twin_are_float32_under_autocast():
    router = dynconv_torch.SigmoidRouter(9)
    x = torch.randn(2, 9, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention = router(x)
    assert torch.equal(attention, router(x))


def test_router_of_sigmoids_is_drawn_as_pytorch_draws_a_linear_layer():
    router = SigmoidRouter(512, 300, rngs=nnx.Rngs(0))
    for variable in jax.tree.leaves(nnx.state(router)):
        assert 0.95 * 512**-0.5 < float(jnp.abs(variable).max()) <= 512**-0.5


def test_router_of_sigmoids_refuses_other_channels():
    router, theirs = sigmoid_routers()
    with pytest.raises(ValueError, match=r"inputs.*in_features` \(=9\)"):
        router(jnp.ones((2, 5, 8)))
    with pytest.raises(ValueError, match=r"x.*in_channels` \(=9\)"):
        theirs(torch.ones(2, 8, 5))


def test_dropout_acts_in_training_only(rng):
    router = Router(64, dropout_rate=0.5, param_dtype="float64", rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(3, 5, 64)))
    assert (router(x) != router(x)).any()
    still = nnx.view(router, deterministic=True)
    assert (still(x) == still(x)).all()
    plain = Router(64, param_dtype="float64", rngs=nnx.Rngs(0))
    assert (still(x) == plain(x)).all()


def test_dropout_of_the_twin_acts_in_training_only():
    router = dynconv_torch.Router(64, dropout=0.5)
    x = torch.randn(3, 64, 5)
    assert (router(x) != router(x)).any()
    router.eval()
    assert (router(x) == router(x)).all()


def noisy(std: float) -> tuple[Router, dynconv_torch.Router]:
    options: dict[str, Any] = dict(noise_std=std, top_k=1)
    return Router(8, rngs=nnx.Rngs(0), **options), dynconv_torch.Router(8, **options)


def test_noise_acts_in_training_only(rng):
    ours, theirs = noisy(0.5)
    x = rng.normal(size=(3, 8, 8)).astype("float32")
    assert (ours.logits(jnp.asarray(x)) != ours.logits(jnp.asarray(x))).all()
    assert (theirs.logits(torch.tensor(x)) != theirs.logits(torch.tensor(x))).all()
    still, plain = nnx.view(ours, deterministic=True), noisy(0.0)[0]
    assert (still.logits(jnp.asarray(x)) == plain.logits(jnp.asarray(x))).all()
    theirs.eval()
    assert (theirs.logits(torch.tensor(x)) == theirs.logits(torch.tensor(x))).all()
    ours.eval()
    assert (ours.logits(jnp.asarray(x)) == plain.logits(jnp.asarray(x))).all()


def test_noise_has_the_deviation_asked_for():
    logits = np.zeros((200, 50))
    ours = LogitNoise(0.5, rngs=nnx.Rngs(0))(jnp.asarray(logits))
    theirs = TorchLogitNoise(0.5)(torch.from_numpy(logits))
    for noise in (np.asarray(ours), as_numpy(theirs)):
        assert abs(noise.std() - 0.5) < 0.02 and abs(noise.mean()) < 0.02


def test_noise_moves_on_under_jit_and_follows_from_the_seed():
    def two(seed: int) -> list[jax.Array]:
        router = Router(8, noise_std=0.5, rngs=nnx.Rngs(0, noise=seed))
        step = nnx.jit(lambda router, x: router.logits(x))
        return [step(router, jnp.ones((2, 3, 8))) for _ in range(2)]

    first, again, other = two(0), two(0), two(1)
    assert (first[0] != first[1]).any()
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()


def test_router_without_noise_has_no_random_state():
    state = nnx.state(noisy(0.0)[0], nnx.RngState)
    assert not jax.tree.leaves(state)


@pytest.mark.parametrize("std", [-0.1, float("nan"), float("inf")])
def test_impossible_noise_is_refused_by_both(std):
    for build in (
        lambda: noisy(std),
        lambda: dynconv_torch.Router(8, noise_std=std),
        lambda: DynamicConv(3, 4, (3,), router_noise=std, rngs=nnx.Rngs(0)),
        lambda: dynconv_torch.DynamicConv1d(3, 4, 3, router_noise=std),
    ):
        with pytest.raises(ValueError, match=rf"noise_std` \(={std}\)"):
            build()


def test_nets_pass_noise_on_to_their_routers():
    net = DynamicNet(router_noise=0.25, width_mult=0.25, rngs=nnx.Rngs(0))
    twin = dynconv_torch.DynamicNet(router_noise=0.25, width_mult=0.25)
    assert net.stage2.dyn.router.noise.std == twin.stage2.dyn.noise.std == 0.25


def test_set_temperature_reaches_every_router_of_a_model():
    net = DynamicNet(width_mult=0.1, rngs=nnx.Rngs(0))
    set_temperature(net, 7.0)
    stages = (net.stage1, net.stage2, net.stage3)
    assert [float(s.dyn.router.temperature[...]) for s in stages] == [7.0] * 3
    twin = dynconv_torch.DynamicNet()
    dynconv_torch.set_temperature(twin, 7.0)
    stages = (twin.stage1, twin.stage2, twin.stage3)
    assert [float(s.dyn.temperature) for s in stages] == [7.0] * 3


def test_temperatures_on_one_jitted_net_compile_once_and_differ(rng):
    net = nnx.view(
        DynamicNet(num_classes=3, width_mult=0.25, rngs=nnx.Rngs(0)),
        use_running_average=True,
    )
    # At first, experts are alike; the temperature shows once they differ.
    for stage in (net.stage1, net.stage2, net.stage3):
        stage.dyn.kernel[...] *= 50
        stage.dyn.router.fc2.kernel[...] *= 50
    graphdef, state = nnx.split(net)
    traces = []

    @jax.jit
    def forward(state, x):
        traces.append(x)
        return nnx.merge(graphdef, state)(x)

    x = jnp.asarray(rng.normal(size=(2, 9, 8, 3)), jnp.float32)
    outputs = []
    for temperature in (0.5, 1.0, 4.0, 30.0):
        set_temperature(net, temperature)
        outputs.append(np.asarray(forward(nnx.state(net), x)))
    assert len(traces) == 1
    assert len({output.tobytes() for output in outputs}) == 4


def test_temperature_may_be_traced():
    router = Router(4, rngs=nnx.Rngs(0))

    @nnx.jit
    def anneal(router, step):
        set_temperature(router, 30.0 - step)

    anneal(router, jnp.asarray(5))
    assert float(router.temperature[...]) == 25.0


def test_twin_built_without_memory_comes_to_life_with_its_temperature():
    with torch.device("meta"):
        layer = dynconv_torch.DynamicConv2d(3, 4, 3, temperature=30.0)
    state = dynconv_torch.DynamicConv2d(3, 4, 3).state_dict()
    del state["temperature"]
    with pytest.raises(RuntimeError, match="temperature"):
        layer.load_state_dict(state, assign=True)
    layer.to_empty(device="cpu").load_state_dict(state)
    assert layer.temperature.item() == 30.0


def test_twin_keeps_the_exact_temperature_through_casts():
    router = dynconv_torch.Router(4, temperature=0.6)
    for cast in (router.half, router.bfloat16, router.float, router.double):
        assert cast().temperature.item() == 0.6


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "a", None])
def test_impossible_temperatures_are_refused(value):
    layer = DynamicConv(3, 4, (3,), rngs=nnx.Rngs(0))
    twin = dynconv_torch.DynamicConv1d(3, 4, 3)
    for call in (
        lambda: set_temperature(layer, value),
        lambda: Router(4, temperature=value, rngs=nnx.Rngs(0)),
        lambda: dynconv_torch.set_temperature(twin, value),
        lambda: dynconv_torch.Router(4, temperature=value),
    ):
        with pytest.raises(ValueError, match="temperature.*positive"):
            call()


def test_setting_the_temperature_of_a_static_model_is_refused():
    with pytest.raises(ValueError, match="Linear.*no router"):
        set_temperature(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), 1.0)
    with pytest.raises(ValueError, match="Linear.*no router"):
        dynconv_torch.set_temperature(torch.nn.Linear(2, 3), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_experts=0), r"num_experts` \(=0\)"),
        (dict(reduction=0), r"reduction` \(=0\)"),
        (dict(top_k=0), r"top_k` \(=0\)"),
        (dict(top_k=5), r"top_k` \(=5\).*num_experts` \(=4\)"),
    ],
)
def test_impossible_options_are_refused_by_both(options, message):
    with pytest.raises(ValueError, match=message):
        Router(8, rngs=nnx.Rngs(0), **options)
    with pytest.raises(ValueError, match=message):
        dynconv_torch.Router(8, **options)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_dropout_is_refused_by_both(rate):
    with pytest.raises(ValueError, match=rf"dropout_rate` \(={rate}\)"):
        Router(8, dropout_rate=rate, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=rf"dropout` \(={rate}\)"):
        dynconv_torch.Router(8, dropout=rate)


def test_inputs_of_other_channels_are_refused_by_both():
    with pytest.raises(ValueError, match=r"inputs.*in_features` \(=8\)"):
        Router(8, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 7)))
    with pytest.raises(ValueError, match=r"in_channels` \(=8\)"):
        dynconv_torch.Router(8)(torch.ones(2, 7, 5))
