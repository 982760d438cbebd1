"""The machine: what it is, how fast a product runs, and how memory is allocated."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import torch

from benchmarks.timing import Function

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


def processor() -> str:
    """Returns the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def describe() -> dict[str, str]:
    """Returns what a reader needs to know about the machine, by name."""
    device = jax.devices()[0]
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "JAX on": f"{device.platform} ({device.device_kind})",
        "PyTorch threads": str(torch.get_num_threads()),
        **{name: version(name) for name in PACKAGES},
    }
