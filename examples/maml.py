"""Learns to learn: MAML (Finn et al., 2017) of a small convolutional network.

A task is to tell five digits apart under labels of its own, from five images of each.
For each task the network takes a gradient step of its own, so that from then on every
task has its own kernels; what is learned is where they start. The inner step is mapped
over tasks, and differentiated again.

    python -m examples.maml --steps 150
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from dynconv_jax import conv

TASKS, WAYS, SHOTS = 8, 5, 5


def init(key):
    """Returns the kernels of two convolutions, and a linear head."""
    shapes = {"conv1": (3, 3, 1, 16), "conv2": (3, 3, 16, 32), "head": (128, WAYS)}
    keys = jax.random.split(key, len(shapes))
    draw = jax.nn.initializers.he_normal()
    return {name: draw(k, shapes[name]) for name, k in zip(shapes, keys, strict=True)}


def loss(parameters, images, labels):
    """Returns the mean loss of a task, and how many answers are right."""
    features = jax.nn.relu(conv(images, parameters["conv1"], strides=2))
    features = jax.nn.relu(conv(features, parameters["conv2"], strides=2))
    logits = features.reshape(len(images), -1) @ parameters["head"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), (logits.argmax(-1) == labels).mean()


def adapted(parameters, images, labels, rate):
    """Takes the inner step of a task."""
    gradient, _ = jax.grad(loss, has_aux=True)(parameters, images, labels)
    return jax.tree.map(lambda p, g: p - rate * g, parameters, gradient)


def after_a_step(parameters, support, query, rate):
    """Returns loss and accuracy on the queries of all tasks, each after its step."""

    def of_task(support, query):
        images, labels = support
        return loss(adapted(parameters, images, labels, rate), *query)

    losses, accuracies = jax.vmap(of_task)(support, query)
    return losses.mean(), accuracies.mean()


def draw_tasks(rng, images, labels, digits):
    """Returns support and query sets: (tasks, images, ...) each, with labels."""
    chosen = []
    for _ in range(TASKS):
        names = rng.permutation(digits)[:WAYS]
        rows = [
            rng.choice(np.flatnonzero(labels == n), 2 * SHOTS, False) for n in names
        ]
        chosen.append(np.stack(rows))
    rows = np.stack(chosen)
    own = np.broadcast_to(np.arange(WAYS)[:, None], (TASKS, WAYS, SHOTS))

    def parts(of):
        pictures = images[rows[:, :, of]].reshape(TASKS, -1, 8, 8, 1)
        return jnp.asarray(pictures), jnp.asarray(own.reshape(TASKS, -1))

    return parts(slice(SHOTS)), parts(slice(SHOTS, None))


def main():
    """Trains on tasks, and tries others before and after."""
    parser = argparse.ArgumentParser(description="Learns to learn digits.")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=0.4, help="of the inner step")
    arguments = parser.parse_args()
    pixels, labels = load_digits(return_X_y=True)
    images, rng = (pixels / 16).astype(np.float32), np.random.default_rng(0)
    is_test = np.arange(len(labels)) >= 1400
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(parameters, state, support, query):
        gradient, accuracy = jax.grad(after_a_step, has_aux=True)(
            parameters, support, query, arguments.rate
        )
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state, accuracy

    @jax.jit
    def accuracy(parameters, support, query):
        return after_a_step(parameters, support, query, arguments.rate)[1]

    def trial(name, parameters):
        tasks = np.random.default_rng(1)
        seen = images[is_test], labels[is_test], np.arange(10)
        found = [accuracy(parameters, *draw_tasks(tasks, *seen)) for _ in range(10)]
        print(f"{name}: accuracy after one step {np.mean(found):.4f}")

    parameters = init(jax.random.key(0))
    state = optimizer.init(parameters)
    trial("as initialised", parameters)
    for _ in range(arguments.steps):
        tasks = draw_tasks(rng, images[~is_test], labels[~is_test], np.arange(10))
        parameters, state, _ = step(parameters, state, *tasks)
    trial("as learned", parameters)


if __name__ == "__main__":
    main()
