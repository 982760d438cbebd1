"""DynamicNet: forward, forward and backward, and a step of training by SGD."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import dynconv_torch
from benchmarks.layers import torch_device, wait
from benchmarks.timing import Function
from dynconv_jax import DynamicNet, count_multiply_adds, count_parameters
from dynconv_jax.models.abstract import abstract_module

IMAGE_SIZE = 32  # of a side
_LEARNING_RATE, _MOMENTUM = 0.01, 0.9


class NetCalls(NamedTuple):
    """What is timed of a net.

    Attributes:
        forward: A call of the net in evaluation.
        gradient: A call of the loss and the gradients of all parameters.
        step: A call of a whole training step.
    """

    forward: Function
    gradient: Function
    step: Function


def gigaflops(batch: int) -> float:
    """Returns the arithmetic of a training step, that of its convolutions.

    The gradient of the images is not computed, so the stem has two products, not three.
    """
    stem = 2e-9 * IMAGE_SIZE**2 * 9 * 3 * 32
    stages = sum(
        2e-9 * (IMAGE_SIZE >> stage) ** 2 * 9 * wide * 2 * wide
        for stage, wide in ((1, 32), (2, 64), (3, 128))
    )
    return batch * (2 * stem + 3 * stages)


class Costs(NamedTuple):
    """What DynamicNet has of parameters, and of multiply-adds for an image."""

    parameters: int
    multiply_adds: int


def costs() -> Costs:
    """Counts what DynamicNet costs."""
    net = abstract_module(lambda rngs: DynamicNet(rngs=rngs))
    image = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    return Costs(count_parameters(net), count_multiply_adds(net, image))


def _draw(batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    return images, rng.integers(0, 10, batch)


def jax_net(batch: int, implementation: str, dtype: str = "float32") -> NetCalls:
    """Returns the calls of `dynconv_jax.DynamicNet` on 32×32 images."""
    net = DynamicNet(
        implementation=implementation, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)
    )
    transform = optax.sgd(_LEARNING_RATE, momentum=_MOMENTUM)
    optimizer = nnx.Optimizer(net, transform, wrt=nnx.Param)
    graphdef, state = nnx.split((net, optimizer))
    images, labels = map(jnp.asarray, _draw(batch))

    def loss_of(net, images, labels):
        logits = net(images).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    @jax.jit
    def forward(state, images):
        net, _ = nnx.merge(graphdef, state)
        return nnx.view(
            net,
            use_running_average=True,
            deterministic=True,
            raise_if_not_found=False,
        )(images)

    @jax.jit
    def gradient(state, images, labels):
        net, _ = nnx.merge(graphdef, state)
        return nnx.value_and_grad(loss_of)(net, images, labels)

    def step(state, images, labels):
        net, optimizer = nnx.merge(graphdef, state)
        loss, gradients = nnx.value_and_grad(loss_of)(net, images, labels)
        optimizer.update(net, gradients)
        return nnx.state((net, optimizer)), loss

    step = jax.jit(step, donate_argnums=0)
    latest = jax.tree.map(jnp.copy, state)

    def train() -> None:
        nonlocal latest
        latest, loss = step(latest, images, labels)
        jax.block_until_ready((latest, loss))

    return NetCalls(
        lambda: jax.block_until_ready(forward(state, images)),
        lambda: jax.block_until_ready(gradient(state, images, labels)),
        train,
    )


def torch_net(batch: int, implementation: str, dtype: str = "float32") -> NetCalls:
    """Returns the calls of `dynconv_torch.DynamicNet` on 32×32 images."""
    device = torch_device()
    net = dynconv_torch.DynamicNet(implementation=implementation)
    net = net.to(device, getattr(torch, dtype))
    optimizer = torch.optim.SGD(net.parameters(), lr=_LEARNING_RATE, momentum=_MOMENTUM)
    images, labels = map(torch.from_numpy, _draw(batch))
    images = images.movedim(-1, 1).contiguous().to(device, getattr(torch, dtype))
    labels = labels.to(device)

    def forward() -> None:
        net.eval()
        with torch.no_grad():
            net(images)
        net.train()
        wait(device)

    def backward() -> None:
        logits = net(images).float()
        torch.nn.functional.cross_entropy(logits, labels).backward()

    def gradient() -> None:
        optimizer.zero_grad()
        backward()
        wait(device)

    def step() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()
        wait(device)

    return NetCalls(forward, gradient, step)
