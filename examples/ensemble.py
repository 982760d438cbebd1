"""Trains eight networks, each of a seed of its own, by one compiled step.

`nnx.vmap` maps the network over its parameters: the eight are one stack of arrays. What
XLA would make of their convolutions is a convolution with eight times the groups; what
`dynconv_jax` makes of them is batched products and loops.

    python -m examples.ensemble --steps 100
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from dynconv_jax import DynamicNet

MEMBERS = 8


@nnx.split_rngs(splits=MEMBERS)
@nnx.vmap
def create(rngs):
    """Returns the networks and their optimizers, stacked."""
    net = DynamicNet(1, 10, num_experts=2, width_mult=0.25, rngs=rngs)
    return net, nnx.Optimizer(net, optax.adamw(3e-3), wrt=nnx.Param)


@nnx.jit
@nnx.vmap
def step(net, optimizer, images, labels):
    """Takes a step of each network with images of its own."""

    def loss(net):
        logits = net(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimizer.update(net, nnx.grad(loss)(net))


@nnx.jit
@nnx.vmap(in_axes=(0, None))
def probabilities(net, images):
    """Returns what each network says of the same images."""
    return jax.nn.softmax(net(images))


def main():
    """Trains, and compares the networks with the mean of what they say."""
    parser = argparse.ArgumentParser(description="Trains eight networks at once.")
    parser.add_argument("--steps", type=int, default=100, help="of all networks")
    steps = parser.parse_args().steps
    pixels, labels = load_digits(return_X_y=True)
    images = jnp.asarray(pixels.reshape(-1, 8, 8, 1) / 16, jnp.float32)
    labels, test = jnp.asarray(labels), slice(1400, None)

    nets, optimizers = create(nnx.Rngs(0))
    draw = np.random.default_rng(0)
    for _ in range(steps):
        rows = draw.choice(1400, (MEMBERS, 64))  # other images for each
        step(nets, optimizers, images[rows], labels[rows])

    nets.eval()
    said = probabilities(nets, images[test])
    each = (said.argmax(-1) == labels[test]).mean(-1)
    together = (said.mean(0).argmax(-1) == labels[test]).mean()
    print("accuracy of each:", " ".join(f"{accuracy:.4f}" for accuracy in each))
    print(f"mean of them: {each.mean():.4f}; of their mean: {together:.4f}")


if __name__ == "__main__":
    main()
