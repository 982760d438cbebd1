"""What of flax has a counterpart in PyTorch, and where the two differ unseen."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from flax import nnx

from dynconv_jax.layers import (
    KernelWarehouse,
    ModulatedConv,
    PooledLinear,
    WarehouseConv,
)
from dynconv_jax.layers.expert_conv import ExpertConv
from dynconv_jax.weights.arrangements import (
    Arrangement,
    dense,
    flat,
    opposed,
    same,
    stacked_rows,
)
from dynconv_jax.weights.wrappers import listed

# One attribute, or several that one PyTorch array holds, by dotted paths: its name in
# PyTorch and its arrangement. An empty name leaves the level out, None the attribute.
Name = str | Callable[[Any], str] | None
Row = Mapping[str | tuple[str, ...], tuple[Name, Arrangement]]


class NoCounterpart(ValueError):
    """A module has none in PyTorch; the message says why."""


# Rows that depend on how a module was built.


def refused(reason: str) -> Callable[[Any], Row]:
    """Returns a row of modules that have no counterpart.

    Example:
        >>> refused("it has none")(None)
        Traceback (most recent call last):
        dynconv_jax.weights.counterparts.NoCounterpart: it has none
    """

    def refuse(layer: Any) -> NoReturn:
        raise NoCounterpart(reason)

    return refuse


def general_row(layer: nnx.LinearGeneral) -> Row:
    """Returns the row of a linear layer over several axes: one over all of them.

    Raises:
        NoCounterpart: If it has a kernel for every index of a batch axis.
    """
    if layer.batch_axis:
        raise NoCounterpart(
            f"it has a kernel of its own for every index of `batch_axis` "
            f"(={dict(layer.batch_axis)}), and `torch.nn.Linear` has one"
        )
    return {"kernel": ("weight", dense), "bias": ("bias", flat)}


def transposed_row(layer: nnx.ConvTranspose) -> Row:
    """Returns the row of a transposed convolution.

    Raises:
        NoCounterpart: If no padding of PyTorch's is that of the layer.
    """
    for size, stride, dilation, padding in _axes(layer):
        extent = (size - 1) * dilation + 1
        before, after = _pads(extent, stride, padding)
        crop, extra = extent - 1 - before, after - before
        if crop < 0 or not 0 <= extra < max(stride, dilation):
            raise NoCounterpart(
                f"its `padding` (={layer.padding!r}) with `kernel_size` "
                f"(={layer.kernel_size}) and `strides` (={layer.strides}) is of no "
                "`torch.nn.ConvTranspose`; there `padding=p` is "
                f"`padding=({size - 1} * dilation - p, ...)` of this layer, and "
                "`output_padding` adds to its end"
            )
    return {"kernel": ("weight", opposed)}


def _axes(layer: nnx.Conv | nnx.ConvTranspose) -> Iterator[tuple[int, int, int, Any]]:
    """Yields size, stride, dilation and padding for every spatial axis."""
    rank = len(layer.kernel_size)

    def each(value: Any) -> tuple:
        if value is None:
            return (1,) * rank
        return (value,) * rank if isinstance(value, (int, str)) else tuple(value)

    yield from zip(
        layer.kernel_size,
        each(layer.strides),
        each(layer.kernel_dilation),
        each(layer.padding),
        strict=True,
    )


def _pads(extent: int, stride: int, padding: Any) -> tuple[int, int]:
    """Returns how `jax.lax.conv_transpose` pads the input, its zeros between counted.

    Raises:
        NoCounterpart: If it does not pad with zeros.
    """
    if padding == "VALID":
        return extent - 1, extent - 1 + max(stride - extent, 0)
    if padding == "SAME":
        total = extent + stride - 2
        before = extent - 1 if stride > extent - 1 else math.ceil(total / 2)
        return before, total - before
    if isinstance(padding, str):
        raise NoCounterpart(
            f"its `padding` (={padding!r}) is of no `torch.nn.ConvTranspose`"
        )
    before, after = (padding, padding) if isinstance(padding, int) else padding
    return before, after


def attention_row(layer: nnx.MultiHeadAttention) -> Row:
    """Returns the row of an attention, as `torch.nn.MultiheadAttention` has it.

    Raises:
        NoCounterpart: If that cannot be built so.
    """
    sizes = layer.in_features, layer.qkv_features, layer.out_features
    if layer.normalize_qk:
        raise NoCounterpart(
            "it normalises queries and keys (`normalize_qk`), and "
            "`torch.nn.MultiheadAttention` does not"
        )
    if layer.num_kv_heads != layer.num_heads:
        raise NoCounterpart(
            f"its heads share keys and values (`num_kv_heads` (="
            f"{layer.num_kv_heads})), and those of `torch.nn.MultiheadAttention` do not"
        )
    if len(set(sizes)) > 1:
        raise NoCounterpart(
            f"its `in_features`, `qkv_features` and `out_features` (={sizes}) differ, "
            "and are the one `embed_dim` of `torch.nn.MultiheadAttention`"
        )
    parts = ("query", "key", "value")
    kernels = tuple(f"{part}.kernel" for part in parts)
    biases = tuple(f"{part}.bias" for part in parts)
    row: dict[str | tuple[str, ...], tuple[Name, Arrangement]] = {
        biases: ("in_proj_bias", stacked_rows(parts, flat)),
        "out": ("out_proj", same),
        # What decoding keeps between two calls.
        **dict.fromkeys(("cached_key", "cached_value", "cache_index"), (None, same)),
    }
    if layer.in_kv_features == layer.in_features:
        return {kernels: ("in_proj_weight", stacked_rows(parts, dense)), **row}
    for part, kernel in zip(parts, kernels, strict=True):
        row[kernel,] = f"{part[0]}_proj_weight", stacked_rows((part,), dense)
    return row


# Of the arrays of one layer, how many axes they have.
_RANKS: dict[type, dict[str, Callable[[Any], int]]] = {
    **dict.fromkeys(
        (nnx.Linear, PooledLinear), {"kernel": lambda _: 2, "bias": lambda _: 1}
    ),
    **dict.fromkeys(
        (nnx.Conv, nnx.ConvTranspose, ModulatedConv),
        {"kernel": lambda layer: len(layer.kernel_size) + 2, "bias": lambda _: 1},
    ),
    nnx.LinearGeneral: {
        "kernel": lambda layer: len(layer.in_features) + len(layer.out_features),
        "bias": lambda layer: len(layer.out_features),
    },
    nnx.Embed: {"embedding": lambda _: 2},
    nnx.PReLU: {"negative_slope": lambda _: 0},
    **dict.fromkeys(
        (
            nnx.BatchNorm,
            nnx.GroupNorm,
            nnx.InstanceNorm,
            nnx.LayerNorm,
            nnx.RMSNorm,
        ),
        dict.fromkeys(("scale", "bias", "mean", "var"), lambda _: 1),
    ),
    ExpertConv: {
        "kernel": lambda layer: len(layer.kernel_size) + 3,
        "bias": lambda _: 2,
    },
    WarehouseConv: {"bias": lambda _: 1},
    KernelWarehouse: {"cells": lambda layer: len(layer.tiling.cell_shape) + 1},
}


def rank_of(part: Any, attribute: str, kind: type) -> int | None:
    """Returns the number of axes that an attribute of one layer has, if that is known.

    Args:
        part: The layer.
        attribute: The name of the attribute.
        kind: The class that says what its attributes are.

    Example:
        >>> rank_of(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), "kernel", nnx.Conv)
        4
    """
    if kind.__module__.partition(".")[0] not in ("flax", "dynconv_jax"):
        return None  # one's own class, which may mean something else by the name
    for cls in kind.__mro__:
        if cls in _RANKS:
            rank = _RANKS[cls].get(attribute)
            return None if rank is None else rank(part)
    return None


# What loads and computes something else.

_EPSILON = 1e-6
_NORMS = (nnx.GroupNorm, nnx.InstanceNorm, nnx.LayerNorm, nnx.RMSNorm)


def silent_differences(module: nnx.Module) -> list[str]:
    """Returns what in a module has flax's defaults where PyTorch's compute otherwise.

    Layers and models of this package, and what is in them, are as in PyTorch.

    Example:
        >>> silent_differences(nnx.LayerNorm(8, epsilon=1e-5, rngs=nnx.Rngs(0)))
        []
    """
    norms, strided, ours = {}, [], []
    for path, part in sorted(nnx.iter_modules(module), key=lambda item: len(item[0])):
        if any(path[: len(above)] == above for above in ours):
            continue
        name = f"{'.'.join(map(str, path)) or 'the module'} ({type(part).__name__})"
        if type(part).__module__.partition(".")[0] == "dynconv_jax":
            ours.append(path)
        elif isinstance(part, _NORMS) and part.epsilon == _EPSILON:
            norms[name] = isinstance(part, nnx.RMSNorm)
        elif isinstance(part, nnx.Conv) and _pads_unevenly(part):
            strided.append(name)
    notes = []
    if norms:
        of_rms = "finfo(dtype).eps (1.2e-7 in float32)"
        defaults = [
            *(["1e-5"] if not all(norms.values()) else []),
            *([f"for RMSNorm {of_rms}"] if any(norms.values()) else []),
        ]
        remedy = "1e-5" if not all(norms.values()) else "1.1920929e-7"
        notes.append(
            f"`epsilon` is flax's default 1e-6 in {listed(norms)}, and PyTorch's "
            f"default is {', '.join(defaults)}; no state dict says which it was: "
            f"build them with PyTorch's (`epsilon={remedy}`), unless its `eps` was 1e-6"
        )
    if strided:
        notes.append(
            f"`padding` is flax's default 'SAME' in {listed(strided)}, which with "
            "`strides` pads the two ends of an image unequally, and PyTorch's pads "
            "them equally; give it in numbers (`padding=1`, say), unless PyTorch's was "
            "made to pad so"
        )
    return notes


def _pads_unevenly(layer: nnx.Conv) -> bool:
    """Whether `"SAME"` is, on some images, a padding that PyTorch does not have."""
    if layer.padding != "SAME":
        return False
    return any(
        (size - 1) * dilation + 1 > stride > 1
        for size, stride, dilation, _ in _axes(layer)
    )
