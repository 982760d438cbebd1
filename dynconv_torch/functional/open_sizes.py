"""Sizes that a program which is being traced leaves open.

A tracer runs the code once, for an example, and keeps what it did. What the code
decides by the sizes of the example is then decided for all inputs to come. So nothing
is chosen by a size that `is_open`, and shapes are checked by `sizes_of`.
"""

import warnings

import torch
from torch import Tensor


def is_open(size: int | torch.SymInt) -> bool:
    """Returns whether a size is that of an example, and others are to come.

    It is so of all sizes under `torch.jit.trace`, and of those declared dynamic under
    `torch.export`, `torch.compile` and `torch.fx.experimental.proxy_tensor.make_fx`.

    Example:
        >>> is_open(torch.ones(2, 3).shape[0])
        False
    """
    if torch.jit.is_tracing():
        return True
    if torch.compiler.is_compiling():
        # `torch.compile` shows code that it reads no SymInt, only ints.
        return not torch.fx.experimental.symbolic_shapes.has_static_value(size)
    return isinstance(size, torch.SymInt)


def has_open_size(*tensors: Tensor) -> bool:
    """Returns whether any size of any tensor is open.

    Example:
        >>> has_open_size(torch.ones(2, 3))
        False
    """
    return any(is_open(size) for tensor in tensors for size in tensor.shape)


def sizes_of(tensor: Tensor) -> tuple[int, ...]:
    """Returns the shape of a tensor, to be checked and not to be computed with.

    Under `torch.jit.trace` a size is a tensor, and each comparison a warning that the
    trace keeps its result; of a check it keeps nothing.

    Example:
        >>> sizes_of(torch.ones(2, 3))
        (2, 3)
    """
    if torch.jit.is_tracing():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            return tuple(int(size) for size in tensor.shape)
    return tuple(tensor.shape)
