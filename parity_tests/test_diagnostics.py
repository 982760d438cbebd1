"""What each router of a model does, what is warned of, which experts are alike."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynconv_jax import (
    AdaptiveConv,
    CondConv,
    DeadExpertWarning,
    DecomposedConv,
    DynamicConv,
    DynamicConvBlock,
    GateSummary,
    ModulatedConv,
    ODConv,
    Router,
    RouterSummary,
    RoutingCollapseWarning,
    capture_attention,
    compare_experts,
    diagnose,
    summarize,
    with_warehouses,
)
from dynconv_jax.gating import record_attention
from parity_tests.tolerances import assert_close
from parity_tests.tools.routed import assert_untouched, snapshot


def force_onto(router, expert):
    """Makes a router give one expert nearly everything, whatever the input."""
    router.fc2.bias[...] = router.fc2.bias[...].at[expert].set(100.0)


def test_diagnose_summarises_the_attention_of_evaluation(two_blocks, images):
    summaries = diagnose(two_blocks, images)
    evaluated = nnx.view(two_blocks, use_running_average=True)
    _, attention = capture_attention(evaluated, images)
    assert summaries.keys() == {"blocks.0.dyn.router", "blocks.1.dyn.router"}
    for path, summary in summaries.items():
        expected = vars(summarize(attention[path]))
        assert_close(vars(summary), expected, dtype="float64")


def test_diagnose_leaves_the_model_untouched(two_blocks, images):
    before = snapshot(two_blocks)
    diagnose(two_blocks, images)
    assert_untouched(two_blocks, before)


def test_model_trains_on_after_diagnose(two_blocks, images):
    diagnose(two_blocks, images)
    two_blocks(images)
    assert int(two_blocks.blocks[1].bn.num_batches_tracked[...]) == 1


def test_diagnose_drops_nothing_in_the_router(images):
    router = Router(
        3, 4, reduction=1, dropout_rate=0.9, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    before = snapshot(router)
    summary = diagnose(router, images)[""]
    assert_untouched(router, before)
    certain = nnx.view(router, deterministic=True)(images)
    expected = vars(summarize(certain))
    assert_close(vars(summary), expected, dtype="float64")


def test_collapsed_router_is_warned_of_by_path_and_expert(two_blocks, images):
    force_onto(two_blocks.blocks[1].dyn.router, expert=1)
    with pytest.warns(
        RoutingCollapseWarning, match=r"'blocks.1.dyn.router' gives expert 1 100%"
    ) as caught:
        summaries = diagnose(two_blocks, images)
    assert len(caught) == 1
    collapsed = {path: vars(each)["collapsed"] for path, each in summaries.items()}
    assert collapsed == {"blocks.0.dyn.router": False, "blocks.1.dyn.router": True}


def test_collapse_warning_points_at_the_caller(two_blocks, images):
    force_onto(two_blocks.blocks[0].dyn.router, expert=2)
    with pytest.warns(RoutingCollapseWarning) as caught:
        diagnose(two_blocks, images)
    assert caught[0].filename == __file__


class Given(nnx.Module):
    """A router that answers what it is given."""

    def __call__(self, attention):
        record_attention(self, attention)


def test_dead_experts_are_named_and_warned_of():
    attention = jnp.tile(jnp.array([[0.75, 0.0, 0.25, 0.0]]), (16, 1))
    with pytest.warns(DeadExpertWarning, match="'' gives 2 of 4.*nothing: 1, 3"):
        summary = diagnose(Given(), attention)[""]
    assert isinstance(summary, RouterSummary)
    assert summary.dead_experts == (1, 3) and not summary.collapsed


def test_experts_that_a_few_samples_leave_out_are_not_warned_of():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        summary = diagnose(Given(), jnp.eye(4)[jnp.array([0, 2])])[""]
    assert isinstance(summary, RouterSummary) and summary.dead_experts == (1, 3)
    assert caught == []


def test_healthy_routers_are_not_warned_of(two_blocks, images):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        diagnose(two_blocks, images)
    assert caught == []


def test_single_expert_is_not_warned_of(images):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        diagnose(Router(3, 1, rngs=nnx.Rngs(0)), images)
    assert caught == []


def test_model_without_routers_is_refused(rng):
    features = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    with pytest.raises(ValueError, match=r"`model` \(a Linear\) called no router"):
        diagnose(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), features)


def block_of(conv: Any, rngs: nnx.Rngs) -> DynamicConvBlock:
    return DynamicConvBlock(4, 8, conv=conv, rngs=rngs)


RECORDED = {
    CondConv: {"routing_fn": (4,)},
    DecomposedConv: {"dyn.scale": (8,), "dyn.phi": None},
    "warehouse": {"dyn.mixture": (9,)},
    ODConv: {
        "dyn.attention": (4,),
        "dyn.attention.channel": (4,),
        "dyn.attention.filter": (8,),
        "dyn.attention.spatial": (9,),
    },
}


@pytest.mark.parametrize("conv", RECORDED)
def test_every_member_of_the_family_is_summarised(conv, rng):
    rngs = nnx.Rngs(0)
    if conv == "warehouse":
        block = with_warehouses(block_of, rngs=rngs)
    else:
        block = block_of(conv, rngs)
    found = diagnose(block, jnp.asarray(rng.normal(size=(3, 6, 5, 4)), jnp.float32))
    assert found.keys() == RECORDED[conv].keys()
    for path, shape in RECORDED[conv].items():
        each = found[path]
        values = each.mean if isinstance(each, GateSummary) else each.share
        assert shape in (None, values.shape), path


@pytest.mark.parametrize(
    ("cls", "paths"),
    [(AdaptiveConv, {"attention", "styles"}), (ModulatedConv, {"styles"})],
)
def test_styles_of_latents_are_summarised_as_gates(cls, paths, rng):
    layer = cls(4, 8, (3, 3), style_features=5, rngs=nnx.Rngs(0))
    inputs, latents = rng.normal(size=(3, 6, 5, 4)), rng.normal(size=(3, 5))
    found = diagnose(
        layer, *(jnp.asarray(each, jnp.float32) for each in (inputs, latents))
    )
    assert found.keys() == paths
    summary = found["styles"]
    assert isinstance(summary, GateSummary) and summary.mean.shape == (4,)


def test_copies_of_an_expert_are_told_from_experts_of_their_own(rng):
    layer = DynamicConv(3, 4, (3,), num_experts=3, rngs=nnx.Rngs(0))
    kernel = rng.normal(size=(3, 3, 3, 4))
    kernel[1], kernel[2] = 2 * kernel[0], -kernel[0]
    layer.kernel[...] = jnp.asarray(kernel, jnp.float32)
    expected = np.array([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    found = compare_experts(layer)[""]
    assert_close({"": found}, {"": expected}, dtype="float32")
    layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
    assert not compare_experts(layer)[""].any()


def test_cells_of_a_warehouse_are_compared_too():
    block = with_warehouses(block_of, rngs=nnx.Rngs(0))
    sizes = {path: len(each) for path, each in compare_experts(block).items()}
    assert sizes == {"dyn": 9}
