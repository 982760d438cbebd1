"""The kinds of chips that the cost model knows, and which one a program is for.

What a unit of work costs is data: a file for each kind of chip in `rates/`, which says
where its figures are from. `python -m benchmarks.fit` writes such a file.
"""

import dataclasses
import functools
import importlib.resources
import math
import os
import platform as host
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

PLATFORMS: tuple[str, ...] = ("cpu", "gpu", "tpu")

# The kinds of work, as `cost.Work` explains them.
KINDS: tuple[str, ...] = (
    "arithmetic",
    "thin_arithmetic",
    "taps",
    "windows",
    "cached_windows",
    "kernels",
    "cached_kernels",
    "experts",
    "outputs",
    "images",
    "cycles",
    "steps",
    "memory",
)


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is lowered for.

    Attributes:
        platform: `"cpu"`, `"gpu"` or `"tpu"`.
        device_count: How many devices there are.
    """

    platform: str
    device_count: int = 1


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip, with what a unit of each kind of work costs on it.

    Attributes:
        name: That of its file in `rates/`.
        platform: `"cpu"`, `"gpu"` or `"tpu"`.
        kinds: A regular expression for what such devices call themselves.
        is_default: Whether it stands for a chip of its platform that is not known.
        memory: The bytes of memory of a device; infinite where machines differ.
        cache: The GB of cache that a step of a loop may fill.
        lanes: Of how many numbers the sides of a product are filled up to a multiple.
        source: Where the rates come from.
        rates: The seconds of a unit of each of `KINDS`.
        form_rates: By the name of a form, the rates that it has of its own.
    """

    name: str
    platform: str
    kinds: str
    is_default: bool
    memory: float
    cache: float
    lanes: int
    source: str
    rates: Mapping[str, float]
    form_rates: Mapping[str, Mapping[str, float]]

    def __hash__(self) -> int:
        return hash(self.name)

    def rates_of(self, form: str) -> Mapping[str, float]:
        """Returns the rates of a form."""
        return self.form_rates.get(form, self.rates)

    @classmethod
    def from_toml(cls, name: str, text: str) -> "Chip":
        """Reads a file of `rates/`.

        Raises:
            ValueError: If it lacks a field, or has one that is not known.
        """
        fields = tomllib.loads(text)
        types = {"platform": str, "kinds": str, "is_default": bool, "memory": float}
        types |= {
            "cache": float,
            "lanes": int,
            "source": str,
            "rates": dict,
            "form_rates": dict,
        }
        wrong = [
            field
            for field, kind in types.items()
            if not isinstance(fields.get(field), kind)
        ]
        wrong += sorted(fields.keys() - types)
        if wrong:
            raise ValueError(
                f"rates/{name}.toml: {', '.join(wrong)} must be of the type that "
                "`Chip` has, or does not belong there"
            )
        for form, rates in {"rates": fields["rates"], **fields["form_rates"]}.items():
            differ = sorted(rates.keys() ^ KINDS)
            if differ:
                raise ValueError(
                    f"rates/{name}.toml: [{form}] must have exactly the rates "
                    f"{', '.join(KINDS)}; {', '.join(differ)} is missing or unknown"
                )
        return cls(name=name, **fields)


@functools.cache
def chips() -> dict[str, Chip]:
    """Returns the chips that are known, by name."""
    folder = importlib.resources.files("dynconv_jax.functional") / "rates"
    names = sorted(file.name for file in folder.iterdir())
    found = [
        Chip.from_toml(name.removesuffix(".toml"), (folder / name).read_text())
        for name in names
        if name.endswith(".toml")
    ]
    return {chip.name: chip for chip in found}


def platform_of(name: str) -> str:
    """Returns `"cpu"`, `"gpu"` or `"tpu"`; what is neither is taken for a GPU."""
    return name if name in ("cpu", "tpu") else "gpu"


def chip_for(platform: str) -> Chip:
    """Returns the chip that a program for a platform runs on.

    It is that of the mesh in use (`jax.set_mesh`), whose devices need not exist; or
    that of this process, if it runs on the platform; or else the default.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else getattr(mesh, "abstract_device", None)
    if device is not None:
        found = chip_of_kind(platform, device.device_kind)
        if found is not None:
            return found
    if platform_of(jax.default_backend()) == platform:
        return _chip_of_process(platform)
    return _default(platform)


@functools.cache
def _chip_of_process(platform: str) -> Chip:
    if platform == "cpu":
        kind = processor()
    else:
        kind = jax.local_devices()[0].device_kind
    return chip_of_kind(platform, kind) or _default(platform)


def chip_of_kind(platform: str, kind: str) -> Chip | None:
    """Returns the chip of a platform that calls itself so, if it is known."""
    for chip in chips().values():
        if chip.platform == platform and re.search(chip.kinds, kind):
            return chip
    return None


def _default(platform: str) -> Chip:
    return next(
        chip
        for chip in chips().values()
        if chip.platform == platform and chip.is_default
    )


@functools.cache
def processor() -> str:
    """Returns what the processor calls itself: vendor, family, model and name."""
    fields = {"vendor_id": "", "cpu family": "", "model": "", "model name": ""}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return host.processor() or host.machine()
    for line in lines:
        key, _, value = line.partition(":")
        if fields.get(key.strip()) == "":
            fields[key.strip()] = value.strip()
    vendor, family, model, name = fields.values()
    return f"{vendor} family {family} model {model}: {name}"


@functools.cache
def memory_of(chip: Chip) -> float:
    """Returns the bytes of memory of a device: of this machine, if it is of it."""
    if chip.platform != platform_of(jax.default_backend()):
        return chip.memory
    try:
        if chip.platform == "cpu":
            return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        stats: Mapping[str, Any] = jax.local_devices()[0].memory_stats() or {}
    except (AttributeError, OSError, RuntimeError, ValueError):
        return math.inf  # each system and each plugin says differently that it cannot
    return stats.get("bytes_limit", math.inf)
