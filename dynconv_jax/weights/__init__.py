"""Weights: PyTorch's layout to and from a module's state, and files."""

from dynconv_jax.layers.chen_layout import chen_options
from dynconv_jax.weights.arrangements import (
    Arrangement,
    channels_first,
    permuted,
    same,
)
from dynconv_jax.weights.checkpoint import create_model_from_checkpoint
from dynconv_jax.weights.collapse import collapse
from dynconv_jax.weights.directories import new_directory
from dynconv_jax.weights.files import load_weights, save_weights, write_file
from dynconv_jax.weights.folding import fold_batch_norm
from dynconv_jax.weights.loading import load_torch_state_dict
from dynconv_jax.weights.pretrained import from_pretrained, save_pretrained
from dynconv_jax.weights.surgery import init_from_static
from dynconv_jax.weights.torch_layout import (
    LAYOUT,
    to_torch_state_dict,
    torch_variables,
)

__all__ = [
    "LAYOUT",
    "Arrangement",
    "channels_first",
    "chen_options",
    "collapse",
    "create_model_from_checkpoint",
    "fold_batch_norm",
    "from_pretrained",
    "init_from_static",
    "load_torch_state_dict",
    "load_weights",
    "new_directory",
    "permuted",
    "same",
    "save_pretrained",
    "save_weights",
    "to_torch_state_dict",
    "torch_variables",
    "write_file",
]
