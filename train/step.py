"""What is compiled: the training step and the evaluation step; and the optimizer."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Sharding

from dynconv_jax.diagnostics import capture_attention
from dynconv_jax.routing import iter_routers, load_balance_loss, set_temperature
from dynconv_jax.weights import to_torch_state_dict
from train.config import Config

Metrics = dict[str, Any]


def learning_rate_schedule(config: Config) -> optax.Schedule:
    """Returns the learning rate by step: a linear warm-up, then a cosine down to 0.

    The first step already moves: the warm-up starts one notch above 0.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / (config.warmup + 1),
        peak_value=config.learning_rate,
        warmup_steps=config.warmup,
        decay_steps=config.steps,
    )


def temperature_schedule(config: Config) -> optax.Schedule:
    """Returns the temperature by step: a line, and level from its end on."""
    return optax.linear_schedule(
        config.temperature_start, config.temperature_end, config.annealing
    )


def decayed_parameters(model: nnx.Module) -> tuple[nnx.State, nnx.State]:
    """Tells which parameters decay, of the model's own and of its routers.

    Kernels decay; biases and norms do not.

    Args:
        model: The model.

    Returns:
        Two masks in the form of the model's parameters: true for the kernels outside of
        routers, and true for those inside.
    """
    routers = [tuple(path.split(".")) for path, _ in iter_routers(model)]

    def is_routing(path: tuple[str, ...]) -> bool:
        return any(path[: len(router)] == router for router in routers)

    own, routing = {}, {}
    for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        names = tuple(map(str, path))
        own[path] = names[-1] == "kernel" and not is_routing(names)
        routing[path] = names[-1] == "kernel" and is_routing(names)
    return nnx.from_flat_state(own), nnx.from_flat_state(routing)


def make_optimizer(model: nnx.Module, config: Config) -> nnx.Optimizer:
    """Returns AdamW with the learning rate and the two weight decays of `config`.

    Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    own, routing = decayed_parameters(model)
    # optax.adamw knows one decay for all; these are its parts, with two.
    transform = optax.chain(
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(config.weight_decay, mask=own),
        optax.add_decayed_weights(config.router_weight_decay, mask=routing),
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
    )
    return nnx.Optimizer(model, transform, wrt=nnx.Param)


def make_train_step(graphdef: nnx.GraphDef, config: Config, everywhere: Sharding):
    """Returns the jitted training step.

    Args:
        graphdef: That of the pair (model, optimizer).
        config: The flags.
        everywhere: How state and metrics lie on the devices.

    Returns:
        (state, images, labels) → (state, metrics). The state passed in is donated; the
        metrics are scalars, of the batch before the update.
    """
    learning_rate = learning_rate_schedule(config)
    temperature = temperature_schedule(config)

    def loss_of(model, images, labels):
        logits, attention = capture_attention(model, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        imbalance = [load_balance_loss(each) for each in attention.values()]
        loss = losses.mean() + config.load_balance * jnp.stack(imbalance).mean()
        return loss, (logits.argmax(-1) == labels).mean()

    def step(state, images, labels):
        model, optimizer = nnx.merge(graphdef, state)
        index = optimizer.step[...]
        set_temperature(model, temperature(index))
        differentiate = nnx.value_and_grad(loss_of, has_aux=True)
        (loss, accuracy), gradients = differentiate(model, images, labels)
        optimizer.update(model, gradients)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "learning_rate": learning_rate(index),
            "temperature": temperature(index),
        }
        return nnx.state((model, optimizer)), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=everywhere)


def make_eval_step(
    graphdef: nnx.GraphDef, num_classes: int, everywhere: Sharding
) -> Callable[..., Any]:
    """Returns the jitted evaluation step.

    Args:
        graphdef: That of the pair (model, optimizer).
        num_classes: The number of classes.
        everywhere: How the result lies on the devices.

    Returns:
        (state, images, labels, mask) → sums over the images with mask 1: `loss`,
        `correct`, and for every router its attention by class, (num_classes, K).
    """

    def step(state, images, labels, mask):
        model, _ = nnx.merge(graphdef, state)
        model = nnx.view(
            model,
            use_running_average=True,
            deterministic=True,
            raise_if_not_found=False,
        )
        logits, attention = capture_attention(model, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        is_class = jax.nn.one_hot(labels, num_classes) * mask[:, None]
        return {
            "loss": (losses * mask).sum(),
            "correct": jnp.where(logits.argmax(-1) == labels, mask, 0).sum(),
            "attention": {
                path: jnp.einsum("bn,bk->nk", is_class, each, precision="highest")
                for path, each in attention.items()
            },
        }

    return jax.jit(step, out_shardings=everywhere)


def params_sha256(model: nnx.Module) -> str:
    """Returns a fingerprint of the parameters and buffers of `model`.

    It covers the PyTorch-layout state dict in the order of names: each name, dtype,
    shape and the bytes of the values.
    """
    digest = hashlib.sha256()
    for name, array in sorted(to_torch_state_dict(model).items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
