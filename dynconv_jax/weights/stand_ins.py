"""What training scripts save beside tensors, read as nothing.

Among them are the arguments of the command line, and learning rates that NumPy has
computed. PyTorch's reader of tensors alone refuses files that have such objects. No
weights are in these, so each is read as a stand-in: neither its class nor a function of
its own is called.
"""

from typing import Any

_NAMES = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",  # as NumPy 1 wrote it
)


class StandIn:
    """Stands for an object of a file, and holds nothing of it.

    Example:
        >>> StandIn("f8", False).__setstate__({"lr": 0.1})
    """

    def __init__(self, *arguments: object):
        """Takes what the object would be made of, and forgets it."""

    def __setstate__(self, state: object) -> None:
        """Takes what the object would hold, and forgets it."""


def stand_ins() -> list[Any]:
    """Returns pairs of a stand-in and the name that it stands for.

    They are what `torch.serialization.safe_globals` takes.

    Example:
        >>> [name for _, name in stand_ins()][:2]
        ['argparse.Namespace', 'numpy.dtype']
    """
    return [(StandIn, name) for name in _NAMES]
