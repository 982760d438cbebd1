"""The files of a run: what they are called, and how those that tell of it are read."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Required, TypedDict

from msgspec import Meta

from train.data.dataset import PARTS, Domain
from train.errors import TrainError
from train.flags.data import LARGEST_SIDE, Interpolation
from train.storage.read_json import Unreadable, convert, parse, read_file, read_json

CONFIG = "config.json"
DOMAIN = "domain.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
WEIGHTS = "model.safetensors"
BEST_WEIGHTS = "best.safetensors"
EMA_WEIGHTS = "ema.safetensors"
# The weights of a run by what they are called on a command line; the first is usual.
Weights = Literal["final", "best", "ema"]
WEIGHT_FILES = {"final": WEIGHTS, "best": BEST_WEIGHTS, "ema": EMA_WEIGHTS}
PICTURE = "routing.png"
REPORT = "report.html"
FILES = (
    *(CONFIG, DOMAIN, METRICS, SUMMARY, WEIGHTS, BEST_WEIGHTS, EMA_WEIGHTS),
    *(PICTURE, REPORT),
)
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
FOLDERS = (CHECKPOINTS, TENSORBOARD)
# A run of its own, and which of its figures the summary has too, as twin_...; those of
# its size are there as static_... in any case.
TWIN = "twin"
TWIN_FIGURES = (
    *("test_accuracy", "test_loss", "ema_test_accuracy", "ema_test_loss"),
    *("val_accuracy", "val_loss", "ema_val_accuracy", "ema_val_loss"),
    "images_per_second",
)
LOCK = ".lock"

# Beside the flags in config.json: a name that no other run has.
RUN_ID = "run_id"

# What the files must hold. Whole numbers are such as a float has exactly, and others
# such as a float32 has: axes and bars can be drawn of them.
Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Figure = Annotated[float, Meta(ge=-1e39, le=1e39)]
Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=1e39)]
Rate = Annotated[float, Meta(gt=0, le=1e39)]
Side = Annotated[int, Meta(ge=1, le=LARGEST_SIDE)]


class MetricsRow(TypedDict, total=False):
    """A line of the metrics: of a training step, or of an evaluation."""

    step: Required[Count]
    loss: Figure
    accuracy: Share
    learning_rate: Figure
    gradient_norm: Figure
    temperature: Figure
    assignment: Figure
    images_per_second: Figure
    test_loss: Figure
    test_accuracy: Share
    ema_test_loss: Figure
    ema_test_accuracy: Share
    val_loss: Figure
    val_accuracy: Share
    ema_val_loss: Figure
    ema_val_accuracy: Share
    entropy: dict[str, Figure]
    usage: dict[str, list[Share]]


class Summary(TypedDict, total=False):
    """The figures of a finished run."""

    test_accuracy: Share
    test_loss: Figure
    ema_test_accuracy: Share
    ema_test_loss: Figure
    best_test_accuracy: Share | None
    val_accuracy: Share
    val_loss: Figure
    ema_val_accuracy: Share
    ema_val_loss: Figure
    best_val_accuracy: Share | None
    best_step: Count | None
    steps: Count
    stopped_early: bool
    images_per_second: Rate
    compile_seconds: Seconds
    wall_seconds: Seconds
    parameters: Positive
    multiply_adds: Positive
    static_parameters: Positive
    static_multiply_adds: Positive
    twin_test_accuracy: Share
    twin_test_loss: Figure
    twin_ema_test_accuracy: Share
    twin_ema_test_loss: Figure
    twin_val_accuracy: Share
    twin_val_loss: Figure
    twin_ema_val_accuracy: Share
    twin_ema_val_loss: Figure
    twin_images_per_second: Rate
    params_sha256: str


class Images(TypedDict, total=False):
    """What the images of a run are like, and what they are told by."""

    class_names: Required[Annotated[list[str], Meta(min_length=1)]]
    image_shape: Required[tuple[Side, Side, Literal[1, 3]]]
    mean: Required[list[Figure]]
    std: Required[list[Rate]]
    interpolation: Interpolation
    crop_pct: Annotated[float, Meta(gt=0, le=1)]
    train_images: Count
    test_images: Count
    val_images: Count
    labels_sha256: str


class Length(TypedDict, total=False):
    """How long a run is, among its flags."""

    steps: Positive
    restarts: tuple[Positive, ...]


def weights_to_start_from(path: Path | None) -> Path | None:
    """Returns the file that `--init-from` means.

    Args:
        path: A file, or the directory of a run, of which it is what `evaluate` and
            `predict` load if they are not told otherwise; or None.

    Raises:
        TrainError: If it is a directory that has no such file.
    """
    if path is None or not path.is_dir():
        return path
    if not (path / WEIGHTS).is_file():
        others = [
            str(path / name)
            for name in WEIGHT_FILES.values()
            if (path / name).is_file()
        ]
        remedy = f"give {' or '.join(others)}" if others else "give a file of weights"
        raise TrainError(
            f"--init-from (={path}) must be a file or a run that is finished, and has "
            f"no {WEIGHTS}; {remedy}"
        )
    return path / WEIGHTS


def read_config(path: Path) -> dict[str, Any]:
    """Returns the flags of the run in the directory `path`, as JSON has them.

    Raises:
        TrainError: If there is none.
    """
    flags = _read_config(path)
    flags.pop(RUN_ID, None)
    return flags


def read_length(path: Path) -> tuple[int | None, tuple[int, ...]]:
    """Returns how long the run in the directory `path` is to be, and its restarts.

    Raises:
        TrainError: If there is no run, or it does not say so.
    """
    try:
        length = convert(_read_config(path), Length)
    except Unreadable as error:
        _refuse_run(path, error, error)
    return length.get("steps"), length.get("restarts", ())


def read_run_id(path: Path) -> str | None:
    """Returns the name that no run has but that in the directory `path`.

    Returns:
        The name; None if an earlier version of the program, which gave none, began it.

    Raises:
        TrainError: If there is no run, or its name cannot be read.
    """
    name = _read_config(path).get(RUN_ID)
    try:
        return convert(name, str | None)
    except Unreadable as error:
        _refuse_run(path, f"{RUN_ID}: {error}", error)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return read_json(path / CONFIG, dict[str, Any])
    except (FileNotFoundError, Unreadable) as error:
        reason = error.strerror if isinstance(error, FileNotFoundError) else error
        _refuse_run(path, reason, error)


def _refuse_run(path: Path, reason: object, error: Exception) -> NoReturn:
    raise TrainError(
        f"{path} holds no run: {CONFIG} cannot be read ({reason}); give the "
        "directory of a run"
    ) from error


def read_domain(path: Path) -> Domain:
    """Returns what the images of the run in the directory `path` are like.

    Raises:
        TrainError: If it does not say.
    """
    return Domain.of(read_identity(path))


def read_identity(path: Path) -> dict[str, Any]:
    """Returns what the images of the run in the directory `path` are told by.

    Raises:
        TrainError: If it does not say.
    """
    try:
        images = read_json(path / DOMAIN, Images)
        check_channels(images)
        return images
    except (FileNotFoundError, Unreadable) as error:
        reason = error.strerror if isinstance(error, FileNotFoundError) else error
        raise TrainError(
            f"{path / DOMAIN} cannot be read ({reason}); remove it and give the run's "
            "command again to write it anew"
        ) from error


def check_channels(images: Mapping[str, Any]) -> None:
    """Refuses images with other numbers of means and deviations than of channels.

    Args:
        images: What they are like, as `Images`.

    Raises:
        Unreadable: If a number is another.
    """
    channels = images["image_shape"][-1]
    for name in ("mean", "std"):
        if len(images[name]) != channels:
            raise Unreadable(
                f"{name} has {len(images[name])} numbers, and the images have "
                f"{channels} channel(s)"
            )


def read_summary(path: Path, *needed: str) -> dict[str, Any] | None:
    """Returns the figures of the run in the directory `path`, None if not finished.

    Args:
        path: The directory.
        *needed: Figures that must be among them, beside the accuracy in the test or in
            validation.

    Raises:
        TrainError: If they cannot be read, or one that is needed is missing.
    """
    try:
        summary = read_json(path / SUMMARY, Summary)
        if "val_accuracy" not in summary:
            needed = ("test_accuracy", *needed)
        for name in needed:
            if summary.get(name) is None:
                raise Unreadable(f"it has no {name}")
        return summary
    except FileNotFoundError:
        return None
    except Unreadable as error:
        raise TrainError(
            f"{path / SUMMARY} cannot be read ({error}); remove it and give the run's "
            "command again to finish it anew"
        ) from error


def has_twin(summary: Mapping[str, Any]) -> bool:
    """Tells whether a static twin was trained with the run of a summary."""
    return any(f"twin_{part}_accuracy" in summary for part in PARTS)


def read_metrics(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields the lines of the metrics of the run in the directory `path`, and rows.

    A last line that was written by half, as by a run that died, is left out.

    Raises:
        TrainError: If they cannot be read.
    """
    file = path / METRICS
    try:
        content = read_file(file)
    except FileNotFoundError:
        return
    except Unreadable as error:
        raise TrainError(
            f"{file} cannot be read ({error}); see to that, or remove it"
        ) from error
    whole, _, _ = content.rpartition(b"\n")
    # By line feeds alone, as they are written: text in them may hold other breaks.
    for number, line in enumerate(whole.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield line + b"\n", parse(line, MetricsRow)
        except Unreadable as error:
            raise TrainError(
                f"{file}, line {number}: cannot be read ({error}); mend or remove the "
                "line"
            ) from error


def refuse_other_images(
    found: Mapping[str, Any], known: Mapping[str, Any], path: Path
) -> None:
    """Refuses images that are not those of a run, as far as both are described.

    Args:
        found: What the images are told by, or only what they are like.
        known: The same of those of the run.
        path: The directory of the run.

    Raises:
        TrainError: If they are others.
    """
    # One text has several spellings: a run may have begun with another of its classes.
    known = dict(known) | Domain.of(known).to_json()
    for name in [name for name in found if name in known]:
        if found[name] != known[name]:
            raise TrainError(
                f"the images have {name} {found[name]}, and those that the run in "
                f"{path} began with {known[name]}; give the same images"
            )
