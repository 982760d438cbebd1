"""`python -m train predict`: what a trained network sees in images."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from dynconv_jax.diagnostics import capture_attention
from train.commands.evaluate import TrainedFlags, load_trained
from train.data.dataset import Domain
from train.data.pictures import (
    SUFFIXES,
    UnreadableImage,
    put_up_with,
    read_picture,
)
from train.data.walk import find_pictures, say_left_out
from train.errors import TrainError
from train.flags.config import Config, parse_flags
from train.learning.augment import normalize
from train.printable import printable
from train.showing.console import open_console, say

TOP = 5
MOST_EXPERTS = 8  # of whose routers the attention is printed whole


@dataclasses.dataclass(frozen=True)
class PredictFlags(TrainedFlags):
    """Tells what the network of a run sees in image files, and how it routes them.

    Images are brought to the size and the channels of those that it was trained on,
    which need not be there.

    Attributes:
        arguments: The directory of the run, and image files, or folders of such.
    """

    arguments: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN IMAGE ...")
    ] = ()

    def __post_init__(self):
        """Refuses to predict nothing.

        Raises:
            TrainError: If there is no run or no image.
        """
        if len(self.arguments) < 2:
            raise TrainError(
                "predict needs the directory of a run and image files: give RUN IMAGE "
                "..."
            )


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Args:
        argv: The arguments, without the name of the program and of the command.

    Raises:
        TrainError: If an argument is refused, or the run or an image cannot be read.
        SystemExit: With 0, after `--help`.
    """
    flags = parse_flags(argv, PredictFlags, "python -m train predict")
    run, *paths = flags.arguments
    config, domain, model = load_trained(run, flags.weights)
    paths, pictures = _read(paths, flags.adapt(config), domain)
    predictions = [
        {"image": str(path)} | each
        for path, each in zip(paths, predict(model, pictures, domain), strict=True)
    ]
    if flags.json:
        print(json.dumps(predictions, indent=2))
        return
    console = open_console()
    for each in predictions:
        say(console, _text(each))


def _read(
    given: Sequence[Path], config: Config, domain: Domain
) -> tuple[list[Path], list[np.ndarray]]:
    """Returns the pictures in files and below folders, and where each was.

    Raises:
        TrainError: If there is none, or one cannot be read and none is to be skipped.
    """
    paths, pictures = [], []
    for path in chain.from_iterable(map(_files, given)):
        try:
            picture = read_picture(path, domain.image_shape, config.max_image_pixels)
        except UnreadableImage as error:
            put_up_with(str(error), config.on_bad_image)
            continue
        paths.append(path)
        pictures.append(picture)
    if not pictures:
        raise TrainError("none of the images can be read")
    return paths, pictures


def _files(path: Path) -> list[Path]:
    """Returns a file that is named, or the pictures of a folder, as training does."""
    if not path.is_dir():
        return [path]
    found = find_pictures(path)
    say_left_out(path, found.left_out)
    if not found.pictures:
        raise TrainError(f"{printable(path)} has no images ({', '.join(SUFFIXES)})")
    return found.pictures


def predict(
    model: nnx.Module, pictures: Sequence[np.ndarray], domain: Domain
) -> list[dict[str, Any]]:
    """Returns what a model sees in pictures.

    Args:
        model: The model.
        pictures: Each (H, W, C) uint8.
        domain: What the images are like that it was trained on.

    Returns:
        For each picture, under `classes` the most probable ones with their `class` and
        `probability`, and under `attention` that of each router, (K,).
    """
    view = nnx.view(
        model,
        use_running_average=True,
        deterministic=True,
        raise_if_not_found=False,
    )
    graphdef, state = nnx.split(view)

    @jax.jit  # of one picture at a time: many files do not need much memory
    def forward(state, picture):
        images = normalize(picture[None], domain.mean, domain.std)
        logits, attention = capture_attention(nnx.merge(graphdef, state), images)
        probabilities = jax.nn.softmax(logits.astype(jnp.float32))
        return probabilities[0], jax.tree.map(lambda each: each[0], attention)

    answers = (forward(state, jnp.asarray(picture)) for picture in pictures)
    return [_readable(classes, attention, domain) for classes, attention in answers]


def _readable(
    probabilities: jax.Array, attention: Mapping[str, jax.Array], domain: Domain
) -> dict[str, Any]:
    best = np.argsort(-np.asarray(probabilities), kind="stable")[:TOP]
    classes = [
        {"class": domain.class_names[i], "probability": float(probabilities[i])}
        for i in best
    ]
    shares = {path: each.tolist() for path, each in attention.items()}
    return {"classes": classes, "attention": shares}


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
