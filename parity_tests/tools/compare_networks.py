"""python -m parity_tests.tools.compare_networks: how far each network is from its twin.

Every network that has a name is computed by both frameworks, whole and in float64, in
evaluation and in training, where also its gradients are, and its buffers. The page has
a row for each, with the largest differences.
"""

import dataclasses
import functools
import itertools
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import torch
import tyro

import dynconv_jax
from benchmarks.machine import describe
from dynconv_jax.weights import write_file
from parity_tests.passes import copy_weights, run_both
from parity_tests.tolerances import GRADIENT_FLOOR, TOLERANCES, worst_error
from parity_tests.tools import alike, whole

TOLERANCE = TOLERANCES["float64"].relative


@dataclasses.dataclass(frozen=True)
class Config:
    """Which networks to compare, and where the page goes."""

    names: tuple[str, ...] = ()
    """Their names; without any, all of `list_models()`."""

    seed: int = 0
    """Where the images, the parameters and the cotangents come from, with the name."""

    out: Path = Path("docs/how/networks.md")
    """The page."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far a network is from its twin, each relative to the largest value.

    Attributes:
        name: The name of the network.
        parameters: How many it has.
        images: The shape of what it saw, (B, H, W, C).
        in_evaluation: Of the outputs.
        in_training: Of the outputs.
        gradients: Of the images' gradients and those of every parameter.
        buffers: Of running statistics, after the pass in training.
    """

    name: str
    parameters: int
    images: Sequence[int]
    in_evaluation: float
    in_training: float
    gradients: float
    buffers: float

    @property
    def errors(self) -> tuple[float, ...]:
        """The differences, in the order of the columns."""
        return self.in_evaluation, self.in_training, self.gradients, self.buffers

    @property
    def holds(self) -> bool:
        """Whether none is more than the table of tolerances allows."""
        return all(error <= TOLERANCE for error in self.errors)


def main(config: Config) -> int:
    """Compares the networks, and writes the page.

    Returns:
        How many networks are further from their twins than the table allows.

    Raises:
        SystemExit: If a name is not known.
    """
    known = dynconv_jax.list_models()
    if unknown := sorted({*config.names} - {*known}):
        raise SystemExit(f"`names` (={unknown}) must be among {known}")
    names = [name for name in known if name in (config.names or known)]
    compared = []
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for _, family in itertools.groupby(names, family_of):
            for name in family:
                compared.append(compare(name, config.seed))
                print(compared[-1], flush=True)
            jax.clear_caches()  # gigabytes, of which the next family needs nothing
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_file(config.out, render(config, compared).encode())
    return sum(not each.holds for each in compared)


def family_of(name: str) -> str:
    """Returns what the names of networks of the same blocks begin with.

    Example:
        >>> family_of("resnet101"), family_of("dcd_mobilenet_v2")
        ('resnet', 'dcd')
    """
    return "".join(itertools.takewhile(str.isalpha, name))


def compare(name: str, seed: int) -> Comparison:
    """Computes a network and its twin.

    Args:
        name: One of `list_models()`.
        seed: With the name, where all that is drawn comes from.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    ours, theirs, images = whole.pair(name, rng)
    copy_weights(theirs, ours)
    run = functools.partial(run_both, ours, theirs, images, jit=False)
    with alike.compiled_once(ours):
        evaluated, expected = run(cotangent=None, training=False)
        cotangent = rng.normal(size=expected[0].shape)
        in_jax, in_torch = run(cotangent=cotangent, training=True)
    return Comparison(
        name,
        sum(parameter.numel() for parameter in theirs.parameters()),
        images.shape,
        worst_error({"": evaluated[0]}, {"": expected[0]}),
        worst_error({"": in_jax[0]}, {"": in_torch[0]}),
        worst_error(in_jax[1], in_torch[1], floor=GRADIENT_FLOOR),
        worst_error(in_jax[2], in_torch[2]),
    )


def render(config: Config, compared: Sequence[Comparison]) -> str:
    """Returns the page."""
    machine = ", ".join(f"{name} {value}" for name, value in describe().items())
    within = sum(each.holds for each in compared)
    lines = [
        "# Every network, whole",
        "",
        "How far the networks of `list_models()` are from their twins in "
        "`dynconv_torch`, whole, with seven",
        "classes and in float64: the largest difference relative to the largest value "
        "of its array, and of",
        "gradients as [Parity and tolerances](parity.md) says, which allows "
        f"{TOLERANCE:.0e}. {within} of {len(compared)} are within it.",
        "`parity_tests/tools/whole.py` says what they are given, and",
        "`python -m parity_tests.tools.compare_networks` writes this page anew.",
        "",
        f"Seed {config.seed}. Machine: {machine}.",
        "",
        "| network | parameters | images | outputs in evaluation | in training "
        "| gradients | buffers |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for each in compared:
        errors = map(as_cell, each.errors)
        shape = "×".join(map(str, each.images))
        cells = f"`{each.name}`", f"{each.parameters:,}", shape, *errors
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_cell(error: float) -> str:
    """Returns an error as the table has it, bold if it is too large."""
    text = f"{error:.0e}" if error else "0"
    return f"**{text}**" if error > TOLERANCE else text


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
