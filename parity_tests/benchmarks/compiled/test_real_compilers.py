"""The chips' own compilers, where they are installed: programs whose figures are known.

Where none is, `test_which_compilers_are_here` says what installs them, and the others
are not collected.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.compiled import compiler
from benchmarks.compiled.chips import CHIPS, Chip
from parity_tests.tools.checkout import ROOT

INSTALLED = [chip for chip in CHIPS.values() if compiler.is_installed(chip)]
TPUS = [chip for chip in INSTALLED if chip.platform == "tpu"]
GPUS = [chip for chip in INSTALLED if chip.platform == "gpu"]

# A process of its own: it reads its variables once, and dumps one program.
PROGRAM = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding
from benchmarks.compiled.chips import CHIPS
from benchmarks.compiled.compiler import OPTIONS, topology
from benchmarks.compiled.estimate import bound
from benchmarks.compiled.hlo import parse_program

chip, source, shapes, dump = CHIPS[sys.argv[1]], *sys.argv[2:]
arguments = [jax.ShapeDtypeStruct(each, jnp.bfloat16) for each in json.loads(shapes)]
auto = Format(Layout.AUTO, SingleDeviceSharding(topology(chip, 1)[0]))
jitted = jax.jit(eval(source), in_shardings=auto, out_shardings=auto)
compiled = jitted.lower(*arguments).compile(OPTIONS[chip.platform])
print(json.dumps(bound(parse_program(compiled.as_text()), chip, Path(dump))))
"""


def bound_of(chip: Chip, folder, source: str, *shapes: tuple[int, ...]) -> dict:
    """Compiles a function of bfloat16 arrays for a chip; returns its bound."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, chip.name, source, json.dumps(shapes), folder],
        env={**os.environ, **compiler.environment(chip, folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def for_each(chips: list[Chip]) -> Callable[[Any], Any]:
    """Runs a test for each chip; where there is none, it is no test."""

    def decorate(test: Any) -> Any:
        if not chips:
            return None
        each = pytest.mark.parametrize("chip", chips, ids=lambda chip: chip.name)
        return pytest.mark.slow(each(test))

    return decorate


def test_which_compilers_are_here(capsys):
    lines = [
        f"{chip.name}: installed" if chip in INSTALLED else str(compiler.missing(chip))
        for chip in CHIPS.values()
    ]
    with capsys.disabled():
        print("\ncompilers of chips here:", *lines, sep="\n  ")
    assert len(lines) == len(CHIPS)


@for_each(INSTALLED)
def test_a_large_product_takes_about_what_the_data_sheet_says(chip, tmp_path):
    side = 4096
    found = bound_of(chip, tmp_path, "lambda a, b: a @ b", (side, side), (side, side))
    sheet = 1e6 * 2 * side**3 / chip.flops
    # That a matrix unit is still busy is for the chip to notice: bundles do not wait.
    assert 0.8 < found["compute"] / sheet < 1.15
    assert found["bytes"] == pytest.approx(3 * 2 * side**2, rel=0.01)


@for_each(INSTALLED)
def test_a_static_convolution_takes_about_what_the_data_sheet_says(chip, tmp_path):
    source = (
        "lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', "
        "dimension_numbers=('NHWC', 'HWIO', 'NHWC'))"
    )
    images, kernel = (32, 14, 14, 256), (3, 3, 256, 256)
    found = bound_of(chip, tmp_path, source, images, kernel)
    sheet = 1e6 * 2 * 32 * 14**2 * 9 * 256**2 / chip.flops
    # As for a product; a v5p, of whose two cores one is counted, comes out at 0.9.
    assert 0.8 < found["compute"] / sheet < 1.5
    assert found["bytes"] == pytest.approx(2 * (2 * 32 * 14**2 + 9 * 256) * 256)


@for_each(TPUS)
def test_a_copy_moves_what_it_reads_and_writes(chip, tmp_path):
    source = "lambda a: jnp.flip(a, 0)"
    found = bound_of(chip, tmp_path, source, (4096, 8192))
    assert found["bytes"] == 2 * 2 * 4096 * 8192
    assert found["memory"] == pytest.approx(1e6 * found["bytes"] / chip.bandwidth)
    # On a chip whose memory is fast, bundles take as long.
    assert found["bound"] == max(found["memory"], found["compute"])


@for_each(TPUS)
def test_a_loop_of_n_turns_costs_n_times_its_body(chip, tmp_path):
    def cost(turns: int) -> float:
        folder = tmp_path / str(turns)
        folder.mkdir()
        source = (
            f"lambda a, b: jax.lax.fori_loop(0, {turns}, "
            "lambda i, c: jnp.tanh(c @ b), a)"
        )
        found = bound_of(chip, folder, source, (1024, 1024), (1024, 1024))
        assert not found["unknown"]
        return found["compute"]

    five, ten, twenty = map(cost, (5, 10, 20))
    assert twenty - ten == pytest.approx(2 * (ten - five), rel=1e-3)
    assert ten == pytest.approx(2 * five, rel=0.05)


@for_each(GPUS)
def test_the_kernels_for_gpus_compile_and_move_little_more_than_a_static_convolution(
    chip, tmp_path
):
    done = subprocess.run(
        [sys.executable, "-m", "parity_tests.tools.gpu_kernels", chip.name],
        env={**os.environ, **compiler.environment(chip, tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for shape, found in told["shapes"].items():
        kernels, static = found["kernels"], found["static"]
        assert kernels["bound"] / static["bound"] < 1.8, shape
        assert kernels["compute"] * 1e-6 * chip.flops == pytest.approx(found["flops"])
    assert all(found["bytes"] for found in told["others"].values())
    assert len(told["others"]) == 5


GRADIENT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from benchmarks.compiled.chips import CHIPS
from benchmarks.compiled.compiler import OPTIONS, topology
from benchmarks.compiled.hlo import parse_program
from benchmarks.compiled.traffic import collectives
from dynconv_jax import DynamicConv

chip, form = CHIPS[sys.argv[1]], sys.argv[2]
mesh = Mesh(np.array(topology(chip, 4)), ("data",))

def build():
    options = dict(use_bias=True, dtype=jnp.bfloat16, implementation=form)
    return DynamicConv(16, 16, (3, 3), rngs=nnx.Rngs(0), **options)

def outline(each, *axes):
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=sharding)

graphdef, params, rest = nnx.split(nnx.eval_shape(build), nnx.Param, ...)
images = outline(jax.ShapeDtypeStruct((32, 14, 14, 16), jnp.bfloat16), "data")
params, rest = jax.tree.map(outline, (params, rest))

def loss(params, rest, images):
    outputs = nnx.merge(graphdef, params, rest, copy=True)(images)
    return jnp.square(outputs.astype(jnp.float32)).mean()

lowered = jax.jit(jax.grad(loss)).lower(params, rest, images)
compiled = lowered.compile(OPTIONS[chip.platform])
print(json.dumps(collectives(parse_program(compiled.as_text()))))
"""


@for_each([chip for chip in INSTALLED if chip.name in ("v5e", "h100")])
@pytest.mark.parametrize("form", ["patches", "rows", "experts"])
def test_chips_add_up_the_gradients_of_narrow_experts_in_float32(chip, form, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", GRADIENT, chip.name, form],
        env={**os.environ, **compiler.environment(chip, tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1])) == {"all-reduce f32"}
