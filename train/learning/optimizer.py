"""The optimizer: SGD, AdamW or LAMB, with a weight decay of its own for the routers."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from train.flags.config import Config
from train.learning.parameters import (
    TRAINABLE,
    depths_of,
    keys_of,
    parameters_by_key,
    routing_parameters,
)
from train.learning.schedules import learning_rate_schedule

# The names of what decays; others are biases and the scales of norms.
KERNELS = "kernel", "cells"


def decayed_parameters(model: nnx.Module) -> tuple[nnx.State, nnx.State]:
    """Tells which parameters decay, of the model's own and of its routers.

    Kernels decay, those of experts and the cells of warehouses among them; biases and
    norms do not.

    Args:
        model: The model.

    Returns:
        Two masks in the form of the parameters that are trained: true for the kernels
        outside of routers, and true for those inside.
    """
    routing = routing_parameters(model)
    own, of_routers = {}, {}
    for path, variable in nnx.to_flat_state(nnx.state(model, TRAINABLE)):
        is_kernel = path[-1] in KERNELS
        own[path] = is_kernel and id(variable) not in routing
        of_routers[path] = is_kernel and id(variable) in routing
    return nnx.from_flat_state(own), nnx.from_flat_state(of_routers)


def learning_rate_factors(model: nnx.Module, config: Config) -> nnx.State | None:
    """Tells by what the learning rate is multiplied, where it is not one for all.

    By `--layer-decay` once for each layer between a parameter and the head (Clark et
    al., "ELECTRA", ICLR 2020, section 3.1; Bao et al., "BEiT", ICLR 2022), and by the
    share that a rate of the head or of the routers has of `--learning-rate`.

    Args:
        model: The model.
        config: The flags.

    Returns:
        The factors in the form of the parameters that are trained; None if all are 1.
    """
    own = {"head": config.head_learning_rate, "routers": config.router_learning_rate}
    if config.layer_decay == 1 and set(own.values()) == {None}:
        return None
    factors = dict.fromkeys(parameters_by_key(model), 1.0)
    if config.layer_decay != 1:
        for key, depth in depths_of(model).items():
            factors[key] = config.layer_decay**depth
    for group, rate in own.items():
        if rate is not None:
            for key in keys_of(group, model):
                factors[key] *= rate / config.learning_rate
    by_id = {
        id(variable): factors[key]
        for key, variables in parameters_by_key(model).items()
        for variable in variables
    }
    trained = nnx.to_flat_state(nnx.state(model, TRAINABLE))
    return nnx.from_flat_state({path: by_id[id(each)] for path, each in trained})


def scale_each(factors: nnx.State) -> optax.GradientTransformation:
    """Returns the multiplication of each update with its factor.

    Args:
        factors: Numbers in the form of the parameters.
    """

    def scale(updates, params=None):
        return jax.tree.map(
            lambda factor, each: jax.tree.map(lambda leaf: leaf * factor, each),
            *(factors, updates),
        )

    return optax.stateless(scale)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Returns the clipping of PyTorch's `clip_grad_norm_`, which adds 1e-6 to the norm.

    Args:
        max_norm: The largest norm of all gradients together; larger ones are scaled
            down to it.
    """

    def clip(gradients, params=None):
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda each: each * scale.astype(each.dtype), gradients)

    return optax.stateless(clip)


def make_optimizer(model: nnx.Module, config: Config) -> nnx.Optimizer:
    """Returns the optimizer that the flags describe.

    SGD's weight decay is added to the gradient, as PyTorch's is; that of AdamW
    (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019) and LAMB
    (You et al., "Large Batch Optimization for Deep Learning", ICLR 2020) is not. LAMB
    scales the steps of kernels by their norms, those of biases and norms it leaves as
    they are.

    Args:
        model: The model whose parameters it is to move, but for those that are frozen,
            of which it knows nothing.
        config: The flags.
    """
    own, of_routers = decayed_parameters(model)
    # optax knows one decay for all; these are the parts of its optimizers, with two.
    decay = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=own),
        optax.add_decayed_weights(config.router_weight_decay, mask=of_routers),
    )
    parts = []
    if config.clip_norm is not None:
        parts.append(clip_by_global_norm(config.clip_norm))
    if config.optimizer == "sgd":
        parts += [decay, optax.trace(config.momentum, nesterov=config.nesterov)]
    else:
        eps = 1e-8 if config.optimizer == "adamw" else 1e-6
        parts += [optax.scale_by_adam(config.beta1, config.beta2, eps), decay]
    if config.optimizer == "lamb":
        kernels = jax.tree.map(lambda *each: any(each), own, of_routers)
        parts.append(optax.masked(optax.scale_by_trust_ratio(), kernels))
    factors = learning_rate_factors(model, config)
    if factors is not None:
        parts.append(scale_each(factors))
    parts.append(optax.scale_by_learning_rate(learning_rate_schedule(config)))
    return nnx.Optimizer(model, optax.chain(*parts), wrt=TRAINABLE)
