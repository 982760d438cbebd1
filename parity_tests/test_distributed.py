"""Devices and processes do not change a run: its losses, and what it goes on from."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from parity_tests.parity import assert_close
from parity_tests.small_runs import read_metrics
from train.run_directory import METRICS

DEFAULT_NUMERICS = True

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
FLAGS = ("--preset=digits", "--steps=30", "--batch-size=64", "--seed=5")
FLAGS += ("--log-every=3", "--checkpoint-every=10")


def start(out: Path, *flags: str, devices: int = 1) -> subprocess.Popen:
    """Starts the program as one process of `devices` devices."""
    told = f" --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "train", *FLAGS, f"--out={out}", *flags],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + told},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(out: Path, *flags: str) -> list[subprocess.Popen]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    where = (f"--coordinator={address}", "--num-processes=2")
    return [start(out, *flags, *where, f"--process-id={i}") for i in range(2)]


def assert_finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said


def losses(out: Path) -> dict[str, np.ndarray]:
    rows = read_metrics(out)
    return {
        name: np.array([row[name] for row in rows if name in row])
        for name in ("step", "loss", "test_loss")
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The directory of the run in one process, on one device."""
    out = tmp_path_factory.mktemp("runs") / "one"
    assert_finish(start(out))
    return out


def test_two_processes_have_the_curve_of_one(one, tmp_path):
    assert_finish(*start_two(tmp_path))
    assert_close(losses(tmp_path), losses(one), dtype="curve")


@pytest.mark.parametrize("flags", [(), ("--fsdp",)])
def test_eight_devices_have_the_curve_of_one(flags, one, tmp_path):
    assert_finish(start(tmp_path, *flags, devices=8))
    assert_close(losses(tmp_path), losses(one), dtype="curve")


def wait_for_rows(out: Path, count: int) -> None:
    deadline = time.monotonic() + 240
    path = out / METRICS
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, f"{path} has no {count} rows"
        time.sleep(0.01)


def test_killed_process_takes_the_other_down_and_both_go_on(one, tmp_path):
    long = ("--steps=3000", "--temperature-steps=15", "--schedule=constant")
    both = start_two(tmp_path, *long)
    wait_for_rows(tmp_path, 4)
    both[1].send_signal(signal.SIGKILL)
    _, said = both[0].communicate(timeout=60)
    assert both[0].returncode == 1
    assert "process 1 of 2 has ended before the run did" in said
    both[1].communicate()
    both = start_two(tmp_path, *long)
    wait_for_rows(tmp_path, 10)
    both[0].send_signal(signal.SIGTERM)
    for process in both:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75, said
    steps = losses(tmp_path)["step"]
    assert len(set(steps)) == len(steps)
