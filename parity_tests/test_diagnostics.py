"""Diagnostics: what the routers did, seen without a trace left in the model."""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynconv_jax import (
    CondConv,
    DecomposedConv,
    DynamicConv,
    DynamicConvBlock,
    GateSummary,
    ODConv,
    Router,
    RoutingCollapseWarning,
    SigmoidRouter,
    capture_attention,
    compare_experts,
    diagnose,
    summarize,
    summarize_gates,
    with_warehouses,
)
from parity_tests.parity import assert_close


class OwnModel(nnx.Module):
    """A model of a user's own: one router answers for a layer that has none."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.router = Router(3, 4, param_dtype=jnp.float64, rngs=rngs)
        self.conv = DynamicConv(
            3, 5, (1, 3), param_dtype=jnp.float64, router=lambda x: x, rngs=rngs
        )

    def __call__(self, inputs):
        return self.conv(inputs, self.router(inputs)).mean()


class SharedRouter(nnx.Module):
    """Two layers of different kernels ask one router."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        options: dict[str, Any] = dict(
            router=Router(3, 4, param_dtype=jnp.float64, rngs=rngs),
            param_dtype=jnp.float64,
            rngs=rngs,
        )
        self.conv1 = DynamicConv(3, 3, (1, 3), **options)
        self.conv2 = DynamicConv(3, 5, (1, 1), **options)

    def __call__(self, inputs):
        return self.conv2(self.conv1(inputs))


class TwoBlocks(nnx.Module):
    """Batch norm, and routers at two depths."""

    def __init__(self):
        options: dict[str, Any] = dict(param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        self.blocks = nnx.List(
            [
                DynamicConvBlock(3, 5, (1, 1), **options),
                DynamicConvBlock(5, 4, (1, 1), num_experts=2, **options),
            ]
        )

    def __call__(self, inputs):
        for block in self.blocks:
            inputs = block(inputs)
        return inputs


@pytest.fixture
def images(rng):
    return jnp.asarray(rng.normal(size=(6, 5, 7, 3)))


@pytest.fixture(scope="module")
def shared_two_blocks(numerics):
    return TwoBlocks()


@pytest.fixture
def two_blocks(shared_two_blocks):
    return nnx.clone(shared_two_blocks)


def bits(tree):
    def of_leaf(leaf):
        if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        return array.dtype, array.shape, array.tobytes()

    return [of_leaf(leaf) for leaf in jax.tree.leaves(tree)]


def assert_untouched(model, before):
    """Asserts that structure, modes and every bit are those of `nnx.split` before."""
    graphdef, state = nnx.split(model)
    assert graphdef == before[0]
    assert bits(state) == before[1]


def snapshot(model):
    graphdef, state = nnx.split(model)
    return graphdef, bits(state)


# capture_attention


def test_capture_returns_the_result_of_the_model(two_blocks, images):
    expected = np.asarray(nnx.clone(two_blocks)(images))
    result, _ = capture_attention(two_blocks, images)
    assert_close({"result": result}, {"result": expected}, dtype="float64")


def test_capture_names_each_router_by_its_path(two_blocks, images):
    _, attention = capture_attention(two_blocks, images)
    assert {path: array.shape for path, array in attention.items()} == {
        "blocks.0.dyn.router": (6, 4),
        "blocks.1.dyn.router": (6, 2),
    }


def test_captured_attention_is_what_the_routers_answer(two_blocks, images):
    twin = nnx.clone(two_blocks)
    _, attention = capture_attention(two_blocks, images)
    first, second = twin.blocks
    expected = {
        "blocks.0.dyn.router": first.routing(images),
        "blocks.1.dyn.router": second.routing(first(images)),
    }
    assert_close(attention, expected, dtype="float64")


def test_capture_works_on_a_router_alone(images):
    router = Router(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    result, attention = capture_attention(router, images)
    assert attention.keys() == {""}
    np.testing.assert_array_equal(attention[""], result)


def test_capture_sees_a_router_called_by_a_model_of_ones_own(images):
    model = OwnModel()
    _, attention = capture_attention(model, images)
    assert_close(attention, {"router": model.router(images)}, dtype="float64")


def test_capture_passes_keyword_arguments_on(images):
    layer = DynamicConv(3, 5, (1, 3), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    given = jnp.full((6, 4), 0.25)
    result, attention = capture_attention(layer, images, attention=given)
    assert_close({"y": result}, {"y": layer(images, given)}, dtype="float64")
    assert attention == {}


def test_capture_inside_jit(two_blocks, images):
    _, expected = capture_attention(nnx.clone(two_blocks), images)
    graphdef, state = nnx.split(two_blocks)

    @jax.jit
    def attention_of(state, images):
        return capture_attention(nnx.merge(graphdef, state), images)[1]

    assert_close(attention_of(state, images), expected, dtype="float64")


def test_capture_inside_grad(images):
    model = OwnModel()
    graphdef, params = nnx.split(model)

    def share_of_first(params):
        _, attention = capture_attention(nnx.merge(graphdef, params), images)
        return attention["router"][:, 0].sum()

    def expected(params):
        return nnx.merge(graphdef, params).router(images)[:, 0].sum()

    gradient, reference = (jax.grad(f)(params) for f in (share_of_first, expected))
    assert np.any(gradient.router.fc2.bias[...])
    assert_close(named(gradient), named(reference), dtype="float64")


def named(state):
    return {str(path): v[...] for path, v in nnx.to_flat_state(state)}


def test_shared_router_has_one_path_and_the_calls_of_both_layers(images):
    model = SharedRouter()
    _, attention = capture_attention(model, images)
    router = model.conv1.router
    expected = jnp.concatenate([router(images), router(model.conv1(images))])
    assert_close(attention, {"conv1.router": expected}, dtype="float64")


def test_router_called_twice_has_its_calls_concatenated(images):
    class Twice(nnx.Module):
        def __init__(self):
            self.router = Router(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

        def __call__(self, inputs):
            return self.router(inputs), self.router(-inputs[:2])

    result, attention = capture_attention(Twice(), images)
    assert_close(attention, {"router": jnp.concatenate(result)}, dtype="float64")


def test_router_that_is_not_called_has_no_attention(images):
    class OneOfTwo(nnx.Module):
        def __init__(self):
            self.called = Router(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            self.other = Router(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

        def __call__(self, inputs):
            return self.called(inputs)

    _, attention = capture_attention(OneOfTwo(), images)
    assert attention.keys() == {"called"}


def test_capture_updates_the_statistics_of_a_model_in_training(two_blocks, images):
    capture_attention(two_blocks, images)
    assert int(two_blocks.blocks[0].bn.num_batches_tracked[...]) == 1


def test_capture_leaves_nothing_in_the_model(images):
    model = OwnModel()
    before = snapshot(model)
    capture_attention(model, images)
    assert_untouched(model, before)


def test_model_called_after_a_capture_records_nothing(images):
    model = OwnModel()
    capture_attention(model, images)
    before = snapshot(model)
    model(images)
    assert_untouched(model, before)


def test_router_under_a_key_of_digits_is_found(images):
    class Numbered(nnx.Module):
        def __init__(self):
            router = Router(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            self.routers = nnx.Dict({"0": router})

        def __call__(self, inputs):
            return self.routers["0"](inputs)

    _, attention = capture_attention(Numbered(), images)
    assert attention.keys() == {"routers.0"}


def test_capture_sees_a_router_of_sigmoids(images):
    router = SigmoidRouter(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    model = nnx.Sequential(lambda x: 2 * x, router)
    _, attention = capture_attention(model, images)
    assert_close(attention, {"layers.1": router(2 * images)}, dtype="float64")


def test_model_that_raises_is_left_as_it_was(images):
    class Raises(nnx.Module):
        def __init__(self):
            self.router = Router(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

        def __call__(self, inputs):
            raise RuntimeError(f"no use for {self.router(inputs).shape}")

    model = Raises()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="no use for"):
        capture_attention(model, images)
    assert_untouched(model, before)


# summarize


def test_mean_attention_is_the_average_over_samples():
    summary = summarize(np.array([[0.5, 0.25, 0.25], [0.0, 0.75, 0.25]]))
    assert summary.mean_attention.tolist() == [0.25, 0.5, 0.25]


def test_win_share_counts_the_samples_each_expert_leads():
    attention = [[0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.5, 0.1, 0.4], [0.8, 0.2, 0.0]]
    assert summarize(np.array(attention)).win_share.tolist() == [0.75, 0.25, 0.0]


def assert_entropies(attention, entropy, usage_entropy):
    summary = summarize(attention)
    assert_close(
        {"entropy": summary.entropy, "usage_entropy": summary.usage_entropy},
        {"entropy": entropy, "usage_entropy": usage_entropy},
        dtype="float64",
    )


def test_even_attention_has_both_entropies_at_log_k():
    assert_entropies(np.full((7, 4), 0.25), math.log(4), math.log(4))


def test_one_expert_a_sample_has_no_entropy_but_all_usage():
    assert_entropies(np.eye(3)[[0, 1, 2, 2, 1, 0]], 0.0, math.log(3))


def test_one_expert_for_all_samples_has_no_entropy_of_either_kind():
    assert_entropies(np.eye(3)[[1, 1, 1, 1]], 0.0, 0.0)


def test_entropy_is_the_mean_over_samples():
    expected = (math.log(2) + 0.25 * math.log(4) + 0.75 * math.log(4 / 3)) / 2
    usage = 0.375 * math.log(8 / 3) + 0.625 * math.log(8 / 5)
    assert_entropies(np.array([[0.5, 0.5], [0.25, 0.75]]), expected, usage)


@pytest.mark.parametrize("share, collapsed", [(0.96, True), (0.94, False)])
def test_collapse_is_more_than_95_percent_for_one_expert(share, collapsed):
    rest = (1 - share) / 2
    assert summarize(np.array([[rest, share, rest]] * 5)).collapsed is collapsed


def test_95_percent_is_not_yet_collapsed():
    assert not summarize(np.array([[0.95, 0.05]])).collapsed


def test_collapse_is_judged_over_all_samples():
    assert not summarize(np.array([[1.0, 0.0], [0.0, 1.0]])).collapsed


def test_single_expert_is_never_collapsed():
    assert not summarize(np.ones((5, 1))).collapsed


def test_mean_attention_of_sigmoids_is_as_answered():
    summary = summarize(np.array([[0.9, 0.3], [0.7, 0.7]]))
    assert_close(
        {"mean": summary.mean_attention, "share": summary.share},
        {"mean": [0.8, 0.5], "share": [0.625, 0.375]},
        dtype="float64",
    )


def test_entropies_of_sigmoids_do_not_depend_on_their_scale():
    even = 0.5 * (math.log(2) + 0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    usage = 0.375 * math.log(8 / 3) + 0.625 * math.log(8 / 5)
    assert_entropies(np.array([[0.9, 0.9], [0.1, 0.3]]), even, usage)


def test_collapse_of_sigmoids_is_judged_by_their_shares():
    assert not summarize(np.array([[0.97, 0.96]])).collapsed
    assert summarize(np.array([[0.5, 0.01]])).collapsed


def test_attention_of_zeros_counts_as_even():
    assert_entropies(np.zeros((3, 4)), math.log(4), math.log(4))


def test_nan_is_seen_in_a_summary():
    assert math.isnan(summarize(np.array([[math.nan, 0.5], [0.1, 0.9]])).entropy)


def test_summary_of_a_jax_array_is_that_of_its_values(rng):
    attention = rng.dirichlet(np.ones(4), size=9)
    ours, theirs = summarize(jnp.asarray(attention)), summarize(attention)
    assert bits(vars(ours)) == bits(vars(theirs))


# diagnose


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


def test_gates_that_treat_all_samples_alike_do_not_vary():
    summary = summarize_gates(np.array([[0.5, 2.0], [0.5, 2.0]]))
    assert summary.variation == 0
    np.testing.assert_array_equal(summary.mean, [0.5, 2.0])


def test_gates_vary_by_their_deviation_as_a_share_of_their_size():
    summary = summarize_gates(np.array([[0.5, 1.0], [1.5, 1.0]]))
    assert summary.variation == 0.25


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
