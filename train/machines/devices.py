"""The devices of a run, over all of its processes, and what lies where on them."""

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.errors import ProcessesDiffer, TrainError
from train.flags.config import Config
from train.machines import processes

AXIS = "data"
# Smaller arrays cost more to gather than they take.
SHARDED_FROM = 2**14
# The second net, below that of `processes.py`: for a process that lives and hangs.
HEARTBEAT_SECONDS = 30
ADDRESS_BYTES = 256


@contextlib.contextmanager
def start(config: Config) -> Iterator[None]:
    """Brings the processes of a run together; for as long as it is entered.

    To be entered before anything touches a device, and left first: where a process
    fails, this ends it at once, and the others with it. Afterwards
    `jax.process_index()` and `jax.process_count()` tell who is who. A run of one
    process passes through.

    Args:
        config: The flags; without --coordinator, processes are found on TPU and under
            SLURM.

    Raises:
        TrainError: If the processes do not come together, or differ in their flags.
    """
    flags = config.to_json()
    count, process = config.num_processes or 1, config.process_id or 0
    if config.coordinator is not None and count > 1:
        lines = _meet(config.coordinator, flags, process, count)
        # From here on a death is noticed, also while JAX's runtime waits.
        with processes.Watch(lines, process, count):
            jax.distributed.initialize(
                *(config.coordinator, count, process),
                cluster_detection_method="deactivate",
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
            _sync()
            yield
    elif config.coordinator is None and _finds_others():
        count, process = jax.process_count(), jax.process_index()
        if config.out is None:
            raise TrainError(
                f"--out (=None) must be given to a run of {count} processes, which "
                "must share it"
            )
        with processes.Watch(_meet_within(flags, process, count), process, count):
            _sync()
            yield
    else:
        yield


def _sync() -> None:
    """Has the processes meet on their devices.

    The first exchange between CPUs waits for the others for 30 s only, and here they
    have just met.
    """
    multihost_utils.sync_global_devices("start")


def _finds_others() -> bool:
    """Tells whether JAX found, and joined, other processes: of a SLURM step, on TPU."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    platforms = jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]
    if not (tasks.isdigit() and int(tasks) > 1) and "tpu" not in platforms:
        return False
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except ValueError:  # a TPU of this machine alone, which belongs to no cluster
        return False
    return jax.process_count() > 1


def _meet(
    address: str, flags: dict[str, Any], process: int, count: int
) -> dict[int, processes.Line]:
    if process == 0:
        return processes.receive_all(processes.listen(address), flags, count)
    return {0: processes.join(address, flags, process)}


def _meet_within(
    flags: dict[str, Any], process: int, count: int
) -> dict[int, processes.Line]:
    """Meets where process 0 says, over JAX's runtime, that it is."""
    address = np.zeros(ADDRESS_BYTES, np.uint8)
    server = processes.listen("0.0.0.0:0") if process == 0 else None
    if server is not None:
        text = f"{socket.gethostname()}:{server.getsockname()[1]}".encode()
        address[: len(text)] = list(text)
    address = np.asarray(multihost_utils.broadcast_one_to_all(address))
    if server is not None:
        return processes.receive_all(server, flags, count)
    where = address.tobytes().rstrip(b"\0").decode()
    return {0: processes.join(where, flags, process)}


def is_writer() -> bool:
    """Tells whether this is the process that writes, and talks."""
    return jax.process_index() == 0


def check_alike(what: str, content: Any) -> None:
    """Refuses to go on where processes differ; all of them must call it.

    Args:
        what: What must be alike, for the message.
        content: What this process has, as JSON has it.

    Raises:
        ProcessesDiffer: If another process has something else.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    mine = np.frombuffer(digest, np.uint8)
    every = np.atleast_2d(multihost_utils.process_allgather(mine))
    others = np.flatnonzero((every != every[0]).any(1))
    if others.size:
        raise ProcessesDiffer(
            f"process {', '.join(map(str, others))} has other {what} than process 0; "
            "give all of them the same"
        )


def make_mesh() -> Mesh:
    """Returns all devices of all processes in one row, "data", a process's together.

    Raises:
        TrainError: If processes have different numbers of devices.
    """
    devices = sorted(jax.devices(), key=lambda each: (each.process_index, each.id))
    if len(devices) != jax.local_device_count() * jax.process_count():
        raise TrainError(
            f"this process has {jax.local_device_count()} of the {len(devices)} "
            f"devices of {jax.process_count()} processes; give all the same number"
        )
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def by_image(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch, whose images are dealt out in order."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def is_key(array: Any) -> bool:
    """Tells whether an array is of typed keys, which have no values to be copied."""
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def state_shardings(state: Any, mesh: Mesh, *, fsdp: bool) -> Any:
    """Returns how parameters, optimizer state and all else lie on the devices.

    Args:
        state: Arrays, or their shapes from `nnx.eval_shape`, in any tree.
        mesh: The result of `make_mesh`.
        fsdp: Whether each large array is cut along its longest axis that the number of
            devices divides; else, every device has all. Zhao et al., "PyTorch FSDP",
            VLDB 2023.

    Returns:
        The same tree of shardings.
    """

    def sharding(array: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(array.shape) if size % mesh.size == 0]
        if not fsdp or not axes or array.size < SHARDED_FROM:
            return everywhere(mesh)
        # Of axes of one length the last: kernels end in their output channels.
        longest = max(axes, key=lambda axis: (array.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, AXIS))

    return jax.tree.map(sharding, state)


def place(state: Any, shardings: Any) -> Any:
    """Lays out, on the devices of all processes, what every process has alike.

    Args:
        state: Arrays in a tree, keys of random numbers among them.
        shardings: The tree of their shardings.
    """

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        if is_key(array):
            data = put(jax.random.key_data(array), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
        values = np.asarray(array)
        return jax.make_array_from_callback(
            values.shape, sharding, lambda part: values[part]
        )

    return jax.tree.map(put, state, shardings)


def gather(state: Any) -> Any:
    """Returns the whole values of what lies on the devices; all processes must call it.

    Args:
        state: Arrays in a tree, sharded or not, keys of random numbers among them.

    Returns:
        The same tree in NumPy, keys as keys.
    """

    def whole(array: jax.Array) -> Any:
        if is_key(array):
            data = whole(jax.random.key_data(array))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
        if array.is_fully_addressable:
            return np.asarray(array)
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))

    return jax.tree.map(whole, state)
