"""Trains on eight devices that share each batch, simulated on a CPU.

The batch is cut along its first axis, parameters are whole on every device. `jax.jit`
does the rest: a dynamic convolution moves no sample between devices, and what they
exchange are sums, of gradients and of batch norm's statistics. The same steps on one
device give the same losses.

    python -m examples.eight_devices --steps 20
"""

import argparse
import os
import re

# Before JAX starts, and only for its CPU devices.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dynconv_jax import DynamicNet


def make_step(graphdef, optimizer):
    """Returns a step from (params, rest, moments, images, labels)."""

    def step(params, rest, moments, images, labels):
        def loss(params):
            net = nnx.merge(graphdef, params, rest, copy=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                net(images), labels
            )
            return losses.mean(), nnx.state(net, nnx.Not(nnx.Param))

        (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), rest, moments, value

    return jax.jit(step, donate_argnums=(0, 1, 2))


def run(devices, steps, batch):
    """Trains on some devices; returns the losses, and what the devices exchange."""
    mesh = jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )
    whole = NamedSharding(mesh, PartitionSpec())
    by_image = NamedSharding(mesh, PartitionSpec("data"))

    net = DynamicNet(3, 10, width_mult=0.25, rngs=nnx.Rngs(0))
    net.train()
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    optimizer = optax.sgd(0.05, momentum=0.9)
    state = jax.device_put((params, rest, optimizer.init(params)), whole)
    step = make_step(graphdef, optimizer)

    draw = np.random.default_rng(0)
    images = draw.normal(size=(batch, 16, 16, 3)).astype("float32")
    # Labels that can be learned: which of ten bands the mean of the image is in.
    labels = np.argsort(np.argsort(images.mean(axis=(1, 2, 3)))) * 10 // batch
    images, labels = jax.device_put((images, labels), by_image)
    program = step.lower(*state, images, labels).compile().as_text() or ""
    losses = []
    for _ in range(steps):
        *state, loss = step(*state, images, labels)
        losses.append(float(loss))
    pattern = r" (all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\("
    found = re.findall(pattern, program)
    return losses, {kind: found.count(kind) for kind in sorted(set(found))}


def main():
    """Trains on eight devices and on one, and compares."""
    parser = argparse.ArgumentParser(description="Trains on eight simulated devices.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64, help="divisible by 8")
    options = parser.parse_args()
    if options.batch % 8:
        parser.error(f"--batch (={options.batch}) must be divisible by 8")
    devices = jax.devices()
    losses, exchanged = run(devices, options.steps, options.batch)
    print(f"{len(devices)} devices, exchanges in a step: {exchanged}")
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    alone, _ = run(devices[:1], options.steps, options.batch)
    apart = max(abs(a / b - 1) for a, b in zip(losses, alone, strict=True))
    print(f"one device: loss {alone[0]:.4f} -> {alone[-1]:.4f}, apart by {apart:.1e}")


if __name__ == "__main__":
    main()
