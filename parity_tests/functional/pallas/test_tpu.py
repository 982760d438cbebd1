"""The kernels for TPUs: interpreted here, and compiled where Mosaic is installed."""

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.compiled import compiler
from benchmarks.compiled.chips import CHIPS
from benchmarks.shapes import Shape
from dynconv_jax import dynamic_conv
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.pallas import tpu_experts
from dynconv_jax.functional.pallas.tpu import arrange, convolve, pallas_refuses
from dynconv_jax.functional.pallas.tpu_layer import Layer
from parity_tests.tolerances import assert_close
from parity_tests.tools.checkout import ROOT

NAMES = ("output", "inputs", "attention", "kernel")


def geometry_of(features, outputs, window, options):
    return Geometry.create(features, outputs, window, **options)


def ours(geometry):
    def function(inputs, attention, experts):
        arranged = arrange(experts, geometry)
        return convolve(
            inputs, attention, arranged, geometry, Numerics(), interpret=True
        )

    return function


def reference(options):
    def function(inputs, attention, experts):
        return dynamic_conv(
            inputs, attention, experts, implementation="patches", **options
        )

    return function


def operands(shape, geometry, num_experts=2, dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = (
        shape,
        (shape[0], num_experts),
        (num_experts, *geometry.kernel_shape),
    )
    return [jnp.asarray(rng.normal(size=each), dtype) for each in shapes]


@pytest.fixture
def prefer(monkeypatch):
    """Has the cases for few pixels taken by the kernel for them, as wide ones are."""

    def choose(name):
        if name in FEW_PIXELS:
            monkeypatch.setattr(tpu_experts, "cycles", lambda *_: (0.0, 0.0))

    return choose


def results(function, arrays) -> dict[str, Any]:
    @jax.jit
    def run(*arrays):
        outputs, pull = jax.vjp(function, *arrays)
        cotangent = np.random.default_rng(1).normal(size=outputs.shape)
        return outputs, *pull(jnp.asarray(cotangent, outputs.dtype))

    return dict(zip(NAMES, run(*arrays), strict=True))


# Inputs, outputs, window, options. Three samples are taken one by one, two together.
DENSE = {
    "odd, two samples a step": ((2, 5, 4, 8), 8, (2, 3), {}),
    "square window": ((1, 7, 6, 8), 16, (3, 3), {}),
    "even, stride 2, few channels": ((3, 6, 8, 3), 5, (3, 3), {"strides": 2}),
    "1×1": ((1, 9, 8, 8), 16, (1, 1), {}),
    "1×1, stride 2": ((3, 9, 8, 8), 8, (1, 1), {"strides": 2, "padding": "VALID"}),
    "one row": ((3, 9, 12, 4), 8, (1, 3), {"strides": (1, 2)}),
    "cropped": ((3, 9, 10, 8), 8, (3, 2), {"padding": ((0, 2), (3, -1))}),
    "dilated": ((3, 9, 9, 8), 8, (2, 3), {"kernel_dilation": 2}),
    "4×3, stride 3": ((4, 8, 10, 8), 8, (4, 3), {"strides": 3, "padding": 2}),
}
FEW_PIXELS = {
    "few pixels": ((8, 3, 4, 8), 16, (3, 2), {}),
    "few pixels, stride 2": ((8, 5, 4, 4), 8, (2, 3), {"strides": 2}),
}
DEPTHWISE = {
    "depthwise": ((2, 6, 11, 5), 5, (3, 3), {}),
    "depthwise, samples in two blocks": ((9, 5, 4, 3), 3, (5, 5), {"padding": 2}),
    "depthwise, stride 2": ((2, 7, 10, 5), 5, (3, 2), {"strides": 2, "padding": 1}),
    "depthwise, stride beyond the window": (
        *((2, 7, 8, 5), 5, (1, 2)),
        {"strides": 3, "padding": ((0, 0), (-1, 2))},
    ),
}
CASES = {**DENSE, **FEW_PIXELS, **DEPTHWISE}
QUICK = (
    *("odd, two samples a step", "even, stride 2, few channels", "1×1, stride 2"),
    *("few pixels, stride 2", "depthwise, stride 2"),
)


def case(name, dtype="float32"):
    shape, outputs, window, options = CASES[name]
    if name in DEPTHWISE:
        options = {**options, "feature_group_count": shape[-1]}
    geometry = geometry_of(shape[-1], outputs, window, options)
    return geometry, options, operands(shape, geometry, dtype=dtype)


def over(names, quick):
    """Runs a test for each name, as one of the slow ones where it is not quick."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=[] if name in quick else pytest.mark.slow)
            for name in names
        ],
    )


@over(CASES, quick=QUICK)
def test_outputs_and_gradients_are_those_of_patches(name, prefer):
    prefer(name)
    geometry, options, arrays = case(name)
    expected = results(reference(options), arrays)
    assert_close(results(ours(geometry), arrays), expected, dtype="float32")


@over(["1×1, stride 2", "square window", "depthwise"], quick=["1×1, stride 2"])
def test_half_precision_is_near_what_single_precision_finds(name):
    geometry, options, arrays = case(name, "bfloat16")
    wide = [array.astype(jnp.float32) for array in arrays]
    found = results(ours(geometry), arrays)
    assert all(array.dtype == jnp.bfloat16 for array in found.values())
    assert_close(found, results(reference(options), wide), dtype="bfloat16")


def test_a_sum_over_many_samples_is_taken_in_float32():
    geometry = geometry_of(16, 16, (1, 1), {})
    experts = operands((1, 1, 1, 16), geometry, 1, "bfloat16")[2]
    inputs = jnp.ones((512, 1, 1, 16), "bfloat16")
    attention = jnp.ones((512, 1), "bfloat16")
    _, pull = jax.vjp(ours(geometry), inputs, attention, experts)
    of_experts = pull(jnp.ones((512, 1, 1, 16), "bfloat16"))[2]
    # In bfloat16, 256 + 1 is 256.
    assert np.all(np.asarray(of_experts, np.float32) == 512)


@over(["1×1", "few pixels", "depthwise"], quick=["1×1", "few pixels"])
def test_it_is_mapped_like_any_function(name, prefer):
    prefer(name)
    geometry, options, arrays = case(name)
    arrays[0] = jnp.stack([arrays[0], 2 * arrays[0]])

    def mapped(function):
        return jax.vmap(function, in_axes=(0, None, None))

    expected = results(mapped(reference(options)), arrays)
    assert_close(results(mapped(ours(geometry)), arrays), expected, dtype="float32")


@pytest.mark.parametrize("name", ["1×1", "depthwise, stride beyond the window"])
def test_a_second_derivative_is_refused_with_the_remedy(name):
    geometry, _, (inputs, attention, experts) = case(name)

    def slope(inputs):
        return jax.grad(lambda x: ours(geometry)(x, attention, experts).sum())(inputs)

    with pytest.raises(NotImplementedError, match=r"again; use `implementation=\"pat"):
        jax.grad(lambda x: (slope(x) ** 2).sum())(inputs)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: ours(geometry)(x, attention, experts), (inputs,), (inputs,))


@pytest.mark.parametrize(
    ("shape", "few"),
    [
        (Shape(32, 7, 512, 512), True),
        (Shape(32, 8, 128, 256, stride=2), True),
        (Shape(32, 14, 256, 256), False),
        (Shape(64, 16, 64, 128, stride=2), False),
        (Shape(3, 7, 512, 512), False),  # fill no tile of samples
    ],
    ids=str,
)
def test_all_experts_are_applied_to_few_pixels_of_many_channels(shape, few):
    geometry = shape.geometry
    (low, _), (left, _) = geometry.padding
    layer = Layer(
        window=geometry.kernel_size,
        strides=geometry.strides,
        dilation=(1, 1),
        low=(low, left),
        inputs=shape.input_shape[1:3],
        outputs=shape.output_shape[1:3],
    )
    experts = (4, *geometry.kernel_shape)
    assert tpu_experts.takes(layer, shape.batch, experts, jnp.bfloat16) == few


def test_more_samples_than_a_kernel_takes_are_given_to_several(monkeypatch, prefer):
    prefer("few pixels")
    geometry = geometry_of(8, 8, (1, 2), {})
    arrays = operands((24, 2, 3, 8), geometry)
    whole = results(ours(geometry), arrays)
    monkeypatch.setattr(tpu_experts, "MOST_ROWS", 8 * 6)
    program = jax.make_jaxpr(ours(geometry))(*arrays)
    assert str(program).count("pallas_call[") == 3
    assert_close(results(ours(geometry), arrays), whole, dtype="float32")


REFUSED = {
    "is for 2 spatial dimensions, not 1": ((2, 9, 8), 8, (3,), {}),
    "not for 2 groups of 8→8 channels": (
        *((2, 9, 9, 8), 8, (3, 3)),
        {"feature_group_count": 2},
    ),
    "not for 4 groups of 4→8 channels": (
        *((2, 9, 9, 4), 8, (3, 3)),
        {"feature_group_count": 4},
    ),
    "takes strides or dilation, not both": (
        *((2, 9, 9, 8), 8, (3, 3)),
        {"strides": 2, "kernel_dilation": 2},
    ),
    "4 of 7×7×2048×2048 on 9×9 pixels are too": ((2, 9, 9, 2048), 2048, (7, 7), {}),
    "4 of 3×3×64×64 on 224×224 pixels are too": ((2, 224, 224, 64), 64, (3, 3), {}),
    "no room for 4096×4096 pixels": (
        *((8, 4096, 4096, 8), 8, (3, 3)),
        {"feature_group_count": 8},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_it_cannot_compute_is_refused_by_name(reason):
    shape, outputs, window, options = REFUSED[reason]
    geometry = geometry_of(shape[-1], outputs, window, options)
    found = pallas_refuses(geometry, shape, 4, "bfloat16")
    assert found is not None and reason in found


def test_what_the_options_ask_for_is_refused_by_name():
    geometry = geometry_of(8, 8, (3, 3), {})
    sizes = jax.export.symbolic_shape("b, 9, 9, 8")
    refuses = pallas_refuses
    assert "all sizes, not b, 9" in str(refuses(geometry, sizes, 4, "float32"))
    shape = (2, 9, 9, 8)
    assert "not in float64" in str(refuses(geometry, shape, 4, "float64"))
    wide = Numerics(preferred_element_type=jnp.float32)
    found = refuses(geometry, shape, 4, "bfloat16", numerics=wide)
    assert "returns bfloat16" in str(found) and "not float32" in str(found)
    found = refuses(geometry, shape, 4, "float32", spatial_attention=True)
    assert "single taps" in str(found)
    assert "shard_map" in str(refuses(geometry, shape, 4, "float32", device_count=2))
    assert refuses(geometry, shape, 4, "float32") is None
    with pytest.raises(ValueError, match=r"this form is for 2 spatial.*patches"):
        line = geometry_of(8, 8, (3,), {})
        ours(line)(*operands((2, 9, 8), line))


# Batch, size, channels, outputs, window, stride, groups: what fills tiles, what does
# not, and every kernel.
COMPILED = [
    (2, 28, 64, 64, 3, 1, 1),
    (2, 14, 128, 256, 3, 1, 1),
    (32, 7, 256, 512, 3, 1, 1),
    (16, 8, 256, 256, 3, 2, 1),
    (4, 14, 256, 256, 1, 1, 1),
    (4, 32, 32, 64, 3, 2, 1),
    (3, 9, 5, 20, 3, 1, 1),
    (1, 13, 24, 40, 5, 1, 1),
    (3, 14, 40, 240, 1, 2, 1),
    (32, 14, 480, 480, 5, 1, 480),
    (9, 28, 240, 240, 3, 2, 240),
    (5, 7, 20, 20, 3, 1, 20),
]

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from benchmarks.compiled.chips import CHIPS
from benchmarks.shapes import Shape
from benchmarks.compiled.compiler import topology
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.pallas.tpu_layer import Layer
from dynconv_jax.functional.pallas.tpu import arrange, convolve

highest = Numerics(jax.lax.Precision.HIGHEST)
here = SingleDeviceSharding(topology(CHIPS[sys.argv[1]], 1)[0])
for batch, size, features, outputs, window, stride, groups in json.loads(sys.argv[2]):
    geometry = Geometry.create(
        features, outputs, (window, window), strides=stride,
        padding=window // 2, feature_group_count=groups,
    )
    def function(*arrays):
        x, a, e = arrays
        y = lambda x, a, e: convolve(x, a, arrange(e, geometry), geometry, highest)
        y, pull = jax.vjp(y, x, a, e)
        return y, pull(y)
    for dtype in (jnp.bfloat16, jnp.float32):
        arrays = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=here)
            for shape in (
                (batch, size, size, features), (batch, 4), (4, *geometry.kernel_shape)
            )
        ]
        text = jax.jit(function).lower(*arrays).compile().as_text()
        print("kernels:", text.count('custom_call_target="tpu_custom_call"'))
"""


# What four chips exchange, with the batch spread over them.
SHARDED = """
import re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from benchmarks.compiled.chips import CHIPS
from benchmarks.compiled.compiler import topology
from benchmarks.compiled.hlo import parse_program
from benchmarks.compiled.traffic import collectives
from dynconv_jax import dynamic_conv

mesh = Mesh(np.array(topology(CHIPS[sys.argv[1]], 4)), ("data",))
for groups, size in ((1, 14), (1, 3), (128, 14)):
    # The experts as layers have them: float32 beside narrower inputs.
    layer = lambda x, a, e: dynamic_conv(
        x, a, e, feature_group_count=groups, implementation="pallas"
    )
    shared = jax.shard_map(
        layer, mesh=mesh, in_specs=(P("data"), P("data"), P()), out_specs=P("data")
    )
    def both(x, a, e):
        y, pull = jax.vjp(shared, x, a, e)
        return y, pull(y)
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, spec, dtype in (
            ((64, size, size, 128), P("data"), jnp.bfloat16),
            ((64, 4), P("data"), jnp.bfloat16),
            ((4, 3, 3, 128 // groups, 128), P(), jnp.float32),
        )
    ]
    lowered = jax.jit(both).lower(*arrays)
    text = lowered.as_text()
    summed = re.findall(r"all_reduce.*?-> tensor<[^>]*?(f32|bf16)>", text, re.S)
    print(summed, collectives(parse_program(lowered.compile().as_text())))
    try:
        jax.jit(layer).lower(*arrays)
    except ValueError as error:
        assert "shard_map" in str(error)
    else:
        raise AssertionError("divided by itself")
"""


def compile_for(chip, folder, program=PROGRAM, **variables):
    return subprocess.run(
        [sys.executable, "-c", program, chip, json.dumps(COMPILED)],
        env={
            **os.environ,
            **compiler.environment(CHIPS[chip], folder),
            **variables,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


if compiler.is_installed(CHIPS["v5e"]):  # `test_real_compilers.py` says what to install

    @pytest.mark.slow
    @pytest.mark.parametrize(("chip", "wide"), [("v5e", "0"), ("v6e", "1")])
    def test_mosaic_compiles_both_passes_of_every_kernel(chip, wide, tmp_path):
        done = compile_for(chip, tmp_path, JAX_ENABLE_X64=wide)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["kernels: 2"] * 2 * len(COMPILED)

    @pytest.mark.slow
    def test_devices_add_up_experts_gradients_in_float32_and_exchange_no_more(tmp_path):
        done = compile_for("v5e", tmp_path, SHARDED)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["['f32'] {'all-reduce f32': 1}"] * 3
