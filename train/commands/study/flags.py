"""The flags of a study."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import tyro

from dynconv_jax import list_convolutions
from train.commands.study.plan import Entrant
from train.flags.checks import Flags, OptionalInt, OptionalPath
from train.flags.config import Config


@dataclasses.dataclass(frozen=True)
class StudyFlags(Flags):
    """Compares the family with static nets of equal parameters, multiply-adds and time.

    The runs are ordinary ones of DynamicNet on Fashion-MNIST, each in a directory below
    --out, and the page with its table and plot is written to --page. The same command
    again goes on where the study was stopped, or writes the page anew. With the
    defaults it takes about half an hour on two processors.

    Attributes:
        convs: Which members of the family take part; all, without it.
        seeds: With how many seeds each net is trained.
        steps: How many steps each net is trained for, but for those that are given the
            time of another.
        batch_size: How many images a step sees.
        learning_rate: The peak learning rate, of all.
        width_mult: The width of the members, of that of DynamicNet.
        jobs: How many runs go on at a time, each on its share of the processors; 2 by
            default, where there are as many. Choose 1 on an accelerator.
        data: The directory of the four files of Fashion-MNIST; by default that of
            Debian's package dataset-fashion-mnist.
        out: The directory for the runs.
        page: The directory for index.md, accuracy.png and results.json; --out, without
            it.
    """

    convs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    seeds: int = 5
    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 2e-3
    width_mult: float = 0.25
    jobs: OptionalInt = None
    data: OptionalPath = None
    out: Path = Path("runs/study")
    page: OptionalPath = None

    def __post_init__(self):
        """Refuses what no study could use.

        Raises:
            TrainError: If a value is out of range.
        """
        known = [name for name in list_convolutions() if name != "static"]
        rule = f"name some of {', '.join(known)}, each once"
        is_known = set(self.convs) <= set(known)
        is_once = len(set(self.convs)) == len(self.convs)
        self.require("convs", is_known and is_once, rule)
        rule = "be at least 2: one seed says nothing about others"
        self.require("seeds", self.seeds >= 2, rule)
        self.require("steps", self.steps >= 2, "be at least 2")
        rule = "be at least 2: batch norm needs more than one image"
        self.require("batch_size", self.batch_size >= 2, rule)
        self.require_positive("learning_rate", "width_mult")
        rule = f"be from 1 to {processors()}, the number of processors"
        self.require("jobs", 1 <= self.side_by_side <= processors(), rule)

    @property
    def side_by_side(self) -> int:
        """How many runs go on at a time, given or derived."""
        return min(2, processors()) if self.jobs is None else self.jobs

    @property
    def members(self) -> list[Entrant]:
        """The members of the family that take part."""
        names = self.convs or [name for name in list_convolutions() if name != "static"]
        return [Entrant(name, self.width_mult, self.steps) for name in names]

    @property
    def base(self) -> Entrant:
        """The static net of their width."""
        return Entrant("static", self.width_mult, self.steps)

    def config_of(self, entrant: Entrant, seed: int) -> Config:
        """Returns the flags of a run.

        Temperatures fall from 30 to 1 in a tenth of the steps, as in the training of
        Chen et al. and of ODConv; the rest is as the program has it by default.
        """
        steps = entrant.steps
        return Config(
            preset="fashion",
            data=self.data,
            conv=entrant.conv,
            model_options=(f"width_mult={entrant.width_mult}",),
            steps=steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            temperature_start=30.0,
            temperature_end=1.0,
            temperature_steps=max(1, steps // 10),
            seed=seed,
            log_every=max(1, steps // 20),
            eval_every=steps,
            checkpoint_every=max(1, steps // 4),
            keep_checkpoints=1,
            out=self.out / f"{entrant.name}-seed{seed}",
        )


def processors() -> int:
    """Returns how many processors this program may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
