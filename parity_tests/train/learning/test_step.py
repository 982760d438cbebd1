"""The compiled steps: what they advance, count, average and answer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx
from jax.sharding import SingleDeviceSharding

from dynconv_jax import (
    Assignment,
    Temperature,
    create_model,
    summarize,
    with_warehouses,
)
from parity_tests.tolerances import assert_close
from parity_tests.tools import trained
from parity_tests.tools.steps import (
    CLASSES,
    CONFIG,
    Net,
    build,
    evaluation,
    values,
)
from train.flags.config import Config
from train.learning.augment import Augmentation
from train.learning.schedules import temperature_schedule
from train.learning.step import (
    TrainState,
    create_state,
    make_train_step,
)

# The program is run as a user runs it.
DEFAULT_NUMERICS = True


@dataclasses.dataclass
class ThreeSteps:
    """A run of three steps with all that a step can do."""

    config: Config
    graphdef: nnx.GraphDef
    step: Any
    first: nnx.State
    before: TrainState
    states: list[TrainState]
    metrics: list[dict]

    def changed(self, kind: Any, part: str = "model") -> list[bool]:
        before, after = (
            values(getattr(whole, part), kind)
            for whole in (self.before, self.states[-1])
        )
        return [not np.array_equal(before[name], after[name]) for name in before]


@pytest.fixture(scope="module")
def three_steps(images, labels) -> ThreeSteps:
    config = dataclasses.replace(
        CONFIG, load_balance=0.1, ema_decay=0.2, optimizer="adamw", accumulate=2
    )
    graphdef, state, step = build(Net(router_dropout=0.5), config)
    first = state
    states = [nnx.merge(graphdef, jax.tree.map(jnp.copy, state))]
    history = []
    for _ in range(3):
        state, metrics = step(state, images, labels)
        states.append(nnx.merge(graphdef, jax.tree.map(jnp.copy, state)))
        history.append(jax.device_get(metrics))
    before, *after = states
    return ThreeSteps(config, graphdef, step, first, before, after, history)


# What a step advances


@pytest.mark.parametrize("kind", [nnx.Param, nnx.BatchStat])
@pytest.mark.parametrize("part", ["model", "average"])
def test_steps_advance_parameters_and_batch_statistics(kind, part, three_steps):
    changed = three_steps.changed(kind, part)
    assert changed
    assert all(changed)


def test_steps_advance_the_dropout_stream(three_steps):
    assert any(three_steps.changed(nnx.RngCount))


def test_steps_advance_moments_and_counts_of_the_optimizer(three_steps):
    changed = three_steps.changed(nnx.OptState, "optimizer")
    assert changed
    assert all(changed)


def test_steps_donate_their_state(three_steps):
    # Written without being read, these are not passed.
    _, donated = nnx.split_state(three_steps.first["model"], Temperature, ...)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))


def test_steps_write_the_temperature_of_the_schedule(three_steps):
    schedule: Any = temperature_schedule(three_steps.config)
    for index, whole in enumerate(three_steps.states):
        expected = float(schedule(index))
        assert three_steps.metrics[index]["temperature"] == expected
        for part in (whole.model, whole.average):
            assert set(map(float, values(part, Temperature).values())) == {expected}


def test_all_temperatures_share_one_compilation(three_steps):
    assert len({float(row["temperature"]) for row in three_steps.metrics}) == 3
    assert three_steps.step._cache_size() == 1


def test_metrics_are_scalars(three_steps):
    assert {row.shape for row in three_steps.metrics[0].values()} == {()}
    assert set(three_steps.metrics[0]) == {
        *("loss", "accuracy", "learning_rate", "temperature", "gradient_norm"),
        "load_balance",
    }


def test_without_a_softmax_there_is_no_temperature(images, labels):
    _, state, step = build(Net(nnx.Conv), CONFIG)
    _, metrics = jax.eval_shape(step, state, images, labels)
    assert set(metrics) == {"loss", "accuracy", "learning_rate", "gradient_norm"}


# Averages


def test_average_forgets_the_initial_weights_and_then_follows(three_steps):
    first, second, third = three_steps.states
    expected = values(first.model, nnx.Param)
    assert_close(values(first.average, nnx.Param), expected, dtype="float32")
    for kept, whole in [(1 / 10, second), (2 / 11, third)]:
        current = values(whole.model, nnx.Param)
        expected = {
            name: kept * expected[name] + (1 - kept) * current[name] for name in current
        }
        assert_close(values(whole.average, nnx.Param), expected, dtype="float32")


def test_average_counts_batches_as_the_model_does(three_steps):
    counts = [
        values(part, nnx.BatchStat)["norm.num_batches_tracked"]
        for part in (three_steps.states[-1].average, three_steps.states[-1].model)
    ]
    assert counts == [6, 6]  # two parts of a batch in each of three steps


def test_average_is_evaluated_where_asked(three_steps, images, labels):
    whole = three_steps.states[-1]
    _, state = nnx.split(whole)
    mask = np.ones(8, np.float32)
    for average, model in [(False, whole.model), (True, whole.average)]:
        step = evaluation(three_steps.graphdef, average=average)
        losses = step(state, images, labels, mask)["loss"]
        logits = nnx.view(model, use_running_average=True, deterministic=True)(images)
        expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        assert_close({"": losses}, {"": expected}, dtype="float32")


# Kinds of models


def test_model_without_routers_trains_and_answers_no_routing(images, labels):
    graphdef, state, step = build(Net(nnx.Conv), CONFIG)
    state, metrics = step(state, images, labels)
    assert np.isfinite(metrics["loss"])
    answer = evaluation(graphdef)(state, images, labels, np.ones(8, np.float32))
    assert answer["attention"] == answer["entropy"] == answer["wins"] == {}


def test_routing_of_a_warehouse_is_that_of_its_tiles(images, labels):
    model = with_warehouses(
        lambda conv, rngs: Net(conv, use_bias=False), rngs=nnx.Rngs(0)
    )
    graphdef, state, _ = build(model, CONFIG)
    mask = np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32)
    answer = evaluation(graphdef)(state, images, labels, mask)
    mixture = np.asarray(trained.evaluated(model).conv.mixture(images[:7]))
    shares = np.abs(mixture) / np.abs(mixture).sum(-1, keepdims=True)
    expected = {
        "attention": shares.mean((0, 1)),
        "entropy": scipy.special.entr(shares).sum(-1).mean(),
        "wins": np.eye(shares.shape[-1])[mixture.argmax(-1)].mean((0, 1)),
    }
    found = {name: np.asarray(answer[name]["conv.mixture"]) / 7 for name in expected}
    found["attention"] = found["attention"].sum(0)
    assert_close(found, expected, dtype="float32")


def test_warehouse_follows_its_assignment_schedule(images, labels):
    model = with_warehouses(
        lambda conv, rngs: Net(conv, use_bias=False), rngs=nnx.Rngs(0)
    )
    config = dataclasses.replace(CONFIG, assignment_steps=4)
    graphdef, state, step = build(model, config)
    for expected in (1.0, 0.75):
        state, metrics = step(state, images, labels)
        assert metrics["assignment"] == expected
        held = values(nnx.merge(graphdef, state).model, Assignment)
        assert {*map(float, held.values())} == {expected}


def test_bfloat16_computes_narrowly_and_keeps_wide(images, labels):
    config = dataclasses.replace(CONFIG, ema_decay=0.9)

    def whole() -> TrainState:
        options: dict[str, Any] = dict(dtype=jnp.bfloat16, in_features=1)
        model = create_model("dynamic_net", CLASSES, rngs=nnx.Rngs(0), **options)
        return create_state(model, config)

    graphdef, state = nnx.split(nnx.eval_shape(whole))
    logits = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s).model(x), state, images)
    assert logits.dtype == jnp.bfloat16
    device = SingleDeviceSharding(jax.devices()[0])
    step = make_train_step(graphdef, config, Augmentation(), CLASSES, device, device)
    after, metrics = jax.eval_shape(step, state, images, labels)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((after, metrics))}
    floats = {each for each in dtypes if jnp.issubdtype(each, jnp.floating)}
    assert floats == {jnp.dtype("float32")}
    assert jax.tree.map(lambda each: (each.shape, each.dtype), after) == jax.tree.map(
        lambda each: (each.shape, each.dtype), state
    )


# Evaluation


@pytest.fixture(scope="module")
def evaluated(images, labels):
    """The model, and what evaluation answers for five of the eight images."""
    model = Net(num_experts=3, temperature=0.05)
    graphdef, state = nnx.split(create_state(model, CONFIG))
    step = evaluation(graphdef)
    mask = (np.arange(8) < 5).astype(np.float32)
    blank = images * mask[:, None, None, None]
    return model, step(state, images, labels, mask), step(state, blank, labels, mask)


def test_masked_images_count_in_no_sum(evaluated):
    _, whole, filled = evaluated
    for name in ("attention", "entropy", "wins", "shares", "peak", "least"):
        np.testing.assert_array_equal(
            whole[name]["conv.router"], filled[name]["conv.router"]
        )


def test_evaluation_answers_for_every_image(evaluated, images, labels):
    model, answer, _ = evaluated
    evaluating = nnx.view(model, use_running_average=True, deterministic=True)
    probabilities = jax.nn.softmax(evaluating(images))
    expected = {
        "loss": -jnp.log(probabilities[jnp.arange(8), labels]),
        "confidence": probabilities.max(-1),
        "prediction": probabilities.argmax(-1),
    }
    actual = {name: answer[name] for name in expected}
    assert_close(actual, expected, dtype="float32")


def test_routing_sums_are_those_of_the_diagnostics(evaluated, images, labels):
    model, answer, _ = evaluated
    attention = model.conv.router(images[:5])
    summary = summarize(attention)
    table = answer["attention"]["conv.router"]
    assert table.shape == (CLASSES, 3)
    by_class = np.stack(
        [attention[labels[:5] == each].sum(0) for each in range(CLASSES)]
    )
    expected = {
        "attention": by_class,
        "entropy": np.asarray(5 * summary.entropy),
        "wins": 5 * summary.win_share,
        "shares": 5 * summary.share,
        "peak": summary.peak,
    }
    actual = {name: answer[name]["conv.router"] for name in expected}
    assert_close(actual, expected, dtype="float32")
    spread = (answer["peak"]["conv.router"] - answer["least"]["conv.router"]).max()
    assert_close({"": spread}, {"": summary.spread}, dtype="float32")
