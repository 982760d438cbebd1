"""Scalars that a schedule moves over training: state, kept by every checkpoint."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Scheduled:
    """A kind of scalar that a schedule writes; each is a class of its own.

    Attributes:
        name: The name of the buffer that holds it.
        requirement: What a value must be, and why.
    """

    name = "value"
    requirement = "finite"

    @classmethod
    def accepts(cls, value: float) -> bool:
        """Whether a value is one that this kind may have."""
        return abs(value) < float("inf")

    @classmethod
    def check(cls, value: float | Tensor) -> None:
        """Raises a ValueError unless `value` is one accepted number."""
        try:
            is_valid = cls.accepts(float(value))
        except (TypeError, ValueError, RuntimeError):  # not one number
            is_valid = False
        if not is_valid:
            raise ValueError(f"`{cls.name}` (={value}) must be {cls.requirement}")


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
        self.register_buffer(
            kind.name,
            torch.tensor(float(value), dtype=_dtype_on(device), device=device),
        )

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
        self, state_dict, prefix, local_metadata, strict, missing_keys, *reports
    ):
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *reports
        )
        for name in self._held():
            key = f"{prefix}{name}"
            if key in missing_keys and not getattr(self, name).is_meta:
                missing_keys.remove(key)


def iter_scheduled(
    module: nn.Module, kind: type[Scheduled]
) -> Iterator[tuple[str, Tensor]]:
    """Yields the path and the buffer for every scalar of a kind, each once.

    Example:
        >>> from dynconv_torch import DynamicConv2d
        >>> from dynconv_torch.routing import Temperature
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
        ValueError: If the value is not one that the kind accepts.

    Example:
        >>> from dynconv_torch import DynamicConv2d
        >>> from dynconv_torch.routing import Temperature
        >>> set_scheduled(DynamicConv2d(3, 8, 3), Temperature, 30.0)
        1
    """
    kind.check(value)
    count = 0
    with torch.no_grad():
        for _, held in iter_scheduled(module, kind):
            held.fill_(value)
            count += 1
    return count
