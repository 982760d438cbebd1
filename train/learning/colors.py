"""What operations on colours share: the grey of a pixel, the blend of two images."""

import jax
import jax.numpy as jnp

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def gray(image: jax.Array) -> jax.Array:
    """Returns the brightness of each pixel of an image (H, W, C), (H, W, 1)."""
    if image.shape[-1] != len(LUMA):
        return image.mean(-1, keepdims=True)
    return (image * jnp.asarray(LUMA)).sum(-1, keepdims=True)


def blend(one: jax.Array, other: jax.Array, share: jax.Array) -> jax.Array:
    """Returns `share` of `one` and the rest of `other`; exactly one of them at 1, 0."""
    return share * one + (1 - share) * other
