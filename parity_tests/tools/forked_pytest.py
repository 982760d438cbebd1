"""Runs tests again and again, each time in a fork of a process that has the frameworks.

    python -m parity_tests.tools.forked_pytest

reads a line of JSON, `{"arguments": [...], "seconds": 300}`, from its standard input,
runs pytest with the arguments in a process of its own, and answers with a line,
`{"status": 1, "output": "..."}`; a status of null means that time ran out. The code of
the checkout is read anew each time; JAX, Flax and PyTorch are imported once.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence

# What takes seconds to import, is not of the checkout and no plugin of pytest, which
# imports these itself.
FRAMEWORKS = "pytest", "jax.numpy", "flax.nnx", "optax", "torch"


def run_forked(arguments: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Runs pytest in a fork; returns its status, or None, and the end of its output."""
    with tempfile.TemporaryFile("w+") as output:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which do nothing yet
            child = os.fork()
        if child == 0:
            os.setsid()  # what tests start ends with them
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # not what is asked next
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            import pytest

            status = int(pytest.ExitCode.INTERNAL_ERROR)
            try:
                status = int(pytest.main(list(arguments)))
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = _wait(child, seconds)
        output.seek(0)
        return status, output.read()[-2000:]


def _wait(child: int, seconds: float) -> int | None:
    """Waits for a process, at most so long, and ends it with all that it started."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            done, code = os.waitpid(child, os.WNOHANG)
            if done:
                return abs(os.waitstatus_to_exitcode(code))
            time.sleep(0.05)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # of one that has ended
            os.waitpid(child, 0)


def main() -> None:
    """Answers each line of standard input."""
    for name in FRAMEWORKS:
        importlib.import_module(name)
    for line in sys.stdin:
        status, output = run_forked(**json.loads(line))
        print(json.dumps({"status": status, "output": output}), flush=True)


if __name__ == "__main__":
    main()
