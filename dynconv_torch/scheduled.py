"""Scalars that a schedule moves over training: state, kept by every checkpoint."""

import math
import reprlib
import struct
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dynconv_torch.checks import check_module


class Scheduled:
    """A kind of scalar that a schedule writes; each is a class of its own.

    Attributes:
        name: The name of the buffer that holds it.
        requirement: What a value must be, and why.
        setter: The function that writes it, for messages.
    """

    name = "value"
    requirement = "finite"
    setter = "set_scheduled"

    @classmethod
    def accepts(cls, value: float) -> bool:
        """Whether a value is one that this kind may have."""
        return abs(value) < float("inf")

    @classmethod
    def refusal(cls, value: Any) -> str | None:
        """Says why `value` is not accepted, or answers None.

        It must be accepted in float32 too, in which most layers compute.
        """
        must = f"must be {cls.requirement}"
        if isinstance(value, str | bytes | bool):  # which `float` reads
            return must
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):  # not one number
            return must
        if not cls.accepts(number):
            return must
        computed = _in_float32(number)
        if not cls.accepts(computed):
            return f"is {computed:g} in float32, and {must}"
        return None

    @classmethod
    def check(cls, value: Any) -> None:
        """Raises a ValueError unless `value` is one accepted number."""
        reason = cls.refusal(value)
        if reason is not None:
            is_short = isinstance(value, str | float | int)
            shown = value if is_short else reprlib.repr(value)
            raise ValueError(f"`{cls.name}` (={shown}) {reason}")


def _in_float32(number: float) -> float:
    # Not by a tensor, which has no value where the default device is "meta".
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return math.copysign(math.inf, number)


def _dtype_on(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no other


class HoldsScheduled(nn.Module):
    """A module with scalars that schedules write.

    They are float64 buffers whatever the dtype of the parameters, and casts of the
    module leave them so: rounding one would change the function. A state dict without
    them loads, and keeps the values set.
    """

    def hold_scheduled(
        self, kind: type[Scheduled], value: float, device: torch.device
    ) -> None:
        """Registers the buffer of a kind, with its initial value.

        Raises:
            ValueError: If the value is not one that the kind accepts.
        """
        kind.check(value)
        # Of meta tensors the value is not known; to_empty() finds it here.
        self._scheduled = {**getattr(self, "_scheduled", {}), kind.name: float(value)}
        self._kinds = {**getattr(self, "_kinds", {}), kind.name: kind}
        self.register_buffer(
            kind.name,
            torch.tensor(float(value), dtype=_dtype_on(device), device=device),
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses a plain number in the place of a buffer."""
        kinds = self.__dict__.get("_kinds", {})
        if name in kinds and value is not None and not isinstance(value, Tensor):
            shown = reprlib.repr(value)
            raise TypeError(
                f"`{name}` (={shown}) would take the place of the buffer that "
                f"schedules write and checkpoints keep; write "
                f"`{kinds[name].setter}(module, {shown})`"
            )
        given: Any = value
        super().__setattr__(name, given)

    def _apply(self, fn, recurse=True):
        """Casts and moves the module, but only moves its scheduled scalars."""
        kept = {name: self._buffers.pop(name) for name in self._held()}
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(kept)
        for name, value in kept.items():
            assert value is not None
            device = fn(
                torch.zeros((), dtype=torch.float32, device=value.device)
            ).device
            dtype = _dtype_on(device)
            if value.is_meta:  # it has no value that could move
                moved = torch.full(
                    (), self._scheduled[name], dtype=dtype, device=device
                )
            else:
                moved = value.to(device, dtype)
            self._buffers[name] = moved
        return self

    def _held(self) -> list[str]:
        return [
            name for name in getattr(self, "_scheduled", ()) if name in self._buffers
        ]

    def _load_from_state_dict(
        self,
        state_dict,
        prefix,
        local_metadata,
        strict,
        missing_keys,
        unexpected_keys,
        error_msgs,
    ):
        kept = {}
        for name in self._held():
            value = state_dict.get(f"{prefix}{name}")
            # What has no value, or not the shape, is for PyTorch to judge.
            if not isinstance(value, Tensor) or value.is_meta or value.ndim:
                continue
            reason = self._kinds[name].refusal(value)
            if reason is not None:
                kept[name] = self._buffers[name]
                error_msgs.append(f"{prefix}{name} is {value.item():g}; it {reason}")
        for name in kept:
            self._buffers[name] = kept[name].clone()
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        self._buffers.update(kept)
        for name in self._held():
            key = f"{prefix}{name}"
            held = getattr(self, name)
            if key in missing_keys and not held.is_meta:
                missing_keys.remove(key)
            # `assign=True` takes the tensor as it is, in whatever dtype.
            self._buffers[name] = held.to(_dtype_on(held.device))


def iter_scheduled(
    module: nn.Module, kind: type[Scheduled]
) -> Iterator[tuple[str, Tensor]]:
    """Yields the path and the buffer for every scalar of a kind, each once.

    Example:
        >>> from dynconv_torch import DynamicConv2d
        >>> from dynconv_torch.gating import Temperature
        >>> net = torch.nn.Sequential(DynamicConv2d(3, 8, 3))
        >>> [path for path, _ in iter_scheduled(net, Temperature)]
        ['0.temperature']
    """
    for path, part in module.named_modules():
        if isinstance(part, HoldsScheduled) and kind.name in part._held():
            yield f"{path}.{kind.name}".lstrip("."), getattr(part, kind.name)


def set_scheduled(
    module: nn.Module, kind: type[Scheduled], value: float | Tensor
) -> int:
    """Writes every scalar of a kind in `module`, in place.

    Args:
        module: A layer or a whole model.
        kind: Which scalars.
        value: The new value.

    Returns:
        How many were written.

    Raises:
        TypeError: If `module` is no module.
        ValueError: If the value is not one that the kind accepts.

    Example:
        >>> from dynconv_torch import DynamicConv2d
        >>> from dynconv_torch.gating import Temperature
        >>> set_scheduled(DynamicConv2d(3, 8, 3), Temperature, 30.0)
        1
    """
    check_module("module", module)
    kind.check(value)
    count = 0
    with torch.no_grad():
        for _, held in iter_scheduled(module, kind):
            held.fill_(value)
            count += 1
    return count
