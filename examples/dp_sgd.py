"""Trains a small network with differential privacy, by gradients of single examples.

DP-SGD (Abadi et al., 2016) clips the gradient of each example before it adds them up,
and adds noise. `jax.vmap` of the gradient gives them; of the convolutions there is then
a kernel's gradient for every example, which `dynconv_jax.conv` computes as batched
products. The rest is `optax.contrib`.

    python -m examples.dp_sgd --steps 200
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
from sklearn.datasets import load_digits

from dynconv_jax import conv


def init(key):
    """Returns the kernels of two convolutions, and a linear head."""
    shapes = {"conv1": (3, 3, 1, 16), "conv2": (3, 3, 16, 32), "head": (4 * 4 * 32, 10)}
    keys = jax.random.split(key, len(shapes))
    draw = jax.nn.initializers.he_normal()
    return {name: draw(k, shapes[name]) for name, k in zip(shapes, keys, strict=True)}


def logits(parameters, images):
    """Classifies images (N, 8, 8, 1)."""
    features = jax.nn.relu(conv(images, parameters["conv1"]))
    features = jax.nn.relu(conv(features, parameters["conv2"], strides=2))
    return features.reshape(len(images), -1) @ parameters["head"]


def loss(parameters, image, label):
    """Returns the loss of a single example."""
    found = logits(parameters, image[None])[0]
    return optax.softmax_cross_entropy_with_integer_labels(found, label)


def main():
    """Trains with and without privacy."""
    parser = argparse.ArgumentParser(description="Trains with differential privacy.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--noise", type=float, default=0.6, help="over the clipped norm"
    )
    arguments = parser.parse_args()
    pixels, labels = load_digits(return_X_y=True)
    images = jnp.asarray(pixels.reshape(-1, 8, 8, 1) / 16, jnp.float32)
    labels, test = jnp.asarray(labels), slice(1400, None)
    of_each = jax.vmap(jax.grad(loss), (None, 0, 0))

    def train(name, optimizer, gradients):
        @jax.jit
        def step(parameters, state, images, labels):
            found = gradients(parameters, images, labels)
            updates, state = optimizer.update(found, state, parameters)
            return optax.apply_updates(parameters, updates), state

        parameters, draw = init(jax.random.key(0)), np.random.default_rng(0)
        state = optimizer.init(parameters)
        for _ in range(arguments.steps):
            rows = draw.choice(1400, 128)
            parameters, state = step(parameters, state, images[rows], labels[rows])
        answers = logits(parameters, images[test]).argmax(-1)
        print(f"{name}: accuracy {(answers == labels[test]).mean():.4f}")

    def mean(*operands):
        return jax.tree.map(lambda each: each.mean(0), of_each(*operands))

    norms = jax.vmap(optax.tree.norm)(
        of_each(init(jax.random.key(0)), images[:128], labels[:128])
    )
    print(f"norms of the gradients of examples: {norms.min():.2f} to {norms.max():.2f}")
    train("without privacy", optax.sgd(0.05, momentum=0.9), mean)
    private = optax.chain(
        contrib.differentially_private_aggregate(1.0, arguments.noise, key=0),
        optax.sgd(0.05, momentum=0.9),
    )
    train("clipped to 1, with noise", private, of_each)


if __name__ == "__main__":
    main()
