"""What a step minimises: the loss, its parts, and the images that it is of."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dynconv_jax import Temperature, load_balance_loss, router_z_loss
from dynconv_jax.diagnostics import capture_attention, capture_routers
from parity_tests.tolerances import assert_close
from parity_tests.tools.steps import CLASSES, CONFIG, Net, build, values
from train.learning.augment import Augmentation

# The program is run as a user runs it.
DEFAULT_NUMERICS = True


def test_accumulated_step_is_that_of_the_whole_batch(images, labels):
    results = []
    for accumulate in (1, 4):
        config = dataclasses.replace(CONFIG, accumulate=accumulate, clip_norm=0.1)
        graphdef, state, step = build(Net(has_norm=False), config)
        for _ in range(2):
            state, metrics = step(state, images, labels)
        results.append(values(nnx.merge(graphdef, state).model) | metrics)
    whole, parts = results
    assert whole["gradient_norm"] > config.clip_norm
    assert_close(parts, whole, dtype="float32")


def test_batch_norm_sees_every_second_image_of_two_parts(images, labels):
    config = dataclasses.replace(CONFIG, accumulate=2)
    graphdef, state, step = build(Net(), config)
    state, _ = step(state, images, labels)
    actual = values(nnx.merge(graphdef, state).model, nnx.BatchStat)
    model = Net()
    nnx.state(model, Temperature)["conv"]["router"]["temperature"][...] = config.recipe(
        "temperature_start"
    )
    for part in (images[::2], images[1::2]):
        model(part)
    assert_close(actual, values(model, nnx.BatchStat), dtype="float32")


def test_loss_is_smoothed_and_balanced(images, labels):
    config = dataclasses.replace(CONFIG, load_balance=0.3, label_smoothing=0.2)
    _, state, step = build(Net(temperature=config.recipe("temperature_start")), config)
    _, metrics = step(state, images, labels)
    logits, attention = capture_attention(Net(temperature=4.0), images)
    targets = 0.8 * jax.nn.one_hot(labels, CLASSES) + 0.2 / CLASSES
    expected = optax.softmax_cross_entropy(logits, targets).mean()
    expected += 0.3 * load_balance_loss(attention["conv.router"])
    assert_close({"": metrics["loss"]}, {"": expected}, dtype="float32")
    accuracy = (logits.argmax(-1) == labels).mean()
    assert metrics["accuracy"] == accuracy


def test_binary_cross_entropies_are_averaged_over_images_and_classes(images, labels):
    config = dataclasses.replace(CONFIG, loss="bce", label_smoothing=0.2)
    _, state, step = build(Net(temperature=config.temperature_start), config)
    _, metrics = step(state, images, labels)
    logits = np.asarray(Net(temperature=4.0)(images), float)
    targets = 0.8 * np.eye(CLASSES)[labels] + 0.2 / CLASSES
    # -log of the logistic function, and of what it leaves.
    yes, no = np.logaddexp(0, -logits), np.logaddexp(0, logits)
    expected = (targets * yes + (1 - targets) * no).mean()
    assert_close({"": metrics["loss"]}, {"": expected}, dtype="float32")


def test_losses_on_routers_see_the_softmax_before_the_cut(images, labels):
    config = dataclasses.replace(CONFIG, load_balance=0.3, router_z_loss=0.2)
    _, state, step = build(Net(top_k=1), config)
    _, metrics = step(state, images, labels)
    routers: dict[str, Any]
    logits, routers = capture_routers(Net(top_k=1, temperature=4.0), images)
    expected = {
        "load_balance": load_balance_loss(*routers["conv.router"][:2]),
        "router_z_loss": router_z_loss(routers["conv.router"].logits),
    }
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    expected["loss"] = (
        entropies.mean()
        + 0.3 * expected["load_balance"]
        + 0.2 * expected["router_z_loss"]
    )
    found = {name: metrics[name] for name in expected}
    assert_close(found, expected, dtype="float32")


def test_balancing_brings_a_dead_expert_back(images, labels):
    config = dataclasses.replace(CONFIG, load_balance=1.0, momentum=0.0)
    model = Net(num_experts=3, top_k=1, has_norm=False)
    model.conv.router.fc2.bias[...] = jnp.array([0.0, 0.0, -20.0])
    model.conv.kernel[...] = jnp.zeros_like(model.conv.kernel[...])
    graphdef, state, step = build(model, config)
    for _ in range(2):  # the first has a learning rate of 0
        state, _ = step(state, images, labels)
    trained_net: Any = nnx.merge(graphdef, state).model
    assert trained_net.conv.router.fc2.bias[2] > -20


def test_augmentation_follows_from_seed_and_step(images, labels):
    def losses(seed: int, runs: int) -> list[float]:
        # A learning rate of nothing: only the augmentation differs between steps.
        config = dataclasses.replace(CONFIG, seed=seed, learning_rate=1e-30)
        model = Net(nnx.Conv, has_norm=False)
        _, state, step = build(model, config, Augmentation(crop_padding=2))
        history = []
        for _ in range(runs):
            current = jax.tree.map(jnp.copy, state)
            for _ in range(2):
                current, metrics = step(current, images, labels)
                history.append(float(metrics["loss"]))
        return history

    *first, third, fourth = losses(0, runs=2)
    assert first == [third, fourth]
    assert len({*first, *losses(1, runs=1)}) == 4
