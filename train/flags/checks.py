"""What every group of flags needs: a rule, and the words for a value that breaks it."""

import math
from pathlib import Path
from typing import Annotated, Any

import tyro

from train.errors import TrainError

_OF_PRESET = "(default: of --preset)"

# None stands for a value that the other flags give; it need not be typed.
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
OptionalStr = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
OptionalAddress = Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
PresetInt = Annotated[
    int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=_OF_PRESET)
]
PresetFloat = Annotated[
    float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=_OF_PRESET)
]
PresetFloats = Annotated[
    tuple[float, ...] | None,
    tyro.conf.arg(metavar="FLOAT ...", help_behavior_hint=_OF_PRESET),
]
Switch = tyro.conf.FlagCreatePairsOff[bool]


def flag_of(name: str) -> str:
    """Returns the flag of a field of `Config`."""
    return "--" + name.replace("_", "-")


def words_of(name: str, value: Any) -> list[str]:
    """Returns a flag and its value as they are typed.

    Example:
        >>> words_of("model_options", ("width_mult=0.5",)), words_of("overwrite", False)
        (['--model-options', 'width_mult=0.5'], ['--no-overwrite'])
    """
    if isinstance(value, bool):
        return [flag_of(name if value else f"no_{name}")]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [flag_of(name), *map(str, values)]


class Flags:
    """A group of flags, which can refuse their values."""

    def require(self, name: str, is_met: bool, rule: str) -> None:
        """Raises a TrainError that names flag, value and rule, unless it is met."""
        if not is_met:
            value = getattr(self, name)
            raise TrainError(f"{flag_of(name)} (={value}) must {rule}")

    def require_at_least_one(self, *names: str) -> None:
        """Refuses counts below 1; None, where a flag may be left out, passes."""
        for name in names:
            value = getattr(self, name)
            self.require(name, value is None or value >= 1, "be at least 1")

    def require_positive(self, *names: str) -> None:
        """Refuses what is not positive and finite; None passes."""
        for name in names:
            value = getattr(self, name)
            is_met = value is None or 0 < value < math.inf
            self.require(name, is_met, "be positive and finite")

    def require_weight(self, *names: str) -> None:
        """Refuses what is negative or not finite; None passes."""
        for name in names:
            value = getattr(self, name)
            is_met = value is None or 0 <= value < math.inf
            self.require(name, is_met, "be finite and at least 0")

    def require_share(self, *names: str) -> None:
        """Refuses what is not at least 0 and less than 1; None passes."""
        for name in names:
            value = getattr(self, name)
            is_met = value is None or 0 <= value < 1
            self.require(name, is_met, "be at least 0 and less than 1")
