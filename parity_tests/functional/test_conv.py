"""`conv`: XLA's convolution, and what it becomes when it is mapped."""

import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

from dynconv_jax import conv
from dynconv_jax.functional import conv_general_dilated
from parity_tests.tolerances import assert_close
from parity_tests.tools import conv_on_devices
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.on_devices import with_devices


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A convolution, as `conv` and as `lax.conv_general_dilated` say it."""

    size: tuple[int, ...] = (3, 2)
    spatial: tuple[int, ...] = (7, 5)
    strides: int = 1
    padding: int | str = 1
    input_dilation: int = 1
    kernel_dilation: int = 1
    groups: int = 1
    channels: int = 4
    outputs: int = 8

    def ours(self, inputs, kernel):
        return conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.groups,
        )

    def xla(self, inputs, kernel):
        rank = len(self.size)
        letters = "DHW"[-rank:]
        pads: Any = self.padding
        if not isinstance(pads, str):
            pads = ((pads, pads),) * rank
        return lax.conv_general_dilated(
            inputs,
            kernel,
            (self.strides,) * rank,
            pads,
            lhs_dilation=(self.input_dilation,) * rank,
            rhs_dilation=(self.kernel_dilation,) * rank,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            feature_group_count=self.groups,
        )

    def operands(self, rng, images=2):
        return (
            jnp.asarray(rng.normal(size=(images, *self.spatial, self.channels))),
            jnp.asarray(
                rng.normal(
                    size=(*self.size, self.channels // self.groups, self.outputs)
                )
            ),
        )


GEOMETRIES = {
    "plain": Geometry(),
    "strided": Geometry(strides=2),
    "groups": Geometry(groups=2, strides=2),
    "depthwise": Geometry(groups=4),
    "dilated": Geometry(kernel_dilation=2, padding=2),
    "spread": Geometry(input_dilation=3, strides=2, groups=2),
    "1d": Geometry(size=(3,), spatial=(9,), padding="SAME", strides=2),
    "3d": Geometry(size=(2, 1, 3), spatial=(4, 3, 5), padding="SAME_LOWER"),
}


def pulled(function, *operands):
    """Returns the outputs of a function and the gradients of a random cotangent."""

    def both(*operands):
        outputs, pull = jax.vjp(function, *operands)
        cotangent = np.random.default_rng(1).normal(size=outputs.shape)
        inputs, kernel = pull(jnp.asarray(cotangent, outputs.dtype))
        return {"outputs": outputs, "inputs": inputs, "kernel": kernel}

    return jax.jit(both)(*operands)


def instructions(function, *operands):
    """Returns what a compiled program does, without where it comes from."""
    text = jax.jit(function).lower(*operands).compile().as_text() or ""
    text = re.sub(r", metadata=\{[^}]*\}", "", text)
    return [line for line in text.splitlines() if " = " in line]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_what_is_not_mapped_is_the_program_of_xla(name, rng):
    geometry = GEOMETRIES[name]

    def program(convolve):
        return instructions(
            jax.value_and_grad(lambda *each: jnp.sin(convolve(*each)).sum(), (0, 1)),
            *geometry.operands(rng),
        )

    assert program(geometry.ours) == program(geometry.xla)


def test_inputs_alone_mapped_are_a_wider_batch_of_xla(rng):
    geometry = GEOMETRIES["strided"]
    inputs, kernel = geometry.operands(rng)
    stacked = jnp.stack([inputs, 2 * inputs, -inputs])
    lowered = jax.jit(jax.vmap(geometry.ours, (0, None))).lower(stacked, kernel)
    assert lowered.as_text().count("stablehlo.convolution") == 1
    assert "tensor<6x7x5x4xf64>" in lowered.as_text()


def stacked(geometry, rng, counts=(3,)):
    """Operands with as many more axes in front."""
    inputs, kernel = geometry.operands(rng)
    return (
        jnp.asarray(rng.normal(size=(*counts, *inputs.shape))),
        jnp.asarray(rng.normal(size=(*counts, *kernel.shape))),
    )


@pytest.mark.parametrize("name", GEOMETRIES)
def test_mapped_over_both_it_computes_what_xla_does(name, rng):
    geometry = GEOMETRIES[name]
    operands = stacked(geometry, rng)
    actual = pulled(jax.vmap(geometry.ours), *operands)
    assert_close(actual, pulled(jax.vmap(geometry.xla), *operands), dtype="float64")


def group_counts(text):
    found = re.findall(r"(?:feature|batch)_group_count ?= ?(\d+)", text)
    return {int(count) for count in found}


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_mapped_programs_have_no_group_for_each_kernel(name, axes, platform, rng):
    geometry = GEOMETRIES[name]
    (inputs, kernel), many = geometry.operands(rng), stacked(geometry, rng)
    operands = [
        one if axis is None else several
        for one, several, axis in zip((inputs, kernel), many, axes, strict=True)
    ]

    def gradients_of_each(*operands):
        def gradient(*operands):
            return jax.grad(lambda *o: jnp.sin(geometry.ours(*o)).sum(), (0, 1))(
                *operands
            )

        return jax.vmap(gradient, axes)(*operands)

    traced = jax.jit(gradients_of_each).trace(*operands)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert group_counts(text) <= {1, geometry.groups}


AXES = st.sampled_from([None, 0, 1, -1])


@st.composite
def mappings(draw):
    """Geometries, with the axes of one or two maps."""
    geometry = Geometry(
        size=draw(st.sampled_from([(1, 1), (2, 3), (3,)])),
        spatial=(7, 5),
        strides=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 1)),
        input_dilation=draw(st.integers(1, 2)),
        kernel_dilation=draw(st.integers(1, 2)),
        groups=draw(st.sampled_from([1, 2, 4])),
    )
    geometry = dataclasses.replace(geometry, spatial=(7, 5)[: len(geometry.size)])
    levels = draw(
        st.lists(
            st.tuples(AXES, AXES, st.sampled_from([0, -1])).filter(
                lambda axes: axes[:2] != (None, None)
            ),
            min_size=1,
            max_size=2,
        )
    )
    return geometry, levels


def check_mapping(geometry, levels):
    """Compares with XLA under nested maps: outputs, and gradients in both orders."""
    rng = np.random.default_rng(2)
    operands = list(geometry.operands(rng))
    for size, (*axes, _) in enumerate(reversed(levels), start=2):
        for at, axis in enumerate(axes):
            if axis is not None:
                several = rng.normal(size=(size, *operands[at].shape))
                operands[at] = jnp.moveaxis(jnp.asarray(several), 0, axis)

    def mapped(function):
        for *axes, out in reversed(levels):
            function = jax.vmap(function, tuple(axes), out)
        return function

    def gradient(convolve):
        return jax.grad(lambda *each: jnp.sin(convolve(*each)).sum(), (0, 1))

    def results(convolve):
        found = pulled(mapped(convolve), *operands)
        each = jax.jit(mapped(gradient(convolve)))(*operands)
        return found | dict(zip(("each inputs", "each kernel"), each, strict=True))

    assert_close(results(geometry.ours), results(geometry.xla), dtype="float64")


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(mappings())
def test_any_mapping_computes_what_xla_does(mapping):
    check_mapping(*mapping)


@pytest.mark.parametrize("name", ["strided", "depthwise"])
@pytest.mark.parametrize("is_mapped", [False, True])
def test_derivatives_of_derivatives(name, is_mapped, rng):
    geometry = GEOMETRIES[name]
    operands = stacked(geometry, rng) if is_mapped else geometry.operands(rng)

    def results(convolve):
        function = jax.vmap(convolve) if is_mapped else convolve

        def slope(*operands):
            return jax.grad(lambda *each: jnp.sin(function(*each)).sum(), (0, 1))(
                *operands
            )

        def length(*operands):
            return sum(jnp.sum(jnp.cos(part)) for part in slope(*operands))

        _, forward = jax.jit(lambda *each: jax.jvp(slope, each, each))(*operands)
        backward = jax.jit(jax.grad(length, (0, 1)))(*operands)
        parts = (*forward, *backward)
        return {str(index): part for index, part in enumerate(parts)}

    assert_close(results(geometry.ours), results(geometry.xla), dtype="float64")


def test_jacobians_of_both_modes_agree(rng):
    inputs, kernel = GEOMETRIES["strided"].operands(rng)

    def outputs(kernel):
        return GEOMETRIES["strided"].ours(inputs[:1], kernel)

    forward, backward = jax.jacfwd(outputs)(kernel), jax.jacrev(outputs)(kernel)
    assert_close({"jacobian": forward}, {"jacobian": backward}, dtype="float64")


def test_scan_and_rematerialisation(rng):
    geometry = GEOMETRIES["strided"]
    operands = stacked(geometry, rng)

    def total(convolve, inputs, kernel):
        mapped = jax.checkpoint(jax.vmap(convolve))

        def step(carry, scale):
            return carry + jnp.sin(mapped(inputs, kernel * scale)).sum(), None

        return lax.scan(step, jnp.zeros(()), jnp.array([0.5, 1.5]))[0]

    def gradients(convolve):
        gradient = jax.jit(jax.grad(lambda *each: total(convolve, *each), (0, 1)))
        of_inputs, of_kernel = gradient(*operands)
        return {"inputs": of_inputs, "kernel": of_kernel}

    assert_close(gradients(geometry.ours), gradients(geometry.xla), dtype="float64")


@pytest.fixture(scope="module")
def over_devices():
    """What `conv_on_devices` has found."""
    done = subprocess.run(
        [sys.executable, "-m", "parity_tests.tools.conv_on_devices"],
        cwd=ROOT,
        env=with_devices(4),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", conv_on_devices.KINDS)
def test_stacks_over_devices_are_not_gathered(kind, over_devices):
    assert over_devices[kind] == {"gathers": 0, "differs": ""}


def test_exported_program_is_open_in_models_images_and_height(rng):
    geometry = GEOMETRIES["strided"]
    inputs, kernel = stacked(geometry, rng)
    models, images, height = jax.export.symbolic_shape("m, n, h", constraints=["h>=3"])
    shapes = (models, images, height, *inputs.shape[3:]), (models, *kernel.shape[1:])

    def gradients(*operands):
        function = jax.vmap(geometry.ours)
        return jax.grad(lambda *each: jnp.sin(function(*each)).sum(), (0, 1))(*operands)

    exported = jax.export.export(jax.jit(gradients), platforms=("cpu", "tpu", "cuda"))(
        *(jax.ShapeDtypeStruct(shape, inputs.dtype) for shape in shapes)
    )
    found, expected = exported.call(inputs, kernel), gradients(inputs, kernel)
    assert_close(
        {"inputs": found[0], "kernel": found[1]},
        {"inputs": expected[0], "kernel": expected[1]},
        dtype="float64",
    )


@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_narrow_numbers_have_gradients_of_their_own_dtype(preferred, rng):
    inputs, kernel = (
        each.astype(jnp.bfloat16) for each in stacked(GEOMETRIES["plain"], rng)
    )

    def function(*operands):
        return jax.vmap(
            lambda *each: conv(*each, padding=1, preferred_element_type=preferred)
        )(*operands)

    found = pulled(function, inputs, kernel)
    assert found["outputs"].dtype == (preferred or jnp.bfloat16)
    assert {found["inputs"].dtype, found["kernel"].dtype} == {jnp.dtype(jnp.bfloat16)}
    wide = pulled(
        jax.vmap(lambda *each: conv(*each, padding=1)),
        *(each.astype(jnp.float32) for each in (inputs, kernel)),
    )
    assert_close(found, wide, dtype="bfloat16")


REFUSALS = {
    "`inputs` (shape (7, 3)) must be (batch": {"inputs": np.ones((7, 3))},
    "`kernel` (shape (2, 3, 3, 4, 8)) must be": {"kernel": np.ones((2, 3, 3, 4, 8))},
    "`kernel` (shape (3, 3, 5, 8)) must have": {"kernel": np.ones((3, 3, 5, 8))},
    "`in_features` (=4) must be divisible": {"feature_group_count": 3},
    "`padding` (='SAME') is for inputs that are not": {"input_dilation": 2},
    "`padding` (='SAMEE') must be": {"padding": "SAMEE"},
    "`strides` (=0) must be at least 1": {"strides": 0},
    "`input_dilation` (=(1, 2, 3)) has 3 entries": {"input_dilation": (1, 2, 3)},
    "`inputs` (float64) and `kernel` (float32)": {
        "kernel": np.ones((3, 3, 4, 8), np.float32)
    },
    "`kernel_size` (=(9, 9))": {"kernel": np.ones((9, 9, 4, 8)), "padding": "VALID"},
}


@pytest.mark.parametrize("message", REFUSALS)
def test_what_does_not_fit_is_refused_by_its_name(message):
    operands = {
        "inputs": jnp.ones((2, 7, 5, 4)),
        "kernel": jnp.ones((3, 3, 4, 8)),
        **REFUSALS[message],
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        conv(operands.pop("inputs"), operands.pop("kernel"), **operands)


@pytest.mark.parametrize(
    "numbers", [("NHWC", "HWIO", "NHWC"), None, ("NHWC", "HWIO", "NCHW")]
)
def test_by_the_arguments_of_xla_it_computes_the_same(numbers, rng):
    lhs = jnp.asarray(rng.normal(size=(2, 5, 6, 7)))
    inner = 7 if numbers else 5
    rhs = jnp.asarray(rng.normal(size=(3, 2, inner, 4)))
    if numbers is None:
        rhs = jnp.moveaxis(rhs, (-1, -2), (0, 1))
    options: dict[str, Any] = dict(
        lhs_dilation=(1, 2), rhs_dilation=(2, 1), dimension_numbers=numbers
    )
    operands = lhs, rhs, (1, 2), ((1, 0), (2, 1))
    actual = conv_general_dilated(*operands, **options)
    assert (actual == lax.conv_general_dilated(*operands, **options)).all()


def test_complex_numbers_are_left_to_xla():
    numbers = ("NWC", "WIO", "NWC")
    operands = jnp.full((1, 4, 2), 1 + 1j), jnp.full((2, 2, 3), 1 - 2j)
    outputs = conv_general_dilated(*operands, (1,), "VALID", dimension_numbers=numbers)
    assert (outputs == 4 * (1 + 1j) * (1 - 2j)).all()
