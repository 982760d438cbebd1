"""Weights: PyTorch's layout to and from a module's state, and files."""

from dynconv_jax.weights.chen_layout import chen_options
from dynconv_jax.weights.files import load_weights, save_weights
from dynconv_jax.weights.torch_layout import (
    load_torch_state_dict,
    to_torch_state_dict,
    torch_variables,
)

__all__ = [
    "chen_options",
    "load_torch_state_dict",
    "load_weights",
    "save_weights",
    "to_torch_state_dict",
    "torch_variables",
]
