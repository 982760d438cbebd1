"""Swaps the convolutions of one's own network, and keeps what it has learned.

A ResNet of three stages, as one writes it in Flax NNX, with the 3×3 convolution as an
argument. It is trained on handwritten digits with `nnx.Conv`; then the same network is
built with `DynamicConv`, starts from the trained weights with the same function, and is
trained on.

    python -m examples.swap_layer --steps 150
"""

import argparse
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from dynconv_jax import (
    BatchNorm,
    DynamicConv,
    compare_experts,
    count_parameters,
    init_from_static,
)


class Residual(nnx.Module):
    """Two 3×3 convolutions beside a shortcut, which is 1×1 where sizes change."""

    def __init__(self, channels, outputs, strides, *, conv, rngs):
        """Builds the block; `conv` is called as `nnx.Conv`."""
        build = functools.partial(conv, padding=1, use_bias=False, rngs=rngs)
        self.conv1 = build(channels, outputs, (3, 3), strides=strides)
        self.bn1 = BatchNorm(outputs, rngs=rngs)
        self.conv2 = build(outputs, outputs, (3, 3))
        self.bn2 = BatchNorm(outputs, rngs=rngs)
        self.shortcut = nnx.Conv(
            channels, outputs, (1, 1), strides=strides, use_bias=False, rngs=rngs
        )

    def __call__(self, x):
        """Applies the block to (B, H, W, channels)."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nnx.Module):
    """A static stem, three blocks, a pooled linear head."""

    def __init__(self, *, conv: Callable = nnx.Conv, rngs):
        """Builds the network with the convolution of its blocks."""
        self.stem = nnx.Conv(1, 8, (3, 3), padding=1, rngs=rngs)
        widths = [(8, 8, 1), (8, 16, 2), (16, 32, 2)]
        blocks = [Residual(*sizes, conv=conv, rngs=rngs) for sizes in widths]
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        """Classifies images (B, 8, 8, 1)."""
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))


def train(net, images, labels, steps, seed):
    """Takes optimizer steps, in place."""
    optimizer = nnx.Optimizer(net, optax.adamw(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer, images, labels):
        def loss(net):
            return optax.softmax_cross_entropy_with_integer_labels(
                net(images), labels
            ).mean()

        optimizer.update(net, nnx.grad(loss)(net))

    draw = np.random.default_rng(seed)
    net.train()
    for _ in range(steps):
        rows = draw.choice(len(images), 64)
        step(net, optimizer, images[rows], labels[rows])
    net.eval()


def main():
    """Trains the static network, swaps the layers, trains the dynamic one."""
    parser = argparse.ArgumentParser(description="Swaps the convolutions of a network.")
    parser.add_argument("--steps", type=int, default=150, help="of each network")
    steps = parser.parse_args().steps
    pixels, labels = load_digits(return_X_y=True)
    images = jnp.asarray(pixels.reshape(-1, 8, 8, 1) / 16, jnp.float32)
    labels, test = jnp.asarray(labels), slice(1400, None)

    def report(name, net):
        accuracy = (answers(net).argmax(axis=-1) == labels[test]).mean()
        print(f"{name}: {count_parameters(net):,} parameters, accuracy {accuracy:.4f}")

    answers = nnx.jit(lambda net: net(images[test]))
    static = SmallResNet(rngs=nnx.Rngs(0))
    train(static, images[:1400], labels[:1400], steps, seed=0)
    report("static", static)

    dynamic = SmallResNet(conv=DynamicConv, rngs=nnx.Rngs(1))
    # Equal experts would learn apart only by their attention; a little noise helps.
    init_from_static(dynamic, static, noise=0.05, rngs=nnx.Rngs(2))
    dynamic.eval()
    report("swapped", dynamic)
    train(dynamic, images[:1400], labels[:1400], steps, seed=1)
    report("trained on", dynamic)
    alike = compare_experts(dynamic)["blocks.2.conv2"][0, 1]
    print(f"cosine of two experts of the last layer: {alike:.3f}")


if __name__ == "__main__":
    main()
