"""What lies where: on one device, and on eight simulated ones."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from parity_tests.tools.checkout import ROOT
from parity_tests.tools.on_devices import with_devices
from train.flags.config import Config
from train.machines import devices

# Places a state of all kinds on 8 devices, with and without --fsdp, and gathers it.
PROGRAM = """
import json
import jax, numpy as np
from train.machines import devices
mesh = devices.make_mesh()
state = {
    "kernel": np.arange(4 * 3 * 64 * 64, dtype=np.float32).reshape(4, 3, 64, 64),
    "long": np.ones((2048, 24), np.float32),
    "odd": np.ones((145, 145), np.float32),
    "bias": np.ones(64, np.float32),
    "step": np.int32(7),
    "key": jax.random.key(3),
}
placed, same = {}, True
for fsdp in (False, True):
    shardings = devices.state_shardings(state, mesh, fsdp=fsdp)
    on_devices = devices.place(state, shardings)
    placed[str(fsdp)] = {
        name: each.sharding.shard_shape(each.shape)
        for name, each in on_devices.items()
    }
    gathered = devices.gather(on_devices)
    for name in state:
        if name == "key":
            data = map(jax.random.key_data, (state["key"], gathered["key"]))
            same &= np.array_equal(*data)
        else:
            same &= np.array_equal(state[name], gathered[name])
rows = jax.device_put(np.arange(16), devices.by_image(mesh))
ordered = sorted(rows.addressable_shards, key=lambda each: each.device.id)
print(json.dumps({
    "placed": placed,
    "same": bool(same),
    "rows": [each.data.tolist() for each in ordered],
}))
"""


@pytest.fixture(scope="module")
def eight_devices() -> dict:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=with_devices(8),
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_large_arrays_are_cut_along_their_longest_divisible_axis(eight_devices):
    assert eight_devices["placed"]["True"] == {
        "kernel": [4, 3, 64, 8],
        "long": [256, 24],
        "odd": [145, 145],
        "bias": [64],
        "step": [],
        "key": [],
    }


def test_without_fsdp_every_device_has_all(eight_devices):
    assert eight_devices["placed"]["False"] == {
        "kernel": [4, 3, 64, 64],
        "long": [2048, 24],
        "odd": [145, 145],
        "bias": [64],
        "step": [],
        "key": [],
    }


def test_what_is_placed_is_gathered_again(eight_devices):
    assert eight_devices["same"]


def test_images_are_dealt_out_in_order(eight_devices):
    rows = eight_devices["rows"]
    assert rows == [[2 * device, 2 * device + 1] for device in range(8)]


def test_one_device_has_all_with_fsdp_too():
    mesh = devices.make_mesh()
    array = jax.ShapeDtypeStruct((1024, 1024), np.float32)
    sharding = devices.state_shardings(array, mesh, fsdp=True)
    assert sharding.is_fully_replicated


def test_run_of_one_process_starts_nothing(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.delattr(jax.distributed, "initialize")
    with devices.start(Config()):
        assert devices.is_writer()
