"""The recipe: ten steps of the program are ten steps of PyTorch's optimizers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import SingleDeviceSharding
from torch.optim.swa_utils import AveragedModel

import dynconv_torch
from dynconv_jax import DynamicConvBlock
from dynconv_jax.initializers import torch_linear
from dynconv_jax.weights import to_torch_state_dict
from parity_tests.parity import (
    as_numpy,
    as_torch,
    channels_first,
    copy_weights,
    torch_state,
)
from parity_tests.tolerances import assert_close
from parity_tests.tools.networks import enliven
from train.flags.config import Config
from train.learning.augment import Augmentation
from train.learning.step import create_state, make_train_step

STEPS = 10
EXPERTS = 2
CLASSES = 7
COMMON: dict[str, Any] = dict(
    **dict(steps=STEPS, batch_size=8, label_smoothing=0.1, ema_decay=0.4),
    **dict(weight_decay=0.05, load_balance=0.0),
)
COOLING: dict[str, Any] = dict(temperature_start=4.0, temperature_end=0.1)
RECIPES = {
    "sgd": Config(
        optimizer="sgd", learning_rate=0.02, clip_norm=1.0, **COOLING, **COMMON
    ),
    "sgd, nesterov": Config(
        optimizer="sgd",
        learning_rate=0.02,
        nesterov=True,
        warmup_steps=3,
        clip_norm=1.0,
        accumulate=2,
        temperature_schedule="exponential",
        **COOLING,
        **COMMON,
    ),
    "adamw": Config(
        learning_rate=1e-3,
        router_weight_decay=0.5,
        schedule="step",
        decay_every=4,
        warmup_steps=0,
        temperature_start=30.0,
        temperature_end=1.0,
        **COMMON,
    ),
}


class Net(nnx.Module):
    """A static stem, a dynamic block and a head."""

    def __init__(self, rngs: nnx.Rngs):
        shared: dict[str, Any] = dict(param_dtype=jnp.float64, rngs=rngs)
        self.stem = nnx.Conv(1, 8, (3, 3), 2, padding=1, use_bias=False, **shared)
        self.block = DynamicConvBlock(8, 6, padding=1, num_experts=EXPERTS, **shared)
        self.fc = torch_linear(6, CLASSES, **shared)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.fc(self.block(self.stem(inputs)).mean((1, 2)))


class TorchNet(torch.nn.Module):
    """The twin of `Net`."""

    def __init__(self):
        super().__init__()
        double: dict[str, Any] = dict(dtype=torch.float64)
        self.stem = torch.nn.Conv2d(1, 8, 3, 2, padding=1, bias=False, **double)
        self.block = dynconv_torch.DynamicConvBlock(
            8, 6, padding=1, num_experts=EXPERTS, **double
        )
        self.fc = torch.nn.Linear(6, CLASSES, **double)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


def rate(config: Config, step: int) -> float:
    """The learning rate, once more in plain Python."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / (config.warmup + 1)
    if config.schedule == "step":
        return config.learning_rate * 0.1 ** (step // config.decaying)
    progress = (step - config.warmup) / (config.total_steps - config.warmup)
    return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def temperature(config: Config, step: int) -> float:
    """The temperature, once more in plain Python."""
    start, end = map(config.recipe, ("temperature_start", "temperature_end"))
    progress = min(1.0, step / config.annealing)
    if config.temperature_schedule == "linear":
        return start + (end - start) * progress
    return start * (end / start) ** progress


def torch_optimizer(net: torch.nn.Module, config: Config) -> torch.optim.Optimizer:
    """PyTorch's, with a group each for kernels, those of routers, and the rest."""
    groups: dict[float, list[torch.Tensor]] = {}
    for name, parameter in net.named_parameters():
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        if decay and "dyn.fc" in name:
            decay = config.router_weight_decay
        groups.setdefault(decay, []).append(parameter)
    grouped = [dict(params=each, weight_decay=decay) for decay, each in groups.items()]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(grouped, lr=1.0, betas=(config.beta1, config.beta2))
    return torch.optim.SGD(
        grouped, lr=1.0, momentum=config.momentum, nesterov=config.nesterov
    )


def train_torch(
    net: torch.nn.Module, config: Config, images: np.ndarray, labels: np.ndarray
) -> tuple[AveragedModel, list[float], list[float]]:
    """Trains as PyTorch's users do; returns averages, losses and gradient norms."""

    def follow(averaged, current, count):
        if not averaged.is_floating_point():
            return current
        kept = min(config.ema_decay or 0.0, float(count / (count + 9)))
        return kept * averaged + (1 - kept) * current

    average = AveragedModel(net, avg_fn=follow, use_buffers=True)
    optimizer = torch_optimizer(net, config)
    losses, norms = [], []
    net.train()
    for step in range(config.total_steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(config, step)
        dynconv_torch.set_temperature(net, temperature(config, step))
        optimizer.zero_grad()
        loss = 0.0
        for part in range(config.accumulate):
            chosen = slice(part, None, config.accumulate)
            part_loss = torch.nn.functional.cross_entropy(
                net(as_torch(channels_first(images[step][chosen]))),
                torch.from_numpy(labels[step][chosen]),
                label_smoothing=config.recipe("label_smoothing"),
            )
            (part_loss / config.accumulate).backward()
            loss += part_loss.item() / config.accumulate
        norm = torch.nn.utils.clip_grad_norm_(
            net.parameters(), config.clip_norm or math.inf
        )
        optimizer.step()
        average.update_parameters(net)
        losses.append(loss)
        norms.append(float(norm))
    return average, losses, norms


@pytest.mark.parametrize("recipe", RECIPES)
def test_ten_steps_are_those_of_pytorch(recipe, rng):
    config = RECIPES[recipe]
    # Of float32, to which the program rounds images that are not.
    images = rng.uniform(size=(STEPS, 8, 9, 8, 1)).astype(np.float32).astype(float)
    labels = rng.integers(CLASSES, size=(STEPS, 8))
    theirs = TorchNet()
    enliven(theirs, images[0], rng)
    ours = Net(nnx.Rngs(0))
    copy_weights(theirs, ours)
    graphdef, state = nnx.split(create_state(ours, config))
    device = SingleDeviceSharding(jax.devices()[0])
    step = make_train_step(graphdef, config, Augmentation(), CLASSES, device, device)

    average, losses, norms = train_torch(theirs, config, images, labels)
    history = []
    for batch, classes in zip(images, labels, strict=True):
        state, metrics = step(state, batch, classes)
        history.append(metrics)
    trained = nnx.merge(graphdef, state)
    assert trained.average is not None

    for name, expected in [("loss", losses), ("gradient_norm", norms)]:
        actual = np.stack([metrics[name] for metrics in history])
        assert_close({name: actual}, {name: np.array(expected)}, dtype="float64")
    assert_close(
        to_torch_state_dict(trained.model), torch_state(theirs), dtype="float64"
    )
    # Of a temperature that falls there is no average: the last one is copied.
    expected = torch_state(average.module)
    last = {name: as_numpy(each) for name, each in theirs.named_buffers()}
    expected |= {name: last[name] for name in last if name.endswith("temperature")}
    assert_close(to_torch_state_dict(trained.average), expected, dtype="float64")
