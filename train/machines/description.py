"""What a reader of figures needs to know about the machine that they come from."""

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import jax


def describe(
    packages: Iterable[str] = ("jax", "flax", "optax", "numpy"),
) -> dict[str, str]:
    """Returns the processor, the system, what JAX computes on, and versions, by name.

    Args:
        packages: Whose versions to tell.

    Example:
        >>> list(describe(["numpy"]))
        ['processor', 'system', 'python', 'JAX on', 'numpy']
    """
    device = jax.devices()[0]
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "JAX on": f"{device.platform} ({device.device_kind})",
        **{name: version(name) for name in packages},
    }


def describe_code() -> str | None:
    """Returns which commit of a checkout this code is, or None if it is of none.

    A checkout with changes that are not committed says `-dirty`.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, perhaps inside of another checkout
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a disk that hangs
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()
