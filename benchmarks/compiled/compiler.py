"""The compilers: how a process asks for the devices of a chip that is not there."""

import importlib.util
from pathlib import Path
from typing import Any

from benchmarks.compiled.chips import Chip

# Without autotuning on a device, products through Triton may find no tiles.
OPTIONS: dict[str, dict[str, Any]] = {
    "tpu": {},
    "gpu": {"xla_gpu_enable_triton_gemm": False},
}

_NEEDED = {
    "tpu": ("libtpu", 'pip install -c constraints.txt -e ".[tpu-compiler]"'),
    "gpu": (
        "jax_plugins.xla_cuda12",
        'pip install "jax[cuda12]==0.10.2", in an environment of its own (5.6 GB)',
    ),
}


class CompilerMissing(Exception):
    """The compiler of a chip is not installed."""


def check_installed(chip: Chip) -> None:
    """Raises a CompilerMissing, with what installs it, where there is no compiler."""
    if not is_installed(chip):
        raise missing(chip)


def missing(chip: Chip) -> CompilerMissing:
    """Returns the error of a chip without its compiler."""
    module, install = _NEEDED[chip.platform]
    return CompilerMissing(
        f"--chip {chip.name} is compiled for by {module}, which is not installed "
        f"here: {install}"
    )


def is_installed(chip: Chip) -> bool:
    """Tells whether the compiler of a chip is installed."""
    try:
        return importlib.util.find_spec(_NEEDED[chip.platform][0]) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def environment(chip: Chip, dump: Path) -> dict[str, str]:
    """Returns the variables of a process that compiles for a chip.

    Args:
        chip: The chip.
        dump: A folder for the schedules of a TPU.
    """
    variables = {"JAX_PLATFORMS": "cpu"}
    if chip.platform == "tpu":
        variables |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": "v5litepod-1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": (
                f"--xla_jf_dump_to={dump} "
                "--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
            ),
        }
    return variables


def topology(chip: Chip, count: int) -> list[Any]:
    """Returns the devices of a topology of `count` chips, none of which need exist.

    In a process with the variables of `environment`.
    """
    from jax.experimental import topologies

    check_installed(chip)
    name = chip.topology(count)
    if chip.platform == "gpu":
        described = topologies.get_topology_desc(
            platform="cuda", topology=name, target_config=chip.target
        )
    else:
        bounds = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **bounds
        )
    return list(described.devices)
