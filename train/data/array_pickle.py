"""Pickles of byte arrays, read without running anything that they ask for."""

import io
import pickle
from typing import Any

import numpy as np


class _Bytes:
    """Stands in for a NumPy array, and notes what the pickle says of it."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Kind:
    """Stands in for a NumPy dtype."""

    def __init__(self, name: Any, *_: Any):
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Leaves the byte order and the like out: a byte has none."""


# NumPy's module has had both names. The array is made by a function of its class.
STAND_INS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Bytes,
    ("numpy._core.multiarray", "_reconstruct"): _Bytes,
    ("numpy", "ndarray"): _Bytes,
    ("numpy", "dtype"): _Kind,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        """Returns the stand-in of a class; there is nothing else."""
        try:
            return STAND_INS[module_name, global_name]
        except KeyError:
            name = f"{module_name}.{global_name}"
            raise ValueError(f"the pickle asks for {name}, which is no array") from None


def read_array_pickle(content: bytes) -> dict[Any, Any]:
    """Returns a pickled dictionary of plain values and uint8 arrays.

    Text of Python 2 is read as bytes. A pickle can name any function to be called; here
    it finds none but two classes that hold what they are given.

    Args:
        content: The pickle.

    Raises:
        ValueError: If it is cut, none, or asks for anything but arrays of bytes.

    Example:
        >>> read_array_pickle(pickle.dumps({"data": np.arange(3, dtype=np.uint8)}, 4))
        {'data': array([0, 1, 2], dtype=uint8)}
        >>> read_array_pickle(pickle.dumps({"data": print}))
        Traceback (most recent call last):
        ValueError: the pickle asks for builtins.print, which is no array
    """
    try:
        values = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except ValueError:
        raise
    except Exception as error:  # Broken pickles raise all kinds of them.
        raise ValueError(f"the pickle is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the pickle holds a {type(values).__name__}, not a dict")
    return {
        key: _to_array(value) if isinstance(value, _Bytes) else value
        for key, value in values.items()
    }


def _to_array(value: _Bytes) -> np.ndarray:
    """Returns the array of which the pickle has told the state."""
    try:
        _, shape, kind, is_column_major, content = value.state
        if kind.name not in (b"u1", "u1"):
            raise ValueError(f"the pickle has an array of {kind.name}, not of bytes")
        order = "F" if is_column_major else "C"
        return np.frombuffer(content, np.uint8).reshape(shape, order=order)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"the pickle has a damaged array: {error}") from error
