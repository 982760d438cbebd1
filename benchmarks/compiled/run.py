"""Runs jobs, each in a process of its own that may take so long and no longer."""

import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dynconv_jax
from benchmarks.compiled import compiler
from benchmarks.compiled.chips import Chip
from benchmarks.compiled.jobs import Job
from benchmarks.compiled.worker import Task

WORKER = "benchmarks.compiled.worker"
# What of this benchmark a record does not depend on.
_BESIDE = (
    *("__main__.py", "figures.py", "page.py", "run.py"),
    *("clock.py", "measure.py", "timed.py"),
)
_PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin")


def run_job(
    job: Job, chip: Chip, limit: float, module: str = WORKER, **variables: str
) -> dict[str, Any]:
    """Compiles one program in a process of its own.

    Args:
        job: What to compile.
        chip: What for.
        limit: Seconds after which the process is ended.
        module: What runs there.
        **variables: More environment variables.

    Returns:
        The record of the worker; `late`, the limit, if it was reached; or `refused`,
        with the last line that the process wrote, if it died.
    """
    with tempfile.TemporaryDirectory() as folder:
        dump, out = Path(folder) / "dump", Path(folder) / "record.json"
        dump.mkdir()
        task = Task(chip.name, job, dump, out, limit)
        environment = compiler.environment(chip, dump) if module == WORKER else {}
        with subprocess.Popen(
            [sys.executable, "-m", module, task.to_json()],
            env={**os.environ, **environment, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                _, errors = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return {"late": limit}
        if process.returncode == 0:
            return json.loads(out.read_text())
        last = (errors.strip().splitlines() or ["no message"])[-1]
        return {"refused": f"the compiler died ({process.returncode}): {last}"}


def versions() -> dict[str, str]:
    """Returns the versions of what compiles, of the packages that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fingerprint() -> str:
    """Returns what tells this library and its compilers from others."""
    digest = hashlib.sha256(json.dumps(versions()).encode())
    here, library = Path(__file__).parent, Path(dynconv_jax.__file__).parent
    for path in sorted([*here.rglob("*.*"), *library.rglob("*.py")]):
        if path.suffix != ".pyc" and path.name not in _BESIDE:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def key(job: Job) -> str:
    """Returns the name of a job in the records."""
    return " | ".join((job.title, job.variant, job.form_title))


def describe(job: Job) -> dict[str, Any]:
    """Returns what a record says of its job."""
    return {
        "kind": job.kind,
        "title": job.title,
        "variant": job.variant,
        "form_title": job.form_title,
        "static_title": job.static_title,
    }


def known(path: Path, mark: str) -> Mapping[str, dict[str, Any]]:
    """Returns what an earlier run of the same library has left, by key."""
    if not path.exists():
        return {}
    results = json.loads(path.read_text())
    return results["records"] if results.get("fingerprint") == mark else {}
