"""`python -m train predict`: what a trained network sees in images."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from dynconv_jax.diagnostics import capture_attention
from dynconv_jax.weights import write_file
from train.commands.evaluate import TrainedFlags, load_trained
from train.commands.export.exported import Artifact, is_export, read_export
from train.data.batches import evaluation_batches
from train.data.dataset import Domain
from train.data.folder import FolderSource
from train.data.pictures import SUFFIXES
from train.data.walk import find_pictures, say_left_out
from train.errors import TrainError, TrainingFailed
from train.flags.checks import OptionalPath
from train.flags.config import Config, parse_flags
from train.flags.data import OnBadImage
from train.learning.augment import normalize
from train.learning.step import evaluated
from train.printable import printable
from train.showing.console import open_console, say

MOST_EXPERTS = 8  # of whose routers the attention is printed whole

Prediction = dict[str, Any]
# From pictures (b, H, W, C), uint8, to probabilities (b, classes) and the attention of
# each router, (b, K), by its path.
Predictor = Callable[[np.ndarray], tuple[np.ndarray, Mapping[str, np.ndarray]]]
OptionalArtifact = Annotated[
    Artifact | None, tyro.conf.arg(metavar="{stablehlo,onnx,int8}")
]


@dataclasses.dataclass(frozen=True)
class PredictFlags(TrainedFlags):
    """Tells what the network of a run sees in image files, and how it routes them.

    Images are brought to the size and the channels of those that it was trained on,
    which need not be there. A directory of `export` stands for its run, but for the
    routing, which no program of it answers.

    Attributes:
        out: The file to write the predictions to in the place of the screen: .csv, with
            a row for each image, or .jsonl, with a line of JSON for each, which has the
            attention of the routers too.
        top: How many classes to tell for an image, the most probable ones.
        batch_size: How many images are computed at a time.
        artifact: Which program of an exported directory to use; without it,
            model.stablehlo or, where that or flatbuffers is missing, model.onnx.
        arguments: The directory of the run, or of its export, and image files, or
            folders of such.
    """

    out: OptionalPath = None
    top: int = 5
    batch_size: int = 32
    artifact: OptionalArtifact = None
    arguments: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN IMAGE ...")
    ] = ()

    def __post_init__(self):
        """Refuses to predict nothing, and to write what or where nobody can.

        Raises:
            TrainError: If there is no run or no image, or a value is refused.
        """
        if len(self.arguments) < 2:
            raise TrainError(
                "predict needs the directory of a run, or of its export, and image "
                "files: give RUN IMAGE ..."
            )
        self.require_at_least_one("top", "batch_size")
        if self.out is not None:
            is_known = self.out.suffix in WRITERS
            self.require("out", is_known, f"end in {' or '.join(WRITERS)}")
            is_there = self.out.parent.is_dir() and not self.out.is_dir()
            self.require("out", is_there, "be a file in a folder that there is")
            self.require("json", not self.json, "be left out with --out, which says it")


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Args:
        argv: The arguments, without the name of the program and of the command.

    Raises:
        TrainError: If an argument is refused, or the run or an image cannot be read, or
            the predictions not be written.
        SystemExit: With 0, after `--help`.
    """
    flags = parse_flags(argv, PredictFlags, "python -m train predict")
    path, *given = flags.arguments
    config, domain, predictor = _load(path, flags)
    domain = flags.show(domain)
    paths = tuple(chain.from_iterable(map(_files, given)))
    source = FolderSource.unlabelled(paths, domain, config.max_image_pixels)
    predictions = predict(
        *(predictor, source, domain),
        top=flags.top,
        batch_size=flags.batch_size,
        on_bad_image=config.on_bad_image,
    )
    first = next(predictions, None)
    if first is None:
        raise TrainingFailed("none of the images can be read")
    predictions = chain([first], predictions)
    console = open_console()
    if flags.out is not None:
        _write(flags.out, WRITERS[flags.out.suffix](predictions))
        say(console, f"predictions in {printable(flags.out)}")
    elif flags.json:
        print(json.dumps([*predictions], indent=2))
    else:
        for each in predictions:
            say(console, _text(each))


def _load(path: Path, flags: PredictFlags) -> tuple[Config, Domain, Predictor]:
    """Loads a run or an export; returns the flags that say how pictures are read too.

    Raises:
        TrainError: If it cannot be loaded, or a flag is not for such.
    """
    if not is_export(path):
        rule = f"be left out: {path} is no exported directory"
        flags.require("artifact", flags.artifact is None, rule)
        config, domain, model = load_trained(path, flags.weights)
        return flags.adapt(config), domain, predictor_of(model, domain)
    exported = read_export(path, flags.artifact)
    rule = f"be left out: {path} has only those that it was exported with"
    flags.require("weights", flags.weights == "final", rule)
    no_routing: dict[str, np.ndarray] = {}
    return (
        flags.adapt(Config()),
        exported.domain,
        lambda pictures: (exported.call(pictures), no_routing),
    )


def _write(path: Path, content: str) -> None:
    try:
        # A name that is no Unicode keeps the bytes that it has on the disk.
        write_file(path, content.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise TrainingFailed(
            f"--out (={path}) could not be written: {error.strerror}; choose another "
            "file"
        ) from error


def _files(path: Path) -> list[Path]:
    """Returns a file that is named, or the pictures of a folder, as training does."""
    if not path.is_dir():
        return [path]
    found = find_pictures(path)
    say_left_out(path, found.left_out)
    if not found.pictures:
        raise TrainError(f"{printable(path)} has no images ({', '.join(SUFFIXES)})")
    return found.pictures


def predictor_of(model: nnx.Module, domain: Domain) -> Predictor:
    """Returns what a model answers to pictures, as a function.

    Args:
        model: The model.
        domain: What the images are like that it was trained on.
    """
    graphdef, state = nnx.split(evaluated(model))

    @jax.jit
    def forward(state, pictures):
        images = normalize(pictures, domain.mean, domain.std)
        logits, attention = capture_attention(nnx.merge(graphdef, state), images)
        return jax.nn.softmax(logits.astype(jnp.float32)), attention

    return lambda pictures: jax.device_get(forward(state, pictures))


def predict(
    predictor: Predictor,
    source: FolderSource,
    domain: Domain,
    *,
    top: int = 5,
    batch_size: int = 32,
    on_bad_image: OnBadImage = "stop",
) -> Iterator[Prediction]:
    """Yields what is seen in pictures, batch by batch.

    Args:
        predictor: What sees it.
        source: The pictures.
        domain: What the images are like that it was trained on.
        top: How many classes to tell.
        batch_size: How many pictures are computed at a time.
        on_bad_image: Whether one that cannot be read stops it or is left out.

    Yields:
        For each picture its path, under `classes` the most probable ones with their
        `class` and `probability`, and under `attention` that of each router, (K,).

    Raises:
        TrainingFailed: If a picture cannot be read, and `on_bad_image` is "stop".
    """
    size = min(batch_size, len(source))
    for batch, mask in evaluation_batches(source, size, on_bad_image=on_bad_image):
        probabilities, attention = predictor(batch.images)
        for row in np.flatnonzero(mask):
            own = {path: each[row] for path, each in attention.items()}
            yield {
                "image": str(source.paths[batch.indices[row]]),
                **_readable(probabilities[row], own, domain, top),
            }


def _readable(
    probabilities: np.ndarray,
    attention: Mapping[str, np.ndarray],
    domain: Domain,
    top: int,
) -> Prediction:
    best = np.argsort(-probabilities, kind="stable")[:top]
    classes = [
        {"class": domain.class_names[i], "probability": float(probabilities[i])}
        for i in best
    ]
    shares = {path: each.tolist() for path, each in attention.items()}
    return {"classes": classes, "attention": shares}


def _as_csv(predictions: Iterable[Prediction]) -> str:
    """Returns a row for each image: its path, and its classes with probabilities."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for number, each in enumerate(predictions):
        if number == 0:
            header = ["image", "class", "probability"]
            for place in range(2, len(each["classes"]) + 1):
                header += [f"class_{place}", f"probability_{place}"]
            writer.writerow(header)
        found = ((one["class"], f"{one['probability']:.6g}") for one in each["classes"])
        writer.writerow([each["image"], *chain.from_iterable(found)])
    return text.getvalue()


def _as_json_lines(predictions: Iterable[Prediction]) -> str:
    return "".join(json.dumps(each) + "\n" for each in predictions)


# How predictions are written, by the ending of the file.
WRITERS = {".csv": _as_csv, ".jsonl": _as_json_lines}


def _text(prediction: dict[str, Any]) -> str:
    """Returns a prediction as lines of text."""
    lines = [printable(prediction["image"])]
    for each in prediction["classes"]:
        lines.append(f"  {each['probability']:7.2%}  {each['class']}")
    for path, shares in prediction["attention"].items():
        if len(shares) <= MOST_EXPERTS:
            told = " ".join(f"{share:.2f}" for share in shares)
        else:
            expert = int(np.argmax(shares))
            told = f"most, {shares[expert]:.2f}, for {expert} of {len(shares)} experts"
        lines.append(f"  {path}: {told}")
    return "\n".join(lines)
