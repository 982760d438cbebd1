"""`python -m train evaluate`: a trained network on images that it did not see."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import tyro
from flax import nnx
from rich.markup import escape
from rich.table import Table

from dynconv_jax.weights import load_weights
from train.data import presets
from train.data.dataset import PARTS, Dataset, Domain, Part
from train.errors import TrainError
from train.flags.checks import (
    Flags,
    OptionalFloat,
    OptionalInt,
    OptionalPath,
    Switch,
)
from train.flags.config import Config, parse_flags
from train.flags.data import OptionalInterpolation, OptionalOnBadImage
from train.learning.evaluation import Evaluation, evaluate
from train.learning.model import create
from train.learning.step import create_state, make_eval_step
from train.machines import devices
from train.showing.console import open_console, say, show_table
from train.storage.finished import read_run
from train.storage.run_files import (
    WEIGHT_FILES,
    Weights,
    read_domain,
    refuse_other_images,
)

OptionalPart = Annotated[Part | None, tyro.conf.arg(metavar="{test,val}")]


@dataclasses.dataclass(frozen=True)
class TrainedFlags(Flags):
    """What every command is told that loads the network of a run.

    Attributes:
        weights: Which to load: those after the last step, those with the best accuracy
            in evaluation (averages, in a run that has them), or the moving average.
        on_bad_image: What to do about an image that cannot be read: stop, or skip it,
            which is said; without it, what the run was told.
        max_image_pixels: The pixels of the largest picture to read; without it, what
            the run was told.
        interpolation: How pictures are scaled; without it, as the run was told.
        crop_pct: The share of a picture that is kept, as in training; without it, what
            the run was told.
        json: Print the results as JSON.
    """

    weights: Weights = "final"
    on_bad_image: OptionalOnBadImage = None
    max_image_pixels: OptionalInt = None
    interpolation: OptionalInterpolation = None
    crop_pct: OptionalFloat = None
    json: Switch = False

    def adapt(self, config: Config) -> Config:
        """Returns the flags of a run with those that are given anew.

        Raises:
            TrainError: If a value is out of range.
        """
        given = self._given("on_bad_image", "max_image_pixels")
        return dataclasses.replace(config, **given)

    def show(self, domain: Domain) -> Domain:
        """Returns a domain whose pictures are shown to the network as it is given anew.

        Raises:
            TrainError: If a value is out of range.
        """
        is_met = self.crop_pct is None or 0 < self.crop_pct <= 1
        self.require("crop_pct", is_met, "be above 0 and at most 1")
        return dataclasses.replace(domain, **self._given("interpolation", "crop_pct"))

    def _given(self, *names: str) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class OneRunFlags(TrainedFlags):
    """What a command is told about one run and the images of it.

    Attributes:
        data: Where the files of the preset are, if elsewhere than in training.
        class_map: Where the file of --class-map is, in the same way.
        run: The directory of the run.
    """

    COMMAND: ClassVar[str]

    data: OptionalPath = None
    class_map: OptionalPath = None
    run: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")
    ] = ()

    def __post_init__(self):
        """Refuses more or fewer than one run.

        Raises:
            TrainError: If it is not one.
        """
        if len(self.run) != 1:
            raise TrainError(
                f"{self.COMMAND} needs the directory of one run, and was given "
                f"{len(self.run)}: give RUN"
            )

    def load_images(self, config: Config, domain: Domain) -> tuple[Config, Dataset]:
        """Returns the flags of the run with those given anew, and its images.

        Raises:
            TrainError: If they cannot be read, or are not like those of the run.
        """
        domain = self.show(domain)
        config = dataclasses.replace(
            self.adapt(config),
            data=self.data or config.data,
            class_map=self.class_map or config.class_map,
            interpolation=domain.interpolation,
            crop_pct=domain.crop_pct,
        )
        dataset = presets.load(config)
        # They may be others, if they are alike.
        refuse_other_images(dataset.to_json(), domain.to_json(), self.run[0])
        return config, dataset


@dataclasses.dataclass(frozen=True)
class EvaluateFlags(OneRunFlags):
    """Evaluates the network of a run on the test images of its preset.

    Attributes:
        part: On which images: test, or val for those that --val-split kept for
            validation; without it, on those of the test, where there are any.
    """

    COMMAND = "evaluate"

    part: OptionalPart = None


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Args:
        argv: The arguments, without the name of the program and of the command.

    Raises:
        TrainError: If an argument is refused, the run or its data cannot be read, or
            the data are not like those that it was trained on.
        SystemExit: With 0, after `--help`.
    """
    flags = parse_flags(argv, EvaluateFlags, "python -m train evaluate")
    path = flags.run[0]
    config, domain, model = load_trained(path, flags.weights)
    config, dataset = flags.load_images(config, domain)
    part = flags.part or ("test" if dataset.has("test") else "val")
    if not dataset.has(part):
        raise TrainError(
            f"--part (={part}) must be left out: the run in {path} has no "
            f"{PARTS[part]} images"
        )
    mesh = devices.make_mesh()
    everywhere = devices.everywhere(mesh)
    graphdef, state = nnx.split(create_state(model, config))
    eval_step = make_eval_step(
        *(graphdef, dataset.num_classes, (dataset.mean, dataset.std)), everywhere
    )
    state = jax.device_put(state, everywhere)
    evaluation = evaluate(eval_step, state, dataset, config, mesh, part)
    results = _results(evaluation, dataset)
    if flags.json:
        asked = {"run": str(path), "weights": flags.weights}
        print(json.dumps(asked | results, indent=2))
    else:
        _show(results, flags.weights, part)


def load_trained(
    path: Path, weights: Weights = "final", **changes: Any
) -> tuple[Config, Domain, nnx.Module]:
    """Loads what a run trained; its data need not be there.

    Args:
        path: The directory of the run.
        weights: Which to load: those after the last step, those with the best accuracy
            in evaluation, or the moving average.
        **changes: Flags of the model to have otherwise than the run had them.

    Returns:
        Its flags, without those of where it started from and who shared it; what its
        images are like; and its model.

    Raises:
        TrainError: If there is no such run, or it has no such weights (yet).
    """
    run = read_run(path)
    config = dataclasses.replace(
        run.config,
        **dict.fromkeys(("coordinator", "num_processes", "process_id")),
        **dict.fromkeys(("init_from", "ema_decay")),
        **dict.fromkeys(("head_learning_rate", "router_learning_rate")),
        init_noise=0.0,
        new_head=False,
        freeze=(),
        layer_decay=1.0,
        **changes,
    )
    file = path / WEIGHT_FILES[weights]
    if not file.exists():
        remedy = "choose others, or give the run's command again to go on with it"
        if weights == "ema" and run.config.ema_decay is None:
            remedy = "choose others: the run had no --ema-decay"
        raise TrainError(
            f"--weights (={weights}) must be there, but {path} has no {file.name}; "
            f"{remedy}"
        )
    domain = read_domain(path)
    channels = domain.image_shape[-1]
    model = create(config, domain.num_classes, channels, nnx.Rngs(config.seed))
    try:
        load_weights(model, file)
    except (OSError, ValueError) as error:
        message = " ".join(str(error).split())
        raise TrainError(f"{file} cannot be loaded: {message}") from error
    return config, domain, model


def _results(evaluation: Evaluation, dataset: Dataset) -> dict[str, Any]:
    confusion = evaluation.confusion
    counts = confusion.sum(1).tolist()
    classes = [
        {
            "class": name,
            "images": count,
            "accuracy": right / count if count else None,
        }
        for name, count, right in zip(
            *(dataset.class_names, counts, confusion.diagonal().tolist()), strict=True
        )
    ]
    return {
        "images": sum(counts),
        **evaluation.scores(),
        "classes": classes,
        **evaluation.routing(),
    }


def _show(results: dict[str, Any], weights: str, part: Part) -> None:
    console = open_console()
    say(
        console,
        f"{weights} weights on {results['images']:,} {PARTS[part]} images: accuracy "
        f"{results[f'{part}_accuracy']:.4f}, loss {results[f'{part}_loss']:.4f}",
    )
    classes = Table("class", show_edge=False)
    for name in ("images", "accuracy"):
        classes.add_column(name, justify="right")
    for each in results["classes"]:
        accuracy = "–" if each["accuracy"] is None else f"{each['accuracy']:.4f}"
        classes.add_row(escape(each["class"]), f"{each['images']:,}", accuracy)
    show_table(console, classes)
    if not results["entropy"]:
        return
    routers = Table("router", show_edge=False)
    routers.add_column("entropy", justify="right")
    routers.add_column("images an expert wins")
    routers.add_column("dead experts", justify="right")
    for path, entropy in results["entropy"].items():
        shares = " ".join(f"{share:.0%}" for share in results["usage"][path])
        dead = str(results["dead_experts"][path])
        routers.add_row(escape(path), f"{entropy:.3f}", shares, dead)
    show_table(console, routers)
