"""Runs of several processes and devices: the curve of one, and one end for all."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parity_tests.parity import TOLERANCES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EIGHT_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
# A higher rate multiplies roundings: where one opens a ReLU on one side only, the
# curves part.
FLAGS = (
    *("--preset", "digits", "--steps", "30", "--log-every", "5", "--seed", "5"),
    *("--learning-rate", "5e-4", "--model-options", "width_mult=0.25"),
)
WITHIN = TOLERANCES["curve"].relative


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Compiled programs; what all processes of a kind compile is compiled once."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def start(cache):
    """Starts a run, or a process of one; what is still there at the end is killed."""
    started = []

    def start_one(out: Path, *flags: str, **environment: str) -> subprocess.Popen:
        # To files, not pipes: nobody reads while they run.
        log = open(f"{out}.{len(started)}.log", "w+")
        process = subprocess.Popen(
            [sys.executable, "-m", "train", *FLAGS, "--out", str(out), *flags],
            **dict.fromkeys(("stdout", "stderr"), log),
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                **environment,
            },
        )
        started.append((process, log))
        return process

    yield start_one
    for process, log in started:
        process.kill()
        process.wait()
        log.close()


def start_two(start, out: Path, *flags: str) -> list[subprocess.Popen]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", *flags)
    return [start(out, *shared, "--process-id", str(process)) for process in (0, 1)]


def log_of(out: Path, process: int) -> str:
    return Path(f"{out}.{process}.log").read_text()


def wait_for_step(out: Path, step: int) -> None:
    """Waits until the metrics have a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(each >= step for each in losses(out)):
            return
        time.sleep(0.05)
    raise AssertionError(log_of(out, 0))


def losses(out: Path) -> dict[int, float]:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def curve_of_one(cache, tmp_path_factory) -> dict[int, float]:
    out = tmp_path_factory.mktemp("one") / "run"
    command = [sys.executable, "-m", "train", *FLAGS, "--out", str(out)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return losses(out)


def test_two_processes_give_the_curve_of_one(start, curve_of_one, tmp_path):
    out = tmp_path / "run"
    for process in start_two(start, out):
        assert process.wait(timeout=120) == 0, log_of(out, 0) + log_of(out, 1)
    assert losses(out) == pytest.approx(curve_of_one, rel=WITHIN)


@pytest.mark.parametrize("flags", [[], ["--fsdp"]], ids=["data", "fsdp"])
def test_eight_devices_give_the_curve_of_one(flags, start, curve_of_one, tmp_path):
    out = tmp_path / "run"
    process = start(out, *flags, **EIGHT_DEVICES)
    assert process.wait(timeout=120) == 0, log_of(out, 0)
    assert losses(out) == pytest.approx(curve_of_one, rel=WITHIN)


@pytest.mark.parametrize("killed", [0, 1])
def test_killed_process_takes_the_other_down(killed, start, tmp_path):
    out = tmp_path / "run"
    both = start_two(start, out, "--steps", "100000")
    wait_for_step(out, 5)
    both[killed].kill()
    survivor = 1 - killed
    assert both[survivor].wait(timeout=30) == 1
    message = f"train: error: process {killed} of 2 has ended before the run did"
    assert message in log_of(out, survivor)


def test_process_told_to_stop_stops_all_and_all_go_on(start, tmp_path):
    out = tmp_path / "run"
    flags = ("--steps", "120", "--eval-every", "120")
    both = start_two(start, out, *flags)
    wait_for_step(out, 5)
    both[1].send_signal(signal.SIGTERM)
    for process, each in enumerate(both):
        assert each.wait(timeout=30) == 75, log_of(out, process)
    stopped = [
        re.search(r"stopped after step (\d+), and saved", log_of(out, process))
        for process in (0, 1)
    ]
    steps = {found and int(found[1]) for found in stopped}
    assert len(steps) == 1

    for process in start_two(start, out, *flags):
        assert process.wait(timeout=120) == 0, log_of(out, 2)
    assert f"going on after step {steps.pop()}" in log_of(out, 2)
    assert sorted(losses(out)) == list(range(5, 121, 5))
