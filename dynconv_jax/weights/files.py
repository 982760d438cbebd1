"""Weights on disk: safetensors in PyTorch's layout, one file for both frameworks."""

import importlib
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy
from flax import nnx

from dynconv_jax.weights.archives import check_archive
from dynconv_jax.weights.loading import prepare
from dynconv_jax.weights.names import check_names
from dynconv_jax.weights.stand_ins import stand_ins
from dynconv_jax.weights.torch_layout import to_torch_state_dict

# Marks a file of a JAX module, whose defaults are those of the module that reads it.
_OF_JAX = {"written_by": "dynconv_jax"}


def write_file(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file beside its place and renames it, so that it is never there by half.

    Args:
        path: The file; an existing one is replaced.
        content: What to write.

    Raises:
        OSError: If the file cannot be written; an existing one is then untouched.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_file(f"{folder}/note.txt", b"whole")
        ...     Path(f"{folder}/note.txt").read_bytes()
        b'whole'
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"`path` (={os.fspath(path)!r}): the folder {os.fspath(path.parent)!r} "
            "does not exist; create it first"
        )
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; the umask says what a new file is to be.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def save_weights(module: nnx.Module, path: str | os.PathLike) -> None:
    """Writes the state of `module` to a safetensors file.

    PyTorch reads it by `module.load_state_dict(safetensors.torch.load_file(path))`. The
    file is written beside and renamed, so that `path` never holds half of it.

    Args:
        module: A layer or a model.
        path: The file; an existing one is replaced.

    Raises:
        OSError: If the file cannot be written; an existing one is then untouched.

    Example:
        >>> from dynconv_jax import DynamicConv
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(layer, f"{folder}/layer.safetensors")
        ...     load_weights(layer, f"{folder}/layer.safetensors")
    """
    content = safetensors.numpy.save(to_torch_state_dict(module), metadata=_OF_JAX)
    write_file(path, content)


def load_weights(
    module: nnx.Module, path: str | os.PathLike, *, ignore: Iterable[str] = ()
) -> None:
    """Loads a file in PyTorch's layout into `module`, in place, strictly.

    Args:
        module: A layer or a model.
        path: A safetensors file, of `save_weights` or of `safetensors.torch.save_file`
            for a PyTorch module's state dict; or, where PyTorch is installed, a file of
            `torch.save` (`.pth`, `.pt`, `.bin`) that holds a state dict, which no code
            in it is run for. The first bytes tell which it is, not the name.
        ignore: What not to load, such as `("fc",)`; see `load_torch_state_dict`.

    Raises:
        TypeError: If `path` is no path, `module` no module, or `ignore` a string.
        OSError: If the file cannot be read.
        ValueError: If the file is damaged or of another kind, is of `torch.save` where
            PyTorch is not installed, or holds more than tensors; or if it does not fit
            the module (see `load_torch_state_dict`). The module is then unchanged.

    Warns:
        UserWarning: As `load_torch_state_dict` does; a file of `save_weights` has the
            module's own defaults.

    Example:
        >>> from dynconv_jax import DynamicConv
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> load_weights(layer, "layer.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'layer.safetensors'
    """
    check_names("ignore", ignore)
    state_dict, is_of_jax = read_weights(path)
    try:
        loading = prepare(module, state_dict, is_of_jax=is_of_jax, ignore=ignore)
    except (TypeError, ValueError) as error:
        if not isinstance(module, nnx.Pytree):  # no fault of the file
            raise
        raise ValueError(f"`path` (={os.fspath(path)!r}): {error}") from error
    loading.carry_out()


def read_weights(path: str | os.PathLike) -> tuple[Any, bool]:
    """Returns what a file of weights holds, and whether a JAX module wrote it.

    Args:
        path: As of `load_weights`.

    Raises:
        TypeError: If `path` is no path.
        OSError: If the file cannot be read.
        ValueError: If the file is damaged or of another kind, is of `torch.save` where
            PyTorch is not installed, or holds more than tensors.

    Example:
        >>> from dynconv_jax import DynamicConv
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(layer, f"{folder}/layer.safetensors")
        ...     arrays, is_of_jax = read_weights(f"{folder}/layer.safetensors")
        >>> arrays["weight"].shape, is_of_jax
        ((4, 8, 3, 3, 3), True)
    """
    if not isinstance(path, (str, os.PathLike)):
        instead = (
            "a dict loads by `load_torch_state_dict`"
            if isinstance(path, Mapping)
            else "the module comes first, `load_weights(module, path)`"
        )
        raise TypeError(f"`path` (a {type(path).__name__}) must be a path; {instead}")
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ValueError(  # of a pipe, too, which would be waited for
            f"`path` (={os.fspath(path)!r}): the file is no regular one; copy what it "
            "gives to one"
        )
    with open(path, "rb") as file:  # for its errors, which name the path
        start = file.read(512)
    try:
        # As PyTorch has written: a zip archive, a pickle, a tar archive.
        if start[:4] == b"PK\x03\x04":
            return _read_zip(path), False
        if start[:1] == b"\x80" or start[257:262] == b"ustar":
            return _read_torch(path), False
        return _read_safetensors(path)
    except ValueError as error:
        raise ValueError(f"`path` (={os.fspath(path)!r}): {error}") from error


def _read_safetensors(path: str | os.PathLike) -> tuple[dict[str, Any], bool]:
    """Returns the arrays of a file, and whether a JAX module wrote it."""
    # `safe_open`, because `safetensors.numpy.load` knows no bfloat16.
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}
            return arrays, (file.metadata() or {}).items() >= _OF_JAX.items()
    except (safetensors.SafetensorError, AttributeError) as error:  # no such dtype
        raise ValueError(
            "the file is truncated, no safetensors file or holds a dtype that NumPy "
            f"has not: {error}; write it again"
        ) from error


def _read_zip(path: str | os.PathLike) -> Any:
    """Returns what `torch.save` wrote, which is one kind of zip archives."""
    names = {Path(name).name for name in check_archive(path)}
    if "constants.pkl" in names:
        raise ValueError(
            "the file holds a TorchScript program, and not a state dict; save that of "
            "`torch.jit.load(path)`, by `torch.save(program.state_dict(), other)`"
        )
    if "data.pkl" not in names:
        raise ValueError(
            "the file is a zip archive that `torch.save` did not write; load the "
            "arrays of it yourself, and give them to `load_torch_state_dict`"
        )
    return _read_torch(path)


def _read_torch(path: str | os.PathLike) -> Any:
    """Returns what `torch.save` wrote, if it is tensors; runs nothing in it."""
    # The library does without PyTorch, and imports it nowhere. Here the user gives a
    # file of PyTorch's, which only PyTorch can read.
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ValueError(
            "the file is of `torch.save`, and reading it needs PyTorch, which is not "
            "installed; `pip install 'dynconv[torch]'`, or convert the file: "
            "`safetensors.torch.save_file(torch.load(path, weights_only=True), other)`"
        ) from error
    try:
        beside = torch.serialization.safe_globals(stand_ins())
        with beside, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the protocol of the pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", str(error))
        if found:
            raise ValueError(
                f"the file holds more than tensors, such as `{found[1]}`, which could "
                "run any program, and nothing of it was run; if you trust it, load it "
                "in PyTorch and save its state dict alone"
            ) from error
        raise ValueError(
            "the file is damaged, or a pickle that is not of `torch.save`; save the "
            "state dict alone, by `torch.save(module.state_dict(), path)`"
        ) from error
    except Exception as error:  # of many kinds, where the file is damaged
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"the file is truncated or damaged, or not of `torch.save`: {reason}"
        ) from error
