"""What programs find that are started with several devices, each once in a process."""

import functools
import json
import os
import subprocess
import sys
from typing import Any

from parity_tests.tools.checkout import ROOT
from parity_tests.tools.compiled_programs import DEVICES


def with_devices(count: int) -> dict[str, str]:
    """Returns the environment of a process that has so many devices of the CPU.

    It compiles as the tests do, whose flags of XLA it keeps.
    """
    flags = f"--xla_force_host_platform_device_count={count}"
    kept = os.environ.get("XLA_FLAGS", "")
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{kept} {flags}"}


@functools.cache
def found_by(program: str, argument: str) -> dict[str, Any]:
    """Returns what a program of `parity_tests.tools` prints, by name."""
    run = subprocess.run(
        [sys.executable, "-m", f"parity_tests.tools.{program}", argument],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=with_devices(DEVICES),
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
