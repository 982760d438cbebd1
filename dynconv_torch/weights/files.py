"""Weights on disk: what safetensors and `torch.save` have written."""

import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from dynconv_torch.weights.archives import check_archive
from dynconv_torch.weights.stand_ins import stand_ins


def read_weights(path: str | os.PathLike) -> Any:
    """Returns what a file of weights holds; no code in it is run.

    Args:
        path: A safetensors file, or one of `torch.save` (`.pth`, `.pt`, `.bin`). The
            first bytes tell which it is, not the name.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is damaged or of another kind, or holds more than
            tensors and what scripts save beside them (`stand_ins.py`).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.ones(3)}, f"{folder}/layer.pt")
        ...     read_weights(f"{folder}/layer.pt")
        {'weight': tensor([1., 1., 1.])}
    """
    place = Path(path)
    if place.exists() and not (place.is_file() or place.is_dir()):
        raise ValueError(  # of a pipe, too, which would be waited for
            f"`path` (={os.fspath(path)!r}): the file is no regular one; copy what it "
            "gives to one"
        )
    with open(place, "rb") as file:  # for its errors, which name the path
        start = file.read(512)
    # As PyTorch has written: a zip archive, a pickle, a tar archive.
    is_zip = start[:4] == b"PK\x03\x04"
    try:
        if is_zip:
            check_archive(place)
        if is_zip or start[:1] == b"\x80" or start[257:262] == b"ustar":
            return _read_torch(place)
        return safetensors.torch.load_file(place)
    except (ValueError, safetensors.SafetensorError) as error:
        reason = str(error)
        if isinstance(error, safetensors.SafetensorError):
            reason = f"the file is truncated or no safetensors file: {error}"
        raise ValueError(f"`path` (={os.fspath(path)!r}): {reason}") from error


def _read_torch(path: Path) -> Any:
    """Returns what `torch.save` wrote, if it is tensors; runs nothing in it."""
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
                "by `torch.load` and save its state dict alone"
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
