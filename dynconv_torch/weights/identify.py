"""A state dict held against networks that it may be of, which have no values."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynconv_torch.models.registry import create_model
from dynconv_torch.models.warehouses import TELLERS
from dynconv_torch.weights.networks import kw_networks
from dynconv_torch.weights.recognize import (
    SCHEDULED,
    Match,
    Problem,
    best_match,
    shapes_of,
)
from dynconv_torch.weights.refusals import words
from dynconv_torch.weights.shapes import Shapes
from dynconv_torch.weights.trunks import Call

_SIZES = re.compile(
    r"size mismatch for (?P<key>\S+): .* shape torch\.Size\((?P<theirs>.*)\) from "
    r"checkpoint, .* torch\.Size\((?P<ours>.*)\)"
)


def as_tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns tensors, from such and from arrays of NumPy and JAX.

    Raises:
        ValueError: If a value is no array of numbers.

    Example:
        >>> as_tensors({"fc.bias": np.ones(2)})
        {'fc.bias': tensor([1., 1.], dtype=torch.float64)}
    """
    return {key: _as_tensor(key, value) for key, value in state_dict.items()}


def _as_tensor(key: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_quantized:
            raise ValueError(f"{key} is quantized; give its `.dequantize()`")
        return value.detach()
    try:
        # In C order, as a copy: JAX and files have arrays that cannot be written.
        array = np.array(value, order="C")
        if array.dtype.kind in "OSUM":
            raise TypeError(f"it is a {type(value).__name__}")
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        own = getattr(torch, array.dtype.name, None)
        if array.dtype.kind == "V" and own is not None:  # what NumPy has not, as bits
            bits = array.view({1: np.uint8, 2: np.int16}[array.dtype.itemsize])
            return torch.from_numpy(bits).view(own)
        return torch.from_numpy(array)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{key} is no array of numbers: {error}") from error


def misfits(
    arguments: Mapping[str, Any], state_dict: Mapping[str, Any]
) -> list[Problem]:
    """Returns in what a state dict is not of a network, by keys and shapes.

    Args:
        arguments: Of `create_model`.
        state_dict: Tensors or arrays by key.
    """
    try:
        # Without memory: the shapes may be of a network that is larger than any.
        made = create_model(**{**arguments, "device": "meta"})
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).strip().partition("\n")[0]
        return [("network that cannot be built", reason)]
    missing: list[str] = []
    unexpected: list[str] = []
    told: list[str] = []

    # As `load_state_dict`, which raises before it has told of everything.
    def load(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
        module._load_from_state_dict(
            tensors, prefix, {"version": 2}, True, missing, unexpected, told
        )
        for name, child in module.named_children():
            inner = f"{prefix}{name}."
            own = {key: each for key, each in tensors.items() if key.startswith(inner)}
            load(child, own, inner)

    load(
        made,
        {
            key: torch.empty(shape, device="meta")
            for key, shape in shapes_of(state_dict).items()
        },
        "",
    )
    shapes = shapes_of(made.state_dict())
    problems = [_told(each) for each in told]
    problems += [
        ("missing key", f"{key}, of shape {shapes[key]}")
        for key in missing
        if key.rpartition(".")[2] not in (*SCHEDULED, "num_batches_tracked")
    ]
    return problems + [("unexpected key", key) for key in unexpected]


def _told(message: str) -> Problem:
    """Returns a message of PyTorch's in the words of this package."""
    found = _SIZES.search(message)
    if found is None:
        return "problem", message
    theirs, ours = (
        tuple(int(number) for number in re.findall(r"\d+", found[name]))
        for name in ("theirs", "ours")
    )
    return "wrong shape", f"{found['key']} has {theirs}, the module {ours}"


def loses(ours: Tensor, theirs: Tensor) -> bool:
    """Whether the dtype of the one cannot hold all values of that of the other.

    Example:
        >>> loses(torch.ones(2), torch.ones(2, dtype=torch.float64))
        True
    """
    own, other = ours.dtype, theirs.dtype
    if other == own or other == torch.bool:
        return False
    if other.is_complex:
        return True
    if not own.is_floating_point:  # of counts, the values
        return bool((theirs.to(own) != theirs).any())
    held = torch.finfo(own)
    if not other.is_floating_point:
        return torch.iinfo(other).max > 2 / held.eps
    given = torch.finfo(other)
    return held.max < given.max or held.eps > given.eps or held.tiny > given.tiny


def identify(state_dict: Mapping[str, Any]) -> Match | None:
    """Returns the network that a state dict is of, or the nearest; or None.

    Args:
        state_dict: Tensors or arrays by key.

    Example:
        >>> net = create_model("dynamic_net", 7, width_mult=0.25)
        >>> identify(net.state_dict()).call.options
        {'width_mult': 0.25, 'num_classes': 7}
    """

    def misfits_of(call: Call) -> list[Problem]:
        return misfits({"name": call.name, **call.options}, state_dict)

    return best_match(shapes_of(state_dict), misfits_of)


def _told_of_sibling(given: Shapes, own: Shapes) -> str:
    """Returns which of KernelWarehouse's networks a state dict is of, if of another."""
    call, ours = kw_networks.call_of(given), kw_networks.call_of(own)
    if call is None or call.doubts:
        return ""
    if ours is not None and ours.name == call.name:
        options = dict(ours.options)
        if "num_classes" not in call.options:  # without the head it may be of any
            options.pop("num_classes", None)
        if options == call.options:
            return ""
    return f"the state dict is of what {words(call, dict)} makes"


TELLERS.append(_told_of_sibling)
