"""python -m benchmarks.pipeline: whether the images keep the training step waiting.

The same compiled step is timed in turn on batches as the training program reads them,
and on one batch that lies on the device already. The ratio of the medians is what
reading and handing over cost.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import tyro
from flax import nnx

from benchmarks.machine import describe
from benchmarks.timing import interleave
from dynconv_jax.weights import write_file
from train.data import presets
from train.data.batches import to_devices, training_batches
from train.flags.config import Config as TrainConfig
from train.learning.augment import Augmentation
from train.learning.model import create
from train.learning.step import create_state, make_train_step
from train.machines import devices


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train on, how long to measure, and where the page goes."""

    preset: str = "fashion"
    """The preset of the images, one that needs no --data."""

    batch_size: int = 128
    """The images of a step."""

    steps: int = 10
    """How many steps to time together, as the program waits for several together."""

    rounds: int = 21
    """How often to time each kind of batch."""

    out: Path = Path("runs/benchmarks")
    """The directory for `pipeline.md`."""


def main(config: Config) -> None:
    """Measures, prints and writes the page."""
    train_config: Any = TrainConfig(
        preset=config.preset,  # pyright: ignore[reportArgumentType]
        batch_size=config.batch_size,
    )
    dataset = presets.load(train_config)
    mesh = devices.make_mesh()
    by_image = devices.by_image(mesh)
    model = create(
        *(train_config, dataset.num_classes, dataset.image_shape[-1]), nnx.Rngs(0)
    )
    graphdef, state = nnx.split(create_state(model, train_config))
    shardings = devices.state_shardings(state, mesh, fsdp=False)
    states = [devices.place(state, shardings)]
    step = make_train_step(
        *(graphdef, train_config, Augmentation.of(train_config, dataset)),
        *(dataset.num_classes, shardings, devices.everywhere(mesh)),
    )

    def read() -> Iterator[Any]:
        for batch in training_batches(dataset.train, config.batch_size, seed=0):
            yield to_devices((batch.images, batch.labels), by_image)

    def steps_on(next_batch: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(config.steps):
                # Read ahead, as the program does: the step before is still under way.
                states[0], metrics = step(states[0], *next_batch())
            jax.block_until_ready((states[0], metrics))

        return run

    batches = read()
    fixed = next(batches)
    calls = {
        "as the program reads them": steps_on(lambda: next(batches)),
        "one batch, on the device": steps_on(lambda: fixed),
    }
    timings = interleave(calls, config.rounds)
    medians = {name: timing.median / config.steps for name, timing in timings.items()}
    real, alone = medians.values()
    machine = ", ".join(f"{name} {value}" for name, value in describe().items())
    lines = [
        "# Whether images keep the step waiting",
        "",
        f"DynamicNet on `{config.preset}`, batch {config.batch_size}, medians of "
        f"{config.rounds} rounds of {config.steps} steps, in turn:",
        "",
        "| batches | ms a step | quartiles |",
        "|---|---:|---:|",
        *(
            f"| {name} | {medians[name]:.1f} | {timing.low / config.steps:.1f} – "
            f"{timing.high / config.steps:.1f} |"
            for name, timing in timings.items()
        ),
        "",
        f"Reading costs {real / alone - 1:+.1%} of a step.",
        "`python -m benchmarks.pipeline` measures it anew.",
        "",
        f"Machine: {machine}.",
    ]
    config.out.mkdir(parents=True, exist_ok=True)
    write_file(config.out / "pipeline.md", ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
