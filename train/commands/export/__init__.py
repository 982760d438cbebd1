"""`python -m train export`: a trained network as files that need nothing of ours."""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from flax import nnx

from _dynconv_version import __version__
from dynconv_jax import save_pretrained
from dynconv_jax.weights import new_directory
from train.commands.evaluate import OneRunFlags, load_trained
from train.commands.export import twin
from train.commands.export.exported import digest
from train.commands.export.page import page
from train.commands.export.pictures import accuracy_of, spread_pictures
from train.commands.export.programs import (
    PLATFORMS,
    answers,
    classifier,
    fold,
    load_stablehlo,
    to_stablehlo,
)
from train.commands.export.static import collapsed
from train.data.dataset import Dataset
from train.errors import TrainError, TrainingFailed
from train.flags.checks import OptionalPath, Switch
from train.flags.config import Config, parse_flags
from train.showing.console import open_console, say
from train.showing.report.exported import show_export
from train.storage.export_files import (
    EXPORT,
    FIGURES,
    MODEL,
    README,
    STABLEHLO,
    WEIGHTS,
    check_place,
)
from train.storage.read_json import read_json

Format = Literal["stablehlo", "onnx", "int8", "pt2"]
OptionalDtype = Annotated[
    Literal["float32", "bfloat16"] | None,
    tyro.conf.arg(metavar="{float32,bfloat16}"),
]

# The modules that a format needs beside those of the program.
NEEDED: dict[str, tuple[str, ...]] = {
    "stablehlo": ("flatbuffers",),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "int8": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "pt2": ("torch", "onnx", "onnxscript", "onnxruntime"),
}

# Test pictures that all files are tried on: in batches of 1, 3 and 17.
PICTURES = 21
# Those on which it is seen what weights of 8 bits cost.
TRIAL = 2000

# How far probabilities may be apart, as a share of the largest one: rounding, in
# another order. In bfloat16 the folding of batch norms rounds each weight anew.
AGREEMENT = {"float32": 1e-4, "bfloat16": 5e-2}


@dataclasses.dataclass(frozen=True)
class ExportFlags(OneRunFlags):
    """Writes the network of a run as files that need nothing of this program.

    They take pictures of uint8, in any number, and answer probabilities; the
    normalisation is in them. All of them are held against the network on test pictures,
    and nothing is written if one differs. The run's report.html shows what was written.

    Attributes:
        out: The directory to write, by default export in that of the run. An earlier
            export there is replaced.
        formats: stablehlo is for JAX on CPUs, GPUs and TPUs, onnx for onnxruntime, int8
            the same with weights of 8 bits, whose accuracy is told, and pt2 for PyTorch
            alone; the weights and a description are written in any case. The last three
            need PyTorch and ONNX.
        dtype: What the network computes in; without it, what it was trained in.
        static: Fix each router at its mean attention over training images, so that the
            network is static; what that costs in accuracy is told.
        fold: Fold batch norms into the convolutions of model.stablehlo.
        open_size: Have model.stablehlo take pictures of any height and width.
    """

    COMMAND = "export"

    out: OptionalPath = None
    formats: tuple[Format, ...] = ("stablehlo", "onnx", "pt2")
    dtype: OptionalDtype = None
    static: Switch = False
    fold: bool = True
    open_size: Switch = False

    def __post_init__(self):
        """Refuses more or fewer than one run, and formats that do not fit.

        Raises:
            TrainError: If there are.
        """
        super().__post_init__()
        if self.open_size and "stablehlo" not in self.formats:
            raise TrainError("--open-size is for stablehlo, which --formats leaves out")


@dataclasses.dataclass(frozen=True)
class _Network:
    """What is exported.

    Attributes:
        config: The flags of its run.
        dataset: Its images.
        model: What `create_model` made, with its weights.
        accuracy: What is told of its accuracy.
    """

    config: Config
    dataset: Dataset
    model: nnx.Module
    accuracy: dict[str, Any]


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Args:
        argv: The arguments, without the name of the program and of the command.

    Raises:
        TrainError: If an argument is refused, the run or its data cannot be read, the
            network cannot be exported, or a file does not compute what it does.
        SystemExit: With 0, after `--help`.
    """
    flags = parse_flags(argv, ExportFlags, "python -m train export")
    path = flags.run[0]
    out = flags.out or path / EXPORT
    check_place(out)
    _check_installed(flags.formats)
    network = _network(path, flags)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files, figures = _write(Path(folder), network, flags)
    except OSError as error:
        raise TrainingFailed(
            f"temporary files could not be written: {error.strerror or error}; free "
            "the space, or set TMPDIR to a directory that has it"
        ) from error
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with new_directory(out) as place:
            for name, content in files.items():
                (place / name).write_bytes(content)
    except OSError as error:
        raise TrainingFailed(
            f"--out (={out}) could not be written: {error.strerror or error}; free "
            "the space or choose another directory"
        ) from error
    try:
        show_export(path, out, figures)
        unwritten = ""
    except OSError as error:  # a run may be where it cannot be written
        unwritten = f"; its report does not show it: {error.strerror or error}"
    if flags.json:
        print(json.dumps({"run": str(path), "out": str(out)} | figures, indent=2))
    else:
        _show(f"{out}{unwritten}", figures)


def _check_installed(formats: Sequence[Format]) -> None:
    """Refuses formats that need what is not installed."""
    for name in formats:
        missing = [each for each in NEEDED[name] if find_spec(each) is None]
        if missing:
            extra = "export" if name == "stablehlo" else "onnx"
            raise TrainError(
                f"--formats {name} needs {', '.join(missing)}, not installed here; "
                f'give: pip install -c constraints.txt -e ".[{extra}]", or other '
                "--formats"
            )


def _network(path: Path, flags: ExportFlags) -> _Network:
    """Loads the network of a run, as it is to be exported."""
    changes = {} if flags.dtype is None else {"dtype": flags.dtype}
    config, domain, model = load_trained(path, flags.weights, **changes)
    of_torch = [name for name in flags.formats if name != "stablehlo"]
    if config.dtype != "float32" and of_torch:
        raise TrainError(
            f"--dtype (={config.dtype}) is for stablehlo alone, not for "
            f"{' and '.join(of_torch)}; give --formats stablehlo, or --dtype float32"
        )
    config, dataset = flags.load_images(config, domain)
    if not dataset.has("test"):
        raise TrainError(
            f"the run in {path} has no test images, by which an export is judged; put "
            "some in test/, beside its train/"
        )
    accuracy: dict[str, Any] = {"weights": flags.weights}
    if flags.static:
        function = classifier(model, dataset)
        before, _ = accuracy_of(function, dataset, config.on_bad_image)
        accuracy["test_accuracy_before_static"] = before
        model = collapsed(model, config, dataset)
    return _Network(config, dataset, model, accuracy)


def _write(
    folder: Path, network: _Network, flags: ExportFlags
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Makes and tries the files; returns what is to be in them, and the figures."""
    dataset, config = network.dataset, network.config
    pictures, _ = spread_pictures(dataset.test, PICTURES, config.on_bad_image)
    function = classifier(network.model, dataset)
    expected = np.asarray(function(pictures))
    if not np.isfinite(expected).all():
        raise TrainError(
            f"the network answers {expected[~np.isfinite(expected)][0]} where it is to "
            f"answer probabilities: the weights of --weights (={flags.weights}) have "
            "diverged or are damaged; choose others"
        )
    save_pretrained(network.model, folder / "net")
    files: dict[str, bytes] = {}
    found: dict[str, np.ndarray] = {}
    versions: dict[str, Any] = {"dynconv": __version__, "jax": jax.__version__}
    is_folded = False
    if "stablehlo" in flags.formats:
        model = network.model
        if flags.fold:
            model, is_folded = fold(model, dataset)
        folded = classifier(model, dataset)
        program = to_stablehlo(folded, dataset, open_size=flags.open_size)
        larger = np.pad(pictures, ((0, 0), (0, 3), (0, 1), (0, 0)), "edge")
        others = np.asarray(function(larger)) if flags.open_size else None
        function = jax.jit(load_stablehlo(program).call)
        found[STABLEHLO] = answers(function, pictures)
        if others is not None:
            at_others = f"{STABLEHLO}, at another size,"
            allowed = AGREEMENT[config.dtype]
            _held_against(others, np.asarray(function(larger)), allowed, at_others)
        files[STABLEHLO] = program
    quantized: dict[str, Any] = {}
    if set(flags.formats) - {"stablehlo"}:
        trial, labels = None, np.zeros(0)
        if "int8" in flags.formats:
            told = config.on_bad_image
            trial, labels = spread_pictures(dataset.test, TRIAL, told)
        written = twin.write(folder, dataset, pictures, trial)
        versions |= written.versions
        for name in [name for name in written.files if name in flags.formats]:
            file = written.files[name]
            files[file.name] = file.read_bytes()
            if name in written.answers:
                found[file.name] = written.answers[name]
            else:
                quantized[file.name] = {
                    "bytes": len(files[file.name]),
                    "images": len(labels),
                    **{
                        f"test_accuracy_of_{other}": float((each == labels).mean())
                        for other, each in written.trial.items()
                    },
                }
    figures: dict[str, Any] = {
        "pictures": len(pictures),
        "allowed": AGREEMENT[config.dtype],
        "files": {
            name: {"bytes": len(files[name])}
            | _held_against(expected, each, AGREEMENT[config.dtype], name)
            for name, each in found.items()
        },
        "quantized": quantized,
    }
    accuracy, images = accuracy_of(function, dataset, config.on_bad_image)
    figures["accuracy"] = network.accuracy | {
        "of": STABLEHLO if STABLEHLO in files else "the network",
        "test_accuracy": accuracy,
        "images": images,
    }
    files[WEIGHTS] = (folder / "net" / "model.safetensors").read_bytes()
    description = {
        **dataset.to_json(),
        "create_model": _in_pytorch(folder / "net" / "config.json"),
        "dtype": config.dtype,
        "is_static": flags.static,
        "is_folded": is_folded,
        "has_open_size": flags.open_size,
        "platforms": PLATFORMS,
        "versions": versions,
        "accuracy": figures["accuracy"],
        "files": {name: {"sha256": digest(each)} for name, each in files.items()},
    }
    for name, content in ((MODEL, description), (FIGURES, figures)):
        files[name] = (json.dumps(content, indent=2) + "\n").encode()
    files[README] = page(description, flags.formats).encode()
    return files, figures


def _in_pytorch(file: Path) -> dict[str, Any]:
    """Returns the arguments by which PyTorch's `create_model` builds a saved model."""
    config = read_json(file, dict[str, Any])
    made = {"name": config["model"]} | config["options"]
    if config["conv"] is not None:
        made["conv"] = config["conv"]
        made["conv_options"] = config["conv_options"]
    # How it is computed is each framework's own.
    for options in (made, made.get("conv_options", {})):
        options.pop("implementation", None)
    return made


def _held_against(
    expected: np.ndarray, found: np.ndarray, allowed: float, name: str
) -> dict[str, Any]:
    """Says how far probabilities are from those of the network.

    Raises:
        TrainError: If they are others.
    """
    difference = float(np.abs(found - expected).max() / expected.max())
    if not difference <= allowed:  # of NaN, too
        raise TrainingFailed(
            f"{name} does not compute what the network does: its probabilities differ "
            f"by {difference:.1e} of the largest, more than {allowed:.0e}; nothing was "
            "written"
        )
    same = (found.argmax(-1) == expected.argmax(-1)).mean()
    return {"relative_difference": difference, "same_class": float(same)}


def _show(out: str, figures: dict[str, Any]) -> None:
    console = open_console()
    for name, each in figures["files"].items():
        say(
            console,
            f"{name}: {each['bytes'] / 1e6:.2f} MB, apart from the network by "
            f"{each['relative_difference']:.0e} of the largest probability",
        )
    for name, each in figures["quantized"].items():
        say(
            console,
            f"{name}: {each['bytes'] / 1e6:.2f} MB, accuracy "
            f"{each['test_accuracy_of_int8']:.4f} (model.onnx "
            f"{each['test_accuracy_of_onnx']:.4f}) on {each['images']:,} test images",
        )
    accuracy = figures["accuracy"]
    told = f"accuracy {accuracy['test_accuracy']:.4f}"
    if "test_accuracy_before_static" in accuracy:
        told += f" (before --static {accuracy['test_accuracy_before_static']:.4f})"
    say(console, f"{told} on {accuracy['images']:,} test images; written to {out}")
