"""What all tests share: full precision, and numbers from a seed.

Of PyTorch it takes what the tests have imported: with `--without-torch` those run that
import none of it, where it need not be installed.
"""

import contextlib
import gc
import importlib.metadata
import itertools
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Test processes run side by side, and none is to take a GPU for itself.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Nor all cores: threads of NumPy's products, and of PyTorch, wait actively for their
# part, which takes a core from the others and in many small products most of the time.
# pytest may have imported NumPy before, but what tests start reads this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Most of the time goes to compiling small programs, not to running them. What XLA does
# to a program stays as it is; what it spares is LLVM's work on it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Of the two ways in which XLA writes code for what it fused, the older takes half the
# time. An unknown flag ends the process, so it is told to versions that know it.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
        + os.environ.get("XLA_FLAGS", "")
    )

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.interpreters import mlir

from parity_tests.tools import shapes
from parity_tests.tools.imports import needs_torch

# How many programs are written in one context of MLIR. JAX makes one for each, which is
# a tenth of the time of tests that compile tens of thousands; a context keeps what its
# programs had.
_PROGRAMS_OF_A_CONTEXT = 100

# By how many bytes a test process may grow before it forgets what JAX has compiled.
_MOST_GROWTH = 1.5e9

# Where nothing promotes a dtype or a rank unasked.
STRICT = (
    "parity_tests.functional",
    "parity_tests.layers",
    "parity_tests.models",
    "parity_tests.test_gating",
    "parity_tests.test_routing",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the flags of runs without PyTorch, and of runs that check shapes."""
    parser.addoption(
        "--without-torch",
        action="store_true",
        help="run the tests that import neither PyTorch nor dynconv_torch",
    )
    parser.addoption(
        "--check-shapes",
        action="store_true",
        help="check the shapes of arrays that annotations of the packages say",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Has shapes checked, if asked to, before anything imports the packages.

    Says also in which order files are begun.
    """
    if config.getoption("check_shapes"):
        shapes.install(["dynconv_jax", "dynconv_torch"])
    # Files of many tests are begun first, unless told otherwise. Of the slow ones those
    # of few tests take the longest, and would be left to one process at the end.
    if config.getoption("markexpr") == "slow":
        config.option.loadscopereorder = False


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the files that need PyTorch, if asked to."""
    if config.getoption("without_torch") and collection_path.suffix == ".py":
        return needs_torch(collection_path) or None
    return None


def pytest_collection_finish() -> None:
    """Leaves a core to another process, and spares JAX and the collector rounds."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # the arrays are small
    gc.freeze()  # what was imported
    gc.set_threshold(100_000, 20, 100)
    if hasattr(mlir, "make_ir_context"):  # which is JAX's own, and may go
        mlir.make_ir_context = _shared(mlir.make_ir_context, _PROGRAMS_OF_A_CONTEXT)


def _shared(make: Callable[[], Any], times: int) -> Callable[[], Any]:
    """Returns a function that makes a thing, and returns it so many times."""
    made, calls = [], itertools.count()

    def share() -> Any:
        if next(calls) % times == 0:
            made[:] = [make()]
        return made[0]

    return share


@pytest.fixture(autouse=True, scope="module")
def numerics(request):
    """Runs a module in float64 and full matrix precision, unless it is about defaults.

    A module with `DEFAULT_NUMERICS = True` has the precision that a user has. Those of
    the library's layers and functions run where JAX promotes nothing unasked.
    """
    if getattr(request.module, "DEFAULT_NUMERICS", False):
        yield
        return
    with contextlib.ExitStack() as settings:
        settings.enter_context(jax.enable_x64(True))
        settings.enter_context(jax.default_matmul_precision("highest"))
        if request.module.__name__.startswith(STRICT):
            settings.enter_context(jax.numpy_dtype_promotion("strict"))
            settings.enter_context(jax.numpy_rank_promotion("raise"))
        yield


def resident_bytes() -> int:
    """Returns the memory that the process holds, 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_resident_when_fresh = 0


@pytest.fixture(autouse=True, scope="module")
def compiled_afresh():
    """Forgets what was compiled for a module of tests.

    `torch.compile` compiles a function for a few kinds of arguments only, and files of
    tests that share a process would use them up for one another. JAX keeps all that it
    compiles, which are gigabytes for all tests, so that now and then it starts afresh;
    not after each file, since much of what was held stays with the allocator.
    """
    global _resident_when_fresh
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch"].compiler.reset()
    if resident_bytes() > _resident_when_fresh + _MOST_GROWTH:
        jax.clear_caches()
        gc.collect()
        _resident_when_fresh = resident_bytes()


@pytest.fixture
def rng(request) -> np.random.Generator:
    """A generator whose seed is the name of the test."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture(autouse=True)
def torch_seed() -> None:
    """Makes the parameters that PyTorch draws the same in every run."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def images(rng) -> jax.Array:
    """Six small images."""
    return jnp.asarray(rng.normal(size=(6, 5, 7, 3)))


@pytest.fixture(scope="module")
def shared_two_blocks(numerics) -> nnx.Module:
    """The network of `two_blocks`, only to be copied."""
    # Not above: it imports the library, whose shapes may be to be checked.
    from parity_tests.tools.routed import TwoBlocks

    return TwoBlocks()


@pytest.fixture
def two_blocks(shared_two_blocks) -> nnx.Module:
    """A network with two routers, to be changed at will."""
    return nnx.clone(shared_two_blocks)
