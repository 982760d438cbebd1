"""An exported network, read back from its directory to be called."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Required, TypedDict

import jax
import numpy as np
from msgspec import Meta

from train.commands.export.programs import load_stablehlo
from train.data.dataset import Domain
from train.errors import TrainError
from train.storage.export_files import INT8, MODEL, ONNX, PROGRAMS, STABLEHLO
from train.storage.read_json import Unreadable, read_file, read_json
from train.storage.run_files import CONFIG, Images, check_channels

Artifact = Literal["stablehlo", "onnx", "int8"]

REMEDY = "export the run again"


Sizes = tuple[int | None, ...]


class File(TypedDict):
    """A file of an export, by the digest of its content."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Description(Images):
    """What `model.json` must say for its programs to be called."""

    versions: Required[dict[str, str | int]]
    files: Required[dict[str, File]]


class Program(NamedTuple):
    """A program from pictures to probabilities, and what its file says of it.

    Attributes:
        call: From (b, H, W, C), uint8, to (b, classes).
        inputs: The shape and the dtype of each input; None is a size left open.
        outputs: Those of each output.
    """

    call: Callable[[np.ndarray], np.ndarray]
    inputs: list[tuple[Sizes, str]]
    outputs: list[tuple[Sizes, str]]


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
        domain: What the images are like that it was trained on.
        call: From pictures (b, H, W, C), uint8, to probabilities (b, classes).
    """

    domain: Domain
    call: Callable[[np.ndarray], np.ndarray]


def digest(content: bytes) -> str:
    """Returns what `model.json` tells the content of a file by."""
    return hashlib.sha256(content).hexdigest()


def is_export(path: Path) -> bool:
    """Tells whether a directory is an export, perhaps a damaged one, and no run."""
    is_there = any((path / name).exists() for name in (MODEL, *PROGRAMS))
    return is_there and not (path / CONFIG).exists()


def read_export(path: Path, artifact: Artifact | None = None) -> Exported:
    """Reads an exported network, by one of its programs.

    Args:
        path: The directory that `export` wrote.
        artifact: The program; without it, `stablehlo` or, where that is not there or
            what it needs is not installed, `onnx`.

    Raises:
        TrainError: If the directory is damaged, has no such program or another than
            it says, or what the program needs is not installed.
    """
    description = _read_description(path)
    kind = _choose(path, description["files"], artifact)
    file = path / kind.file
    try:
        content = read_file(file)
    except (FileNotFoundError, Unreadable) as error:
        _refuse(file, error)
    if digest(content) != description["files"][kind.file]["sha256"]:
        raise TrainError(
            f"{file} is not the file that {MODEL} beside it tells of: its SHA-256 is "
            f"another, so it is damaged or of another export; {REMEDY}"
        )
    try:
        program = kind.load(content)
    except Exception as error:  # Of all kinds, by JAX and by onnxruntime.
        words = " ".join(str(error).split()) or type(error).__name__
        version = description["versions"].get(kind.writer, "(a version not told)")
        raise TrainError(
            f"{file} cannot be run here: {words}; it was written with {kind.writer} "
            f"{version}; {REMEDY}"
        ) from error
    domain = Domain.of(description)
    _check_shapes(file, program, domain)
    return Exported(domain, program.call)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = read_json(path / MODEL, Description)
        check_channels(description)
        return description
    except (FileNotFoundError, Unreadable) as error:
        _refuse(path / MODEL, error)


def _refuse(file: Path, error: FileNotFoundError | Unreadable) -> NoReturn:
    reason = error.strerror if isinstance(error, FileNotFoundError) else error
    raise TrainError(f"{file} cannot be read ({reason}); {REMEDY}") from error


def _check_shapes(file: Path, program: Program, domain: Domain) -> None:
    """Refuses a program of other pictures or classes than the description has."""
    for verb, found, needed, dtype in (
        ("takes", program.inputs, (None, *domain.image_shape), "uint8"),
        ("answers", program.outputs, (None, domain.num_classes), "float32"),
    ):
        if len(found) == 1 and _serves(found[0][0], needed) and found[0][1] == dtype:
            continue
        told = " and ".join(f"{_words(shape)} of {own}" for shape, own in found)
        raise TrainError(
            f"{file} {verb} {told or 'nothing'}, but {MODEL} says {_words(needed)} of "
            f"{dtype}; {REMEDY}"
        )


def _serves(shape: Sizes, needed: Sizes) -> bool:
    """Tells whether sizes, where they are not open, are those that are needed."""
    return len(shape) == len(needed) and all(
        own is None or own == other for own, other in zip(shape, needed, strict=True)
    )


def _words(shape: Sizes) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


def _choose(path: Path, files: Mapping[str, Any], artifact: Artifact | None) -> "_Kind":
    """Returns the kind of the program to call.

    Raises:
        TrainError: If none is among the files, or what it needs is not installed.
    """
    names = FIRST if artifact is None else (artifact,)
    kinds = [KINDS[name] for name in names if KINDS[name].file in files]
    if not kinds:
        others = [name for name, kind in KINDS.items() if kind.file in files]
        remedy = f"give --artifact {' or '.join(others)}, or " if others else ""
        raise TrainError(
            f"{path} has no {' and no '.join(KINDS[name].file for name in names)}; "
            f"{remedy}{REMEDY}"
        )
    for kind in kinds:
        if find_spec(kind.module) is not None:
            return kind
    needs = " and ".join(f"{kind.file} needs {kind.module}" for kind in kinds)
    raise TrainError(
        f"{path}: {needs}, not installed here; give: pip install {kinds[0].module}"
    )


def _stablehlo(content: bytes) -> Program:
    from jax import export

    program = load_stablehlo(content)
    if (here := export.default_export_platform()) not in program.platforms:
        raise ValueError(f"it is for {', '.join(program.platforms)}, not for {here}")
    call = jax.jit(program.call)  # traced once, not for each batch
    inputs, outputs = (
        [(_sizes(each.shape), each.dtype.name) for each in avals]
        for avals in (program.in_avals, program.out_avals)
    )
    return Program(lambda pictures: np.asarray(call(pictures)), inputs, outputs)


def _onnx(content: bytes) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(content)
    name = session.get_inputs()[0].name
    inputs, outputs = (
        [
            (_sizes(each.shape), DTYPES.get(f"{each.type}", "another dtype"))
            for each in values
        ]
        for values in (session.get_inputs(), session.get_outputs())
    )
    return Program(
        lambda pictures: np.asarray(session.run(None, {name: pictures})[0]),
        *(inputs, outputs),
    )


def _sizes(shape: Sequence[Any]) -> Sizes:
    return tuple(size if isinstance(size, int) else None for size in shape)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of programs: its file, what runs it and, in `versions`, what wrote it."""

    file: str
    module: str
    writer: str
    load: Callable[[bytes], Program]


KINDS: dict[Artifact, _Kind] = {
    "stablehlo": _Kind(STABLEHLO, "flatbuffers", "jax", _stablehlo),
    "onnx": _Kind(ONNX, "onnxruntime", "onnx", _onnx),
    "int8": _Kind(INT8, "onnxruntime", "onnx", _onnx),
}
# Those that compute what the network does, the usual one first.
FIRST: tuple[Artifact, ...] = ("stablehlo", "onnx")
# As onnxruntime calls them.
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
