"""Anneals the temperature of all routers, and watches what they do over training.

The temperature falls exponentially, and is written into the model before each step:
it is state, so that nothing is compiled anew. Every so often `diagnose` looks at held
out images.

    python -m examples.watch_routers --steps 300 --picture routers.png
"""

import argparse
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from dynconv_jax import DynamicNet, RouterSummary, diagnose, set_temperature


@nnx.jit
def step(net, optimizer, temperature, images, labels):
    """Takes one step, at a temperature."""
    set_temperature(net, temperature)

    def loss(net):
        return optax.softmax_cross_entropy_with_integer_labels(
            net(images), labels
        ).mean()

    value, gradients = nnx.value_and_grad(loss)(net)
    optimizer.update(net, gradients)
    return value


def look(net, images):
    """Returns, by router, entropy over log K, spread, and the dead experts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dead experts are printed below
        summaries = diagnose(net, images)
    return {
        path.removesuffix(".dyn.router"): (
            each.entropy / np.log(len(each.share)),
            each.spread,
            each.dead_experts,
        )
        for path, each in summaries.items()
        if isinstance(each, RouterSummary)
    }


def draw(history, picture):
    """Draws entropy and spread of each router over the steps."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for which, title in enumerate(("entropy / log K", "spread")):
        axis = axes[which]
        for name in next(iter(history.values())):
            values = [seen[name][which] for seen in history.values()]
            axis.plot(list(history), values, marker=".", label=name)
        axis.set(title=title, xlabel="step", ylim=(-0.05, 1.05))
    axes[0].legend()
    figure.savefig(picture)


def main():
    """Trains on handwritten digits."""
    parser = argparse.ArgumentParser(
        description="Watches routers while they cool down."
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--start", type=float, default=30.0, help="first temperature")
    parser.add_argument("--end", type=float, default=0.03, help="last temperature")
    parser.add_argument("--picture", type=Path, help="a .png to draw")
    options = parser.parse_args()

    pixels, labels = load_digits(return_X_y=True)
    images = jnp.asarray(pixels.reshape(-1, 8, 8, 1) / 16, jnp.float32)
    labels, held_out = jnp.asarray(labels), images[1400:]
    net = DynamicNet(1, 10, width_mult=0.25, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.adam(3e-3), wrt=nnx.Param)
    # Arrives at half of the training, so that the routers train as they will be used.
    falling = optax.exponential_decay(
        options.start,
        max(1, options.steps // 2),
        options.end / options.start,
        end_value=options.end,
    )
    rows = np.random.default_rng(0).integers(0, 1400, size=(options.steps, 64))
    history = {}
    for number in range(options.steps + 1):
        temperature = jnp.asarray(falling(number))
        if number % max(1, options.steps // 6) == 0:
            net.eval()
            set_temperature(net, temperature)
            history[number] = look(net, held_out)
            print(f"step {number}, T {float(temperature):.2f}")
            for name, (entropy, spread, dead) in history[number].items():
                said = f"entropy {entropy:.2f} of log K, spread {spread:.2f}"
                print(f"  {name}: {said}, dead experts {list(dead)}")
        if number < options.steps:
            net.train()
            chosen = rows[number]
            step(net, optimizer, temperature, images[chosen], labels[chosen])
    net.eval()
    accuracy = (net(held_out).argmax(axis=-1) == labels[1400:]).mean()
    print(f"accuracy {accuracy:.4f}")
    if options.picture is not None:
        draw(history, options.picture)


if __name__ == "__main__":
    main()
