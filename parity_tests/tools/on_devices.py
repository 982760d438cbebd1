"""What programs find that are started with several devices, each once in a process."""

import functools
import json
import os
import subprocess
import sys
from typing import Any

from parity_tests.tools.checkout import ROOT
from parity_tests.tools.compiled_programs import ENVIRONMENT


@functools.cache
def found_by(program: str, argument: str) -> dict[str, Any]:
    """Returns what a program of `parity_tests.tools` prints, by name."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {ENVIRONMENT['XLA_FLAGS']}"
    run = subprocess.run(
        [sys.executable, "-m", f"parity_tests.tools.{program}", argument],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, "XLA_FLAGS": flags},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
