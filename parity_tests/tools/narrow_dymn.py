"""Narrow networks of DyMN in both frameworks, and their shapes."""

from typing import Any

import torch

import dynconv_torch
from dynconv_jax import ContextConv, DyMN, load_torch_state_dict
from dynconv_jax.models.abstract import abstract_module
from dynconv_torch import ContextConv2d
from parity_tests.parity import torch_state
from parity_tests.tools import networks

BUILD = DyMN, dynconv_torch.DyMN
CONTEXT = ContextConv, ContextConv2d
# One without the first convolution, with a shortcut; one that widens and strides.
TWO_BLOCKS = ((3, 16, 16, 1, False), (5, 64, 8, 2, True))
NARROW: dict[str, Any] = dict(blocks=TWO_BLOCKS, width_mult=0.25)


def twins(x, rng, conv=CONTEXT, **options):
    """A narrow network in both frameworks, whose coefficients differ by the sample."""
    options = {"dropout": 0.0, **NARROW, **options}
    ours, theirs = networks.twins(*BUILD, x, rng, 5, conv=conv, **options)
    lively(theirs, rng)
    return ours, theirs


def lively(net, rng):
    """Enlarges what starts near zero: linear layers and biases."""
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, torch.nn.Linear):
                for parameter in part.parameters():
                    drawn = rng.normal(size=tuple(parameter.shape)) * 0.5
                    parameter.copy_(torch.from_numpy(drawn))
    return net


def abstract_narrow(**options):
    """A narrow network of JAX, with values of PyTorch's."""
    theirs = BUILD[1](5, **NARROW).eval()
    options = {"dropout": 0.0, **NARROW, **options}
    ours = abstract_module(lambda rngs: DyMN(5, rngs=rngs, **options))
    load_torch_state_dict(ours, torch_state(theirs))
    return ours
