"""DyMN in use: temperature, diagnosis, static starts, other convolutions, refusals."""

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import (
    ContextConv,
    DyMN,
    DynamicConv,
    diagnose,
    fold_batch_norm,
    init_from_static,
    load_torch_state_dict,
    set_temperature,
    to_torch_state_dict,
    two_slope_temperature,
)
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.weights.torch_layout import torch_shapes
from parity_tests.parity import torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools import networks
from parity_tests.tools.narrow_dymn import (
    BUILD,
    NARROW,
    TWO_BLOCKS,
    abstract_narrow,
)
from parity_tests.tools.networks import abstract, on_meta, shapes_of


def test_temperature_falls_by_two_slopes():
    for schedule in (two_slope_temperature, dynconv_torch.two_slope_temperature):
        assert [float(schedule(e)) for e in (0, 12, 29, 500)] == [30, 18, 1, 1]
        low: dict[str, Any] = dict(start=21.0, end=0.5, slope=2.0, late_slope=0.1)
        found = [float(schedule(e, **low)) for e in (0, 10, 12, 100)]
        ratios = np.asarray(found) / [21, 1, 0.8, 0.5]
        assert_close({"ratio": ratios}, {"ratio": np.ones(4)}, dtype="float64")
        for wrong in (dict(slope=0.0), dict(late_slope=-1.0), dict(end=0.0)):
            with pytest.raises(ValueError, match=r"\(=-?\d\.0\) must be"):
                schedule(0, **wrong)
    with pytest.raises(ValueError, match="`slope` .=-1.0. must be positive"):
        two_slope_temperature(jnp.ones(()), slope=-1.0)


def test_temperature_of_all_layers_moves_inside_of_a_jitted_step():
    net = abstract_narrow()

    @nnx.jit
    def step(net, epoch):
        set_temperature(net, two_slope_temperature(epoch))

    step(net, jnp.asarray(4))
    found = [
        float(value.get_value())
        for path, value in nnx.to_flat_state(nnx.state(net, dynconv_jax.Temperature))
    ]
    assert found == [26.0] * 5


@pytest.mark.slow
def test_routers_gates_and_coefficients_are_diagnosed(rng):
    net = abstract_narrow()
    x = jnp.asarray(rng.normal(size=(3, 13, 10, 1)), "float32")
    found: Any = diagnose(net, x)
    convs = {path for path in found if path.endswith("conv.attention")}
    assert len(convs) == 5
    assert found["layers.0.depth_act.coefficients"].mean.shape == (8, 4)
    assert found["layers.1.gate.rows"].mean.shape == (4, 1, 16)
    with torch.no_grad():
        theirs = BUILD[1](5, **NARROW).eval()
        _, routers = dynconv_torch.capture_routers(theirs, torch.ones(2, 1, 13, 10))
    assert {path.replace("residuals", "attention") for path in routers} == convs


@pytest.mark.slow
def test_a_static_net_is_where_a_dynamic_one_starts_and_norms_fold(rng):
    options: Any = dict(dropout=0.0, conv=None, **NARROW, dtype=torch.float64)
    theirs = BUILD[1](5, **options)
    x = rng.normal(size=(2, 13, 10, 1))
    networks.enliven(theirs, x, rng)
    static, dynamic = (
        abstract_module(
            lambda rngs, conv=conv: DyMN(
                5, conv=conv, dropout=0.0, param_dtype="float64", rngs=rngs, **NARROW
            )
        )
        for conv in (None, ContextConv)
    )
    load_torch_state_dict(static, torch_state(theirs))
    load_torch_state_dict(dynamic, torch_state(BUILD[1](5, **NARROW).double()))
    init_from_static(dynamic, static)
    expected = nnx.view(static, use_running_average=True)(x)
    actual = nnx.view(dynamic, use_running_average=True)(x)
    assert_close({"": actual}, {"": expected}, dtype="float64")
    with jax.numpy_rank_promotion("allow"):
        folded: Any = fold_batch_norm(dynamic, x)
        assert_close({"": folded(x)}, {"": expected}, dtype="float64")
    kept = [
        p for p, part in nnx.iter_modules(folded) if isinstance(part, nnx.BatchNorm)
    ]
    assert {path[-1] for path in kept} == {"joint_norm"}


@pytest.mark.parametrize(
    ("dynamic", "expected"),
    [
        ("paper", ["0.depth", "0.proj", "1.depth", "1.exp", "1.proj"]),
        ("pointwise", ["0.proj", "1.exp", "1.proj"]),
        (1, ["1.depth", "1.exp", "1.proj"]),
    ],
)
def test_dynamic_says_which_layers_are_dynamic(dynamic, expected):
    net = abstract_module(lambda rngs: DyMN(rngs=rngs, dynamic=dynamic, **NARROW))
    twin = BUILD[1](device="meta", dynamic=dynamic, **NARROW)
    found = [
        f"{path[1]}.{path[2]}".removesuffix("_conv")
        for path, part in nnx.iter_modules(net)
        if isinstance(part, ContextConv)
    ]
    assert sorted(found) == expected
    assert torch_shapes(net) == shapes_of(twin)


def test_other_convolutions_take_the_place_of_its_own():
    for conv in ("dynamic", "condconv", "static"):
        shapes = torch_shapes(abstract("dymn04", 5, conv=conv, blocks=TWO_BLOCKS))
        twin = on_meta("dymn04", 5, conv=conv, blocks=TWO_BLOCKS)
        assert shapes == shapes_of(twin)
        assert ("layers.0.routing_fn.weight" in shapes) is (conv == "condconv")
    eight = functools.partial(ContextConv, num_experts=8)
    by_name: Any = dict(conv="context", conv_options={"num_experts": 8})
    for chosen in (dict(conv=eight), by_name):
        shapes = torch_shapes(abstract("dymn04", 5, **chosen, blocks=TWO_BLOCKS))
        assert shapes["layers.1.proj_conv.residuals.0.bias"] == (8,)


def test_condconv_in_its_blocks_is_given_their_attention():
    options: Any = dict(blocks=TWO_BLOCKS, width_mult=0.25)
    net = dynconv_torch.create_model("dymn04", 5, conv="condconv", **options).eval()
    assert net(torch.ones(2, 1, 13, 10)).shape == (2, 5)

    def logits(x):
        net = dynconv_jax.create_model(
            "dymn04", 5, conv="condconv", rngs=nnx.Rngs(0), **options
        )
        return net(x)

    assert jax.eval_shape(logits, jnp.ones((2, 13, 10, 1), "float32")).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(blocks=()), "`blocks` .* must have one block at least"),
        (dict(blocks=3), r"`blocks` \(=3\) must be `BlockSpec`s, or tuples"),
        (dict(blocks=[(3, 16)]), "`blocks` .* tuples of .*'kernel_size'"),
        (dict(width_mult=0.0), "`width_mult` .* must be positive"),
        (dict(dynamic=16), "`dynamic` .*int from 1 to 15"),
        (dict(dropout=1.0), "`dropout`"),
        (dict(context_in="se"), "`context_in` .='se'. must be one of 'all', 'squee"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        abstract("dymn10", **options)
    with pytest.raises((TypeError, ValueError), match=message):
        on_meta("dymn10", **options)


def test_what_is_no_spectrogram_is_refused():
    with pytest.raises(ValueError, match=r"`inputs`.*`in_features` \(=1\)"):
        abstract("dymn04", blocks=TWO_BLOCKS)(jnp.ones((2, 13, 10, 3)))
    with pytest.raises(ValueError, match=r"`x`.*`in_channels` \(=1\)"):
        on_meta("dymn04", blocks=TWO_BLOCKS)(torch.ones(2, 3, 13, 10))


@pytest.mark.slow
def test_linear_layers_begin_as_those_of_the_authors():
    theirs = BUILD[1](50, blocks=TWO_BLOCKS)
    ours = DyMN(50, blocks=TWO_BLOCKS, rngs=nnx.Rngs(0))
    for state in (torch_state(theirs), to_torch_state_dict(ours)):
        for key in ("classifier.2", "layers.1.depth_act.coef_net.0"):
            assert abs(state[f"{key}.weight"].std() / 0.01 - 1) < 0.1
            assert (state[f"{key}.bias"] == 0).all()


def test_net_can_be_pickled():
    net = abstract_module(lambda rngs: DyMN(5, conv=DynamicConv, rngs=rngs, **NARROW))
    assert torch_shapes(pickle.loads(pickle.dumps(net))) == torch_shapes(net)
