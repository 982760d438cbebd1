"""What a run is told: its flags, their defaults, and what is refused at the door."""

import contextlib
import dataclasses
import difflib
import io
import math
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


class TrainError(Exception):
    """A failure that one line explains to the person who started the run.

    Attributes:
        exit_status: What the program exits with.
    """

    exit_status = 2


class TrainingFailed(TrainError):
    """A run that was started well and could not be finished."""

    exit_status = 1


# None stands for a value that the other flags give; it need not be typed.
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a DynamicNet; without arguments, on handwritten digits in a minute.

    The results are written to --out: metrics.jsonl, summary.json, config.json,
    model.safetensors (PyTorch layout) and routing.png (what the routers learned).

    Attributes:
        preset: The data to train on. digits: the 1797 handwritten digits of
            scikit-learn, 8x8 pixels, one fifth of them held out for the test.
        steps: How many optimizer steps to take.
        batch_size: How many images a step sees, over all devices together; it must be
            divisible by the number of devices.
        seed: Where the initial parameters, the order of the images and the dropout come
            from. The same seed and flags on the same machine give the same parameters.
        out: The directory for the results, created if missing. Without it, a fresh one
            below runs/, named by preset and time.
        overwrite: Accept an --out that is not empty and replace the results of the run
            in it; other files in it are left alone.
        learning_rate: The peak learning rate of AdamW.
        warmup_steps: Over how many steps the learning rate rises to its peak, before it
            falls along a cosine; without it, a tenth of --steps.
        weight_decay: The decoupled weight decay of the kernels. Norms and biases have
            none.
        router_weight_decay: The same for the kernels of the routers, which have this
            one in its place.
        num_experts: How many expert kernels each dynamic convolution mixes.
        reduction: By how much the hidden layer of a router is narrower than its input.
        top_k: How many experts a router keeps for an image; without it, all.
        router_dropout: The share of a router's hidden units that is dropped in
            training.
        load_balance: The weight of the load-balancing loss, the mean over all routers,
            which asks that a batch use all experts alike.
        temperature_start: The temperature of the routers' softmax at the first step. A
            high one has all experts learn before the routers choose among them.
        temperature_end: The temperature that it falls to, along a line.
        temperature_steps: When it arrives there; without it, after half of --steps.
        log_every: Every how many steps to log the metrics; the last step is always
            logged.
        eval_every: Every how many steps to evaluate on the test set; the last step
            always is.
    """

    preset: Literal["digits"] = "digits"
    steps: int = 400
    batch_size: int = 64
    seed: int = 0
    out: OptionalPath = None
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    learning_rate: float = 2e-3
    warmup_steps: OptionalInt = None
    weight_decay: float = 0.05
    router_weight_decay: float = 0.0
    num_experts: int = 4
    reduction: int = 4
    top_k: OptionalInt = None
    router_dropout: float = 0.0
    load_balance: float = 0.0
    temperature_start: float = 4.0
    temperature_end: float = 0.1
    temperature_steps: OptionalInt = None
    log_every: int = 20
    eval_every: int = 100

    def __post_init__(self):
        """Refuses what no run could use.

        Raises:
            TrainError: If a value is out of range or does not fit another.
        """
        for name in ("steps", "num_experts", "reduction", "log_every", "eval_every"):
            self._require(name, getattr(self, name) >= 1, "be at least 1")
        self._require(
            "batch_size",
            self.batch_size >= 2,
            "be at least 2: batch norm needs more than one image",
        )
        self._require("seed", 0 <= self.seed < 2**32, "be from 0 to 4294967295")
        for name in ("learning_rate", "temperature_start", "temperature_end"):
            is_positive = 0 < getattr(self, name) < math.inf
            self._require(name, is_positive, "be positive and finite")
        for name in ("weight_decay", "router_weight_decay", "load_balance"):
            is_weight = 0 <= getattr(self, name) < math.inf
            self._require(name, is_weight, "be finite and at least 0")
        self._require(
            "router_dropout",
            0 <= self.router_dropout < 1,
            "be at least 0 and less than 1",
        )
        self._require(
            "warmup_steps",
            0 <= self.warmup < self.steps,
            f"be at least 0 and less than --steps (={self.steps})",
        )
        self._require("temperature_steps", self.annealing >= 1, "be at least 1")
        if self.top_k is not None:
            self._require(
                "top_k",
                1 <= self.top_k <= self.num_experts,
                f"be from 1 to --num-experts (={self.num_experts})",
            )

    def _require(self, name: str, is_met: bool, rule: str) -> None:
        if not is_met:
            value = getattr(self, name)
            raise TrainError(f"{flag_of(name)} (={value}) must {rule}")

    @property
    def warmup(self) -> int:
        """The steps of warm-up, given or derived."""
        return self.steps // 10 if self.warmup_steps is None else self.warmup_steps

    @property
    def annealing(self) -> int:
        """The steps of annealing the temperature, given or derived."""
        if self.temperature_steps is None:
            return max(1, self.steps // 2)
        return self.temperature_steps

    def to_json(self) -> dict[str, Any]:
        """Returns the flags as JSON has them, with those derived filled in."""
        return dataclasses.asdict(self) | {
            "out": None if self.out is None else str(self.out),
            "warmup_steps": self.warmup,
            "temperature_steps": self.annealing,
        }


def flag_of(name: str) -> str:
    """Returns the flag of a field of `Config`."""
    return "--" + name.replace("_", "-")


def parse(argv: Sequence[str]) -> Config:
    """Reads the command line.

    Args:
        argv: The arguments, without the name of the program.

    Returns:
        The configuration, valid in itself.

    Raises:
        TrainError: If a flag is unknown or a value is refused.
        SystemExit: With 0, after `--help`.
    """
    if "-h" in argv or "--help" in argv:
        tyro.cli(Config, prog="python -m train", args=["--help"])
    try:
        config, unknown = _read(argv)
    except SystemExit:
        raise TrainError(_explain(argv)) from None
    if unknown:
        flag = unknown[0].split("=")[0]
        known = [flag_of(field.name) for field in dataclasses.fields(Config)]
        close = difflib.get_close_matches(flag.replace("_", "-"), known, n=1)
        hint = f"did you mean {close[0]}?" if close else "--help lists the flags"
        raise TrainError(f"{unknown[0]!r} is no flag of this program; {hint}")
    return config


def _read(argv: Sequence[str]) -> tuple[Config, list[str]]:
    with contextlib.redirect_stderr(io.StringIO()):  # tyro's box; see _explain
        return tyro.cli(Config, args=list(argv), return_unknown_args=True)


def _explain(argv: Sequence[str]) -> str:
    """Says in one line which value could not be read.

    tyro explains it in a box of several lines; so each flag is read on its own, and the
    first that cannot be read is named.
    """
    groups: list[list[str]] = []
    for token in argv:
        if token.startswith("--"):
            groups.append(token.split("=", 1))
        elif groups:
            groups[-1].append(token)
    hints = typing.get_type_hints(Config)
    for group in groups:
        try:
            _read(group)
        except TrainError:
            continue  # Readable; out of range only without the flags around it.
        except SystemExit:
            flag = group[0].replace("_", "-")
            field = flag[2:].replace("-", "_")
            if field not in hints:  # a flag of tyro's own
                continue
            kind = _kind(hints[field])
            if len(group) == 1:
                return f"{flag} needs a value: give {kind}"
            return f"{flag} (={group[1]}) must be {kind}"
    return "the arguments cannot be read; --help shows how they are written"


def _kind(hint: Any) -> str:
    """Returns the words for the values that a type hint admits."""
    members = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return f"one of: {', '.join(members)}"
    if hint is int or int in members:
        return "a whole number"
    return "a number" if hint is float else "a path"
