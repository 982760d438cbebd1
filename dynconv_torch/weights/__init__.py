"""A model as a directory, which both frameworks open."""

from dynconv_torch.weights.pretrained import from_pretrained, save_pretrained

__all__ = ["from_pretrained", "save_pretrained"]
