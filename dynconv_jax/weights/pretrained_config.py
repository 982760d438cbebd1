"""What `config.json` of a saved model holds, written and held against its schema."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from _dynconv_version import __version__

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
README = "README.md"
# Where runs, exports and other libraries have theirs.
OTHER_WEIGHTS = ("weights.safetensors", "pytorch_model.bin")
FILES = (CONFIG, WEIGHTS, README)

LIBRARY = "dynconv"
FORMAT = 1
# How something is computed, which is each framework's own.
OWN = ("implementation", "precision", "preferred_element_type")
DTYPES = ("float16", "bfloat16", "float32", "float64")

# What has a field of its own, or is for the one who opens it to say.
NO_OPTIONS = (
    *("name", "conv", "conv_options", "rngs", "device", "dtype", "param_dtype"),
)

# Of each field the types that JSON may have for it.
_KINDS: dict[str, tuple[type, ...]] = {
    "written_by": (str,),
    "model": (str,),
    "conv": (str, type(None)),
    "conv_options": (dict,),
    "options": (dict,),
    "param_dtype": (str,),
    "dtype": (str, type(None)),
}
_WORDS = {str: "a word", dict: "options by name", type(None): "null"}

_CARD = """\
---
library_name: dynconv
pipeline_tag: image-classification
tags:
- dynamic-convolution
---

# {model}

A model of dynconv: its name and options are in `config.json`, its weights in
`model.safetensors`, in PyTorch's layout. Either framework opens this directory:

    net = dynconv_jax.from_pretrained(directory)
    net = dynconv_torch.from_pretrained(directory)
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """A model, in the words of PyTorch.

    Attributes:
        written_by: The package that wrote it.
        model: The name of the model.
        conv: The name of its convolutions; None leaves them to the model.
        conv_options: Their options.
        options: Those of the model.
        param_dtype: The dtype of the parameters.
        dtype: The dtype of the computation, which in PyTorch is that of the parameters;
            None infers it.
    """

    written_by: str
    model: str
    conv: str | None
    conv_options: dict[str, Any]
    options: dict[str, Any]
    param_dtype: str
    dtype: str | None

    def to_json(self) -> bytes:
        """Returns what the file holds.

        Example:
            >>> kinds = "float32", None
            >>> config = Config("dynconv_jax", "resnet18", None, {}, {}, *kinds)
            >>> b'"model": "resnet18"' in config.to_json()
            True
        """
        head = {"library": LIBRARY, "format_version": FORMAT, "version": __version__}
        content = json.dumps(head | dataclasses.asdict(self), indent=2)
        return f"{content}\n".encode()


def read_config(path: Path) -> Config:
    """Reads the `config.json` in a directory.

    Fields that it does not know pass: files of the hub have such from other libraries
    and from the hub itself (`architectures`, `transformers_version`, `_name_or_path`).
    None of its own can be mistyped so, because all of them must be there.

    Raises:
        FileNotFoundError: If the directory or the file is not there.
        ValueError: If the file is none of this library, of a newer version, or holds
            something else than it must.
    """
    if not path.is_dir():
        raise FileNotFoundError(
            f"`path` (={os.fspath(path)!r}) is no directory; a model of the Hugging "
            "Face hub is fetched first, by `huggingface_hub.snapshot_download(name)`, "
            "which answers its directory"
        )
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"`path` (={os.fspath(path)!r}) has no {name}; give a directory that "
                "`save_pretrained` has written"
            )
    file = path / CONFIG
    try:
        found = json.loads(file.read_bytes().decode(), parse_constant=_refuse_number)
    except RecursionError:
        _refuse(file, "it is nested too deeply")
    except ValueError as error:  # of JSON, and of what is no UTF-8
        _refuse(file, f"it is no JSON: {error}")
    if not isinstance(found, dict) or found.get("library") != LIBRARY:
        _refuse(file, f"it is of another library, without `library` (='{LIBRARY}')")
    version = found.get("format_version")
    if type(version) is not int or version < 1:
        _refuse(file, f"`format_version` (={version!r}) must be a number from 1")
    if version > FORMAT:
        _refuse(
            file,
            f"`format_version` (={version}) is newer than this dynconv "
            f"({__version__}), which knows those up to {FORMAT}; install a newer one",
        )
    for name, kinds in _KINDS.items():
        if name not in found:
            _refuse(file, f"it has no `{name}`")
        if not isinstance(found[name], kinds):
            words = " or ".join(_WORDS[kind] for kind in kinds)
            _refuse(file, f"`{name}` (={found[name]!r}) must be {words}")
    for name in ("param_dtype", "dtype"):
        if found[name] is not None and found[name] not in DTYPES:
            known = ", ".join(DTYPES)
            _refuse(file, f"`{name}` (={found[name]!r}) must be one of: {known}")
    for name in NO_OPTIONS:
        if name in found["options"]:
            _refuse(file, f"`options` must not have `{name}`")
    return Config(**{name: found[name] for name in _KINDS})


def weights_in(path: Path) -> Path | None:
    """Returns the file of weights that a path means; None for a model saved here.

    Args:
        path: A file, or a directory: one of `save_pretrained`, whose `config.json` says
            what it is of, or another one, as of a training run or of other libraries.

    Raises:
        FileNotFoundError: If a directory has no weights.

    Example:
        >>> weights_in(Path("net.pth")).name
        'net.pth'
    """
    if not path.is_dir():
        return path
    try:
        found = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and found.get("library") == LIBRARY:
        return None
    for name in (WEIGHTS, *OTHER_WEIGHTS):
        if (path / name).is_file():
            return path / name
    names = ", ".join((WEIGHTS, *OTHER_WEIGHTS))
    raise FileNotFoundError(
        f"`path` (={os.fspath(path)!r}) is a directory with none of {names} in it; "
        "give the file"
    )


def as_path(path: Any) -> Path:
    """Returns a path as one, and raises a TypeError for what is none.

    Example:
        >>> as_path("models/net").name
        'net'
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`path` (a {type(path).__name__}) must be a path")
    return Path(path)


@contextlib.contextmanager
def path_called(argument: str) -> Iterator[None]:
    """Lets errors about a `path` name the argument of a caller who has another.

    Example:
        >>> with path_called("directory"):  # doctest: +ELLIPSIS
        ...     read_config(Path("nowhere"))
        Traceback (most recent call last):
        FileNotFoundError: `directory` (='nowhere') is no directory; ...
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if not str(error).startswith("`path`"):
            raise
        renamed = str(error).replace("`path`", f"`{argument}`", 1)
        raise type(error)(renamed) from error


def card_of(model: str, card: Any) -> bytes:
    """Returns the content of `README.md`.

    Args:
        model: The name of the model.
        card: Its text; None writes a short one.

    Raises:
        TypeError: If `card` is no text.
        ValueError: If no file can hold it.

    Example:
        >>> card_of("resnet18", "# Mine")
        b'# Mine'
    """
    if card is None:
        return _CARD.format(model=model).encode()
    if not isinstance(card, str):
        raise TypeError(f"`card` (a {type(card).__name__}) must be text, or None")
    try:
        return card.encode()
    except UnicodeEncodeError as error:
        wrong = error.object[error.start]
        raise ValueError(
            f"`card` has {wrong!a} at {error.start}, a lone surrogate, which UTF-8 "
            "cannot hold; give the text as it was before it was decoded wrongly"
        ) from None


def check_place(path: Path) -> None:
    """Refuses a directory that holds anything but a model saved before.

    Raises:
        FileExistsError: If it does; or if it is a file.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(
            f"`path` (={os.fspath(path)!r}) is a file; choose another name"
        )
    names = {each.name for each in path.iterdir()}
    others = sorted(names - set(FILES))
    if names and not others:
        try:
            read_config(path)
        except (OSError, ValueError):
            others = sorted(names)
    if others:
        raise FileExistsError(
            f"`path` (={os.fspath(path)!r}) holds files of others, such as "
            f"{others[0]!r}; choose a directory that is new, empty or holds a model "
            "that `save_pretrained` wrote"
        )


def _refuse_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _refuse(file: Path, reason: str) -> NoReturn:
    raise ValueError(f"`path`: {os.fspath(file)!r} cannot be read: {reason}")
