"""What is known while a program is traced, and which sizes it leaves open.

A tracer runs the code once, for an example, and keeps what it did. What the code
decides by the sizes of the example is then decided for all inputs to come. So nothing
is chosen by a size that `is_open`, and shapes are checked by `sizes_of`.
"""

import contextlib
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.jit import (
    TracerWarning,  # pyright: ignore[reportPrivateImportUsage]
    is_tracing,  # pyright: ignore[reportPrivateImportUsage]
)

_EXPORTER_HAS_SCAN = torch.__version__ >= "2.9"  # compared as numbers


def is_open(size: int | torch.SymInt) -> bool:
    """Returns whether a size is that of an example, and others are to come.

    It is so of all sizes under `torch.jit.trace`, and of those declared dynamic under
    `torch.export`, `torch.compile` and `torch.fx.experimental.proxy_tensor.make_fx`.

    Example:
        >>> is_open(torch.ones(2, 3).shape[0])
        False
    """
    if is_tracing():
        return True
    if torch.compiler.is_compiling():
        # `torch.compile` shows code that it reads no SymInt, only ints.
        shapes = torch.fx.experimental.symbolic_shapes  # pyright: ignore
        return not shapes.has_static_value(size)
    return isinstance(size, torch.SymInt)


def is_onnx_export() -> bool:
    """Returns whether `torch.onnx.export` is writing a program.

    Example:
        >>> is_onnx_export()
        False
    """
    return torch.onnx.is_in_onnx_export()


# By itself, the symbolic interpreter says no. It is what
# `torch.compiler.assume_constant_result` sets; that would import the whole compiler,
# which takes as long as PyTorch itself, wherever this library is imported.
is_onnx_export._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def has_open_size(*tensors: Tensor) -> bool:
    """Returns whether any size of any tensor is open.

    Example:
        >>> has_open_size(torch.ones(2, 3))
        False
    """
    return any(is_open(size) for tensor in tensors for size in tensor.shape)


def can_scan(samples: Tensor) -> bool:
    """Returns whether the program being written may loop over samples of open number.

    That is what ONNX has `Scan` for. PyTorch's exporter writes it from 2.9 on, not with
    `dynamo=False`, and takes the other sizes of the samples for fixed.

    Example:
        >>> can_scan(torch.ones(2, 3))
        False
    """
    if not (_EXPORTER_HAS_SCAN and is_onnx_export()) or is_tracing():
        return False
    batch, *sizes = samples.shape
    return is_open(batch) and not any(map(is_open, sizes))


def _quiet_trace() -> contextlib.AbstractContextManager:
    """Returns a context in which `torch.jit.trace` does not warn of what it keeps."""
    if not is_tracing():
        return contextlib.nullcontext()
    context = contextlib.ExitStack()
    context.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore", TracerWarning)
    return context


def refuse_proxy(value: object) -> None:
    """Raises a TypeError if `value` is what `torch.fx.symbolic_trace` shows."""
    if isinstance(value, torch.fx.Proxy):
        raise TypeError(
            "`torch.fx.symbolic_trace` shows no shapes, and the layers of "
            "dynconv_torch check those of their inputs; take `torch.export.export`, "
            "whose result has an FX graph too, or make the layers leaves of a "
            "`torch.fx.Tracer`"
        )


def sizes_of(tensor: Tensor) -> tuple[int, ...]:
    """Returns the shape of a tensor, to be checked and not to be computed with.

    Under `torch.jit.trace` a size is a tensor, and each comparison a warning that the
    trace keeps its result; of a check it keeps nothing.

    Raises:
        TypeError: Under `torch.fx.symbolic_trace`, which has no shapes.

    Example:
        >>> sizes_of(torch.ones(2, 3))
        (2, 3)
    """
    refuse_proxy(tensor)
    if is_tracing():
        with _quiet_trace():
            return tuple(int(size) for size in tensor.shape)
    return tuple(tensor.shape)


def constant(values: Sequence[int], device: torch.device) -> Tensor:
    """Returns a tensor of numbers that are the same in every run of a trace.

    Example:
        >>> constant((2, 0), torch.device("cpu"))
        tensor([2, 0])
    """
    with _quiet_trace():
        return torch.tensor(values, device=device)
