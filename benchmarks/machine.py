"""The machine: what it is, how fast a product runs, and how memory is allocated."""

import jax
import jax.numpy as jnp
import torch

from benchmarks.timing import Function
from train.machines import description

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")

# glibc gives large blocks back to the system when they are freed, and the system clears
# every page again when they are next asked for. With this it keeps them.
PAGES_KEPT = (
    "glibc.malloc.hugetlb=1:"
    "glibc.malloc.mmap_threshold=8589934592:"
    "glibc.malloc.trim_threshold=8589934592"
)

_SIDE = 1024
PRODUCT_GIGAFLOPS = 2e-9 * _SIDE**3


def product(dtype: str = "float32") -> Function:
    """Returns a call of the product of two 1024×1024 matrices, the floor of all."""
    matrix = jnp.ones((_SIDE, _SIDE), dtype)
    multiply = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(multiply(matrix, matrix))


def describe() -> dict[str, str]:
    """Returns what a reader needs to know about the machine, by name."""
    return {
        **description.describe(PACKAGES),
        "PyTorch threads": str(torch.get_num_threads()),
    }
