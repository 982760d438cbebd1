"""Short runs of the training program, in this process, and what they leave."""

import contextlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from flax import nnx

from dynconv_jax import save_weights
from train.__main__ import main
from train.flags.config import Config
from train.learning.model import create

WIDTH = "width_mult=0.25"
NARROW = f"--model-options={WIDTH}"
SMALL = [NARROW, "--steps=3", "--batch-size=16", "--log-every=1"]


def start(out: Path, *flags: str, experts: int | None = 2) -> int:
    """Runs the program and returns its exit status; later flags win."""
    given = [] if experts is None else [f"--num-experts={experts}"]
    return main([*SMALL, *given, f"--out={out}", *flags])


def run(out: Path, *flags: str, experts: int | None = 2) -> Path:
    """Runs the program to its end, and returns the directory of the run."""
    assert start(out, *flags, experts=experts) == 0
    return out


def save_static(path: Path) -> None:
    """Writes the weights of a narrow static network of seven classes, to start from."""
    config = Config(conv="static", model_options=(WIDTH,))
    save_weights(create(config, 7, 1, nnx.Rngs(5)), path)


def read_summary(out: Path) -> dict:
    """Returns the figures of a finished run."""
    return json.loads((out / "summary.json").read_text())


def read_metrics(out: Path) -> list[dict]:
    """Returns the lines of the metrics."""
    return [*map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# For tests of saves that fail: orbax drops what was still to be written.
DROPPED_WRITES = pytest.mark.filterwarnings(
    "ignore:coroutine 'async_serialize_from_host:RuntimeWarning"
)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The disk takes no more than `size` bytes of a file, as when it is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
