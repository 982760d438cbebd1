"""A model as a directory, which both frameworks open, and one from a checkpoint."""

from dynconv_torch.weights.checkpoint import create_model_from_checkpoint
from dynconv_torch.weights.pretrained import from_pretrained, save_pretrained

__all__ = ["create_model_from_checkpoint", "from_pretrained", "save_pretrained"]
