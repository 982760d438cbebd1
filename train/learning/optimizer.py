"""The optimizer: SGD, AdamW or LAMB, with a weight decay of its own for the routers."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dynconv_jax import DecomposedConv, Router, SigmoidRouter
from dynconv_jax.layers.cell_attention import CellAttention
from dynconv_jax.layers.od_conv import ODAttention
from train.flags.config import Config
from train.learning.schedules import learning_rate_schedule

# What answers, from an input, how a kernel is made for it.
ROUTERS = Router, SigmoidRouter, ODAttention, CellAttention

# The names of what decays; others are biases and the scales of norms.
KERNELS = "kernel", "cells"


def decayed_parameters(model: nnx.Module) -> tuple[nnx.State, nnx.State]:
    """Tells which parameters decay, of the model's own and of its routers.

    Kernels decay, those of experts and the cells of warehouses among them; biases and
    norms do not.

    Args:
        model: The model.

    Returns:
        Two masks in the form of the model's parameters: true for the kernels outside of
        routers, and true for those inside.
    """
    routing = {
        id(variable)
        for router in _routers(model)
        for _, variable in nnx.iter_graph(router)
        if isinstance(variable, nnx.Param)
    }
    own, of_routers = {}, {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        is_kernel = path[-1] in KERNELS
        own[path] = is_kernel and id(variable) not in routing
        of_routers[path] = is_kernel and id(variable) in routing
    return nnx.from_flat_state(own), nnx.from_flat_state(of_routers)


def _routers(model: nnx.Module) -> list[nnx.Module]:
    routers = []
    for _, part in nnx.iter_modules(model):
        if isinstance(part, ROUTERS):
            routers.append(part)
        elif isinstance(part, DecomposedConv):
            routers.extend((part.fc, part.fc_phi, part.fc_scale))
    return routers


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
        model: The model whose parameters it is to move.
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
    parts.append(optax.scale_by_learning_rate(learning_rate_schedule(config)))
    return nnx.Optimizer(model, optax.chain(*parts), wrt=nnx.Param)
