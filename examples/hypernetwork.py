"""Learns a hypernetwork: from an angle to the kernel of a convolution.

Pictures are blurred along a direction, each along its own. A small network is told the
angle and answers the 5×5 kernel that its picture is convolved with; it learns from
pairs of sharp and blurred pictures alone. Every sample has a kernel of its own, so the
convolution is mapped over kernels.

    python -m examples.hypernetwork --steps 300
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from dynconv_jax import conv

SIDE = 5


class KernelNet(nnx.Module):
    """An angle becomes a kernel (5, 5, 1, 1)."""

    def __init__(self, rngs):
        """Builds two linear layers."""
        self.hidden = nnx.Linear(4, 64, rngs=rngs)
        self.out = nnx.Linear(64, SIDE * SIDE, rngs=rngs)

    def __call__(self, angles):
        """Answers a kernel for each of the angles (B,)."""
        # Directions, of which opposite ones are the same.
        waves = [f(n * angles) for n in (2, 4) for f in (jnp.cos, jnp.sin)]
        found = self.out(nnx.gelu(self.hidden(jnp.stack(waves, -1))))
        return found.reshape(-1, SIDE, SIDE, 1, 1)


def line(angles):
    """Returns kernels that blur along a line, for the angles (B,)."""
    at = jnp.arange(SIDE) - SIDE // 2
    across = jnp.abs(
        jnp.sin(angles)[:, None, None] * at
        - jnp.cos(angles)[:, None, None] * at[:, None]
    )
    weights = jnp.maximum(1 - across, 0)
    return (weights / weights.sum((1, 2), keepdims=True))[..., None, None]


def blurred(pictures, kernels):
    """Convolves each picture (B, H, W, 1) with its own kernel."""
    return jax.vmap(lambda picture, kernel: conv(picture[None], kernel)[0])(
        pictures, kernels
    )


@nnx.jit
def step(net, optimizer, pictures, angles):
    """Takes a step; returns the mean squared error."""
    wanted = blurred(pictures, line(angles))

    def loss(net):
        return jnp.mean((blurred(pictures, net(angles)) - wanted) ** 2)

    error, gradient = nnx.value_and_grad(loss)(net)
    optimizer.update(net, gradient)
    return error


def main():
    """Trains, and compares kernels with those that blurred the pictures."""
    parser = argparse.ArgumentParser(description="Learns kernels from angles.")
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    pixels, _ = load_digits(return_X_y=True)
    pictures = jnp.asarray(pixels.reshape(-1, 8, 8, 1) / 16, jnp.float32)

    net = KernelNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.adam(1e-2), wrt=nnx.Param)
    draw = np.random.default_rng(0)
    errors = []
    for _ in range(steps):
        rows = draw.choice(len(pictures), 64)
        angles = jnp.asarray(draw.uniform(0, np.pi, 64), jnp.float32)
        errors.append(float(step(net, optimizer, pictures[rows], angles)))
    print(f"squared error: {errors[0]:.5f} at first, {errors[-1]:.5f} at last")
    angles = jnp.linspace(0, np.pi, 50)
    truth, found = line(angles), net(angles)
    one = truth.mean(0)  # the best that a kernel for all could be
    print(f"kernels are off by {jnp.abs(found - truth).mean():.4f},", end=" ")
    print(f"one for all would be by {jnp.abs(one - truth).mean():.4f}")


if __name__ == "__main__":
    main()
