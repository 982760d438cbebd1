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

import numpy as np
import pytest
from PIL import Image

from parity_tests.tolerances import TOLERANCES, assert_close
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.clothes import write_clothes
from parity_tests.tools.on_devices import with_devices

pytestmark = pytest.mark.slow

# A higher rate multiplies roundings: where one opens a ReLU on one side only, the
# curves part.
FLAGS = (
    *("--steps", "40", "--log-every", "5", "--seed", "5", "--batch-size", "16"),
    *("--learning-rate", "5e-4", "--model-options", "width_mult=0.25"),
    *("--label-smoothing", "0"),
)
STATIC = ("--conv", "static")  # which compiles in a third of the time
ROUTED = "--load-balance=0.1", "--temperature-start=4", "--temperature-end=0.1"
COMMAND = (sys.executable, "-m", "train", *FLAGS, *STATIC)
WITHIN = TOLERANCES["curve"].relative


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """That of all processes: what those of a kind compile is compiled once."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[str, ...]:
    """The flags of few images."""
    return write_clothes(tmp_path_factory.mktemp("clothes"))


@pytest.fixture
def start(environment, data):
    """Starts a run, or a process of one; what is still there at the end is killed."""
    started = []

    def start_one(out: Path, *flags: str) -> subprocess.Popen:
        # To files, not pipes: nobody reads while they run.
        log = open(f"{out}.{len(started)}.log", "w+")
        process = subprocess.Popen(
            [*COMMAND, *data, "--out", str(out), *flags],
            **dict.fromkeys(("stdout", "stderr"), log),
            cwd=ROOT,
            env={**environment, "JAX_PLATFORMS": "cpu"},
        )
        started.append((process, log))
        return process

    yield start_one
    for process, log in started:
        process.kill()
        process.wait()
        log.close()


def start_two(
    start, out: Path, *flags: str, own: tuple[tuple[str, ...], ...] = ((), ())
) -> list[subprocess.Popen]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", *flags)
    return [
        start(out, *shared, "--process-id", str(process), *own[process])
        for process in (0, 1)
    ]


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
def curve_of_one(environment, data, tmp_path_factory) -> dict[int, float]:
    out = tmp_path_factory.mktemp("one") / "run"
    command = [*COMMAND, *data, "--out", str(out)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return losses(out)


# In float64 sums may be in any order, and no ReLU opens on one side only.
IN_FLOAT64 = """
import sys
import jax, numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh
from train.machines import devices
from train.data import presets
from train.learning.augment import Augmentation
from train.flags.config import parse
from train.data.batches import to_devices, training_batches
from train.learning.model import create
from train.learning.step import create_state, make_train_step

jax.config.update("jax_enable_x64", True)
answers = {}


def train(trained, config, ways):
    dataset = presets.load(config)
    model = create(config, dataset.num_classes, 1, nnx.Rngs(config.seed))
    kinds = nnx.Param, nnx.BatchStat
    wide = jax.tree.map(lambda each: each.astype(float), nnx.state(model, kinds))
    nnx.update(model, wide)
    graphdef, first = nnx.split(create_state(model, config))
    for count, fsdp in ways:
        row = np.array(jax.devices()[:count])
        mesh = Mesh(row, (devices.AXIS,), axis_types=(AxisType.Auto,))
        shardings = devices.state_shardings(first, mesh, fsdp=fsdp)
        state = devices.place(first, shardings)
        step = make_train_step(
            *(graphdef, config, Augmentation.of(config, dataset)),
            *(dataset.num_classes, shardings, devices.everywhere(mesh)),
        )
        batches = training_batches(dataset.train, config.batch_size, config.seed)
        losses = []
        for _ in range(config.steps):
            batch = next(batches)
            arrays = to_devices((batch.images, batch.labels), devices.by_image(mesh))
            state, metrics = step(state, *arrays)
            losses.append(metrics["loss"])
        whole = nnx.merge(graphdef, devices.gather(state))
        name = f"{trained}/{count}{' fsdp' * fsdp}"
        answers[f"{name}/losses"] = np.array(losses)
        for path, variable in nnx.to_flat_state(nnx.state(whole.model, kinds)):
            answers[f"{name}/{'.'.join(map(str, path))}"] = np.asarray(variable[...])


alone, shared = (1, False), (8, True)
train("all", parse(sys.argv[2:]), (alone, (8, False), shared))
# What is frozen lies on devices in a way of its own where they share parameters.
train("frozen", parse([*sys.argv[2:], "--freeze=backbone"]), (alone, shared))
np.savez(sys.argv[1], **answers)
"""


@pytest.fixture(scope="module")
def in_float64(environment, data, tmp_path_factory) -> dict[str, np.ndarray]:
    """What a process of eight devices has computed, by what it trained, on how many."""
    answers = tmp_path_factory.mktemp("in_float64") / "answers.npz"
    run = subprocess.run(
        [
            *(sys.executable, "-c", IN_FLOAT64, str(answers)),
            *(*FLAGS, *data, *ROUTED, "--steps=4"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, **with_devices(8)},
    )
    assert run.returncode == 0, run.stderr
    return dict(np.load(answers))


@pytest.mark.parametrize(
    ("trained", "ways"), [("all", {"8", "8 fsdp"}), ("frozen", {"8 fsdp"})]
)
def test_in_float64_the_number_of_devices_changes_only_roundings(
    trained, ways, in_float64
):
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in in_float64.items():
        which, devices, what = name.split("/")
        if which == trained:
            found.setdefault(devices, {})[what] = array
    one = found.pop("1")
    assert len(one) > 1 and one["losses"].dtype == np.float64
    assert found.keys() == ways
    for several in found.values():
        assert_close(several, one, dtype="float64")


def test_processes_of_other_images_are_refused(start, tmp_path):
    for folder, count in (("one", 8), ("other", 9)):
        for split in ("train", "val"):
            for name in ("a", "b"):
                (tmp_path / folder / split / name).mkdir(parents=True)
                for number in range(count):
                    path = tmp_path / folder / split / name / f"{number}.png"
                    Image.new("L", (8, 8), number).save(path)
    out = tmp_path / "run"
    flags = ("--preset", "folder", "--image-size", "8", "--batch-size", "8")
    one, other = (("--data", str(tmp_path / name)) for name in ("one", "other"))
    both = start_two(start, out, *flags, own=(one, other))
    for process, each in enumerate(both):
        assert each.wait(timeout=60) == 2, log_of(out, process)
        assert "process 1 has other images" in log_of(out, process)
    assert not out.exists()


def test_killed_process_takes_the_other_down(start, tmp_path):
    out = tmp_path / "run"
    both = start_two(start, out, "--steps", "100000")
    wait_for_step(out, 5)
    both[0].kill()  # in `test_processes.py` each is, of small ones
    assert both[1].wait(timeout=30) == 1
    message = "train: error: process 0 of 2 has ended before the run did"
    assert message in log_of(out, 1)


def test_two_processes_of_which_one_is_stopped_go_on_and_give_the_curve_of_one(
    start, curve_of_one, tmp_path
):
    out = tmp_path / "run"
    both = start_two(start, out)
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

    for process in start_two(start, out):
        assert process.wait(timeout=120) == 0, log_of(out, 2)
    assert f"going on after step {steps.pop()}" in log_of(out, 2)
    assert losses(out) == pytest.approx(curve_of_one, rel=WITHIN)
