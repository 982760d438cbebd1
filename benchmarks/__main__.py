"""python -m benchmarks: what a dynamic convolution costs, on this machine.

Times forward and backward of single layers in all implementations, in turn, and prints
a Markdown table a layer. Absolute times differ between machines and from run to run;
the ratios are what to compare.
"""

import dataclasses
import os
import platform
from importlib.metadata import version

import jax
import torch
import tyro

from benchmarks.layers import Shape, jax_gradient, torch_gradient
from benchmarks.timing import interleave, table

SHAPES = (
    Shape(32, 56, 64, 64),
    Shape(32, 14, 256, 256),
    Shape(32, 14, 256, 256, kernel=1),
    Shape(64, 16, 64, 128, stride=2),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    rounds: int = 5
    """How often to time each implementation; the median is reported."""

    vmap: bool = True
    """Time the mapped convolution too. Its gradient takes about half a minute a call on
    the largest layer."""


def main(config: Config) -> None:
    """Prints the machine and a table for each layer."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch"))
    device = jax.devices()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, JAX on {device.device_kind}, "
        f"PyTorch with {torch.get_num_threads()} threads, {versions}, float32, K = 4"
    )
    for shape in SHAPES:
        forms = ["patches", "experts"] + ["vmap"] * config.vmap
        functions = {f"jax {form}": jax_gradient(shape, form) for form in forms}
        for form in ("grouped", "loop", "experts"):
            functions[f"torch {form}"] = torch_gradient(shape, form)
        print(f"\n{shape}, forward and backward\n")
        print(table(interleave(functions, config.rounds), "jax patches"), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
