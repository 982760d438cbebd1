"""An exported program, compiled by the TPU's own compiler, where that is installed."""

import os
import subprocess
import sys

from benchmarks.compiled import compiler
from parity_tests.benchmarks.compiled.test_real_compilers import TPUS, for_each
from parity_tests.tools.checkout import ROOT

# Exported for three platforms on a CPU: the TPU's part of it is compiled for the chip.
PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from benchmarks.compiled.chips import CHIPS
from benchmarks.compiled.compiler import topology
from dynconv_jax import dynamic_conv, explain

shapes = (32, 28, 28, 64), (32, 4), (4, 3, 3, 64, 64)
arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]

def differentiate(cotangent, *arrays):
    outputs, pull = jax.vjp(dynamic_conv, *arrays)
    return outputs, pull(cotangent)

assert "scan" in str(explain(shapes[0], shapes[2], platform="cpu").plan)
outputs = jax.eval_shape(dynamic_conv, *arrays)
exported = jax.export.export(
    jax.jit(differentiate), platforms=("cpu", "cuda", "tpu")
)(outputs, *arrays)
(device,) = topology(CHIPS[sys.argv[1]], 1)
placed = SingleDeviceSharding(device)
jitted = jax.jit(exported.call, in_shardings=placed, out_shardings=placed)
text = jitted.lower(outputs, *arrays).compile().as_text()
assert "while" not in text and "conditional" not in text
print("compiled")
"""


@for_each(TPUS)
def test_the_part_of_an_exported_program_that_is_for_a_tpu_compiles(chip, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, chip.name],
        env={**os.environ, **compiler.environment(chip, tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("compiled\n"), done.stderr
