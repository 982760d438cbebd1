"""Weights on disk: safetensors in PyTorch's layout, one file for both frameworks."""

import os
import tempfile
from pathlib import Path

import safetensors
import safetensors.numpy
from flax import nnx

from dynconv_jax.weights.torch_layout import (
    load_torch_state_dict,
    to_torch_state_dict,
)


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
    write_file(path, safetensors.numpy.save(to_torch_state_dict(module)))


def load_weights(module: nnx.Module, path: str | os.PathLike) -> None:
    """Loads a safetensors file in PyTorch's layout into `module`, in place, strictly.

    Args:
        module: A layer or a model.
        path: A file of `save_weights`, or of `safetensors.torch.save_file` for a
            PyTorch module's state dict.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is damaged or not safetensors, or does not fit the
            module (see `load_torch_state_dict`). The module is then unchanged.

    Example:
        >>> from dynconv_jax import DynamicConv
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> load_weights(layer, "layer.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'layer.safetensors'
    """
    # `open` for its errors, which name the path; `safe_open`, because
    # `safetensors.numpy.load` knows no bfloat16.
    try:
        with open(path, "rb"), safetensors.safe_open(path, framework="numpy") as file:
            state_dict = {key: file.get_tensor(key) for key in file.keys()}
    except (safetensors.SafetensorError, AttributeError) as error:  # no such dtype
        raise ValueError(
            f"`path` (={os.fspath(path)!r}) is truncated, no safetensors file or holds "
            f"a dtype that NumPy has not: {error}; write it again"
        ) from error
    try:
        load_torch_state_dict(module, state_dict)
    except ValueError as error:
        raise ValueError(f"`path` (={os.fspath(path)!r}): {error}") from error
