"""Export with sizes left open: one artifact for images of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from dynconv_jax import dynamic_conv, dynamic_conv_transpose, per_sample_conv
from dynconv_jax.functional import Geometry
from dynconv_jax.functional.chips import chip_for
from dynconv_jax.functional.cost import Problem
from parity_tests.tolerances import assert_close
from parity_tests.tools.cases import CASES, TRANSPOSE_CASES
from parity_tests.tools.exported import exported
from parity_tests.tools.family import images, layer
from parity_tests.tools.slow import thinned

FORMS = [
    ("1d dilated, strided", "auto"),
    ("2d uneven", "auto"),
    ("2d uneven", "patches"),
    ("2d uneven", "rows"),
    ("2d uneven", "experts"),
    ("2d uneven", "scan"),
    ("2d uneven", "row_conv"),
    ("2d grouped", "auto"),
    ("2d depthwise", "taps"),
    ("2d depthwise, multiplied", "auto"),
    ("2d cropped", "auto"),
    ("2d cropped", "vmap"),
    ("3d", "auto"),
]
TRANSPOSED = [
    ("2d", "auto"),
    ("2d", "experts"),
    ("2d, outputs that no tap reaches", "auto"),
    ("2d, depthwise", "taps"),
    ("2d, pairs", "scan"),
    ("3d", "auto"),
]
# What knows the batch and asks for nothing else.
KNOWN_BATCH = ("scan", "row_conv", "vmap")


def check(function, case, form, rng):
    """Exports outputs and gradients with all sizes open, and runs them at others."""
    names = "dhw"[-len(case.spatial) :]
    kernel = jnp.asarray(
        rng.normal(size=(case.num_experts, *case.kernel_size, case.width, case.outputs))
    )

    def run(inputs, attention):
        def loss(*operands):
            outputs = function(*operands, implementation=form, **case.jax_geometry)
            return jnp.sin(outputs).sum(), outputs

        if form == "vmap":
            return loss(inputs, attention, kernel)[1]
        gradients, outputs = jax.grad(loss, (0, 1, 2), has_aux=True)(
            inputs, attention, kernel
        )
        return *gradients, outputs

    batch = "3" if form in KNOWN_BATCH else "b"
    artifact = exported(
        run,
        f"{batch}, {', '.join(names)}, {case.channels}",
        f"{batch}, {case.num_experts}",
        constraints=[f"{n} >= {s}" for n, s in zip(names, case.spatial, strict=True)],
        dtype="float64",
    )
    for more in (0, 3):
        samples = 3 if form in KNOWN_BATCH else 1 + more
        spatial = [size + more * (axis + 1) for axis, size in enumerate(case.spatial)]
        operands = (
            rng.normal(size=(samples, *spatial, case.channels)),
            rng.normal(size=(samples, case.num_experts)),
        )
        actual, expected = (
            dict(enumerate(jax.tree.leaves(each(*operands))))
            for each in (artifact.call, jax.jit(run))
        )
        assert_close(
            {str(key): part for key, part in actual.items()},
            {str(key): part for key, part in expected.items()},
            dtype="float64",
        )


FAST = (
    *(("2d uneven", "auto"), ("2d uneven", "experts"), ("2d uneven", "scan")),
    *(("2d depthwise", "taps"), ("2d grouped", "auto")),
)


@pytest.mark.parametrize(("name", "form"), thinned(FORMS, *FAST))
def test_dynamic_convolution_of_any_size(name, form, rng):
    check(dynamic_conv, CASES[name], form, rng)


@pytest.mark.parametrize(
    ("name", "form"), thinned(TRANSPOSED, ("2d, depthwise", "taps"))
)
def test_transposed_convolution_of_any_size(name, form, rng):
    check(dynamic_conv_transpose, TRANSPOSE_CASES[name], form, rng)


@pytest.mark.parametrize("strides", [2, 3])
@pytest.mark.parametrize("size", [2, 3])
def test_same_padding_of_any_size(size, strides, rng):
    kernel = rng.normal(size=(2, size, size, 3, 2))

    def apply(inputs):
        attention = inputs[:, 0, 0, :2]
        return dynamic_conv(inputs, attention, jnp.asarray(kernel), strides=strides)

    artifact = exported(apply, "b, h, w, 3", dtype="float64")
    for shape in ((2, 1, 4, 3), (1, 6, 5, 3)):
        inputs = rng.normal(size=shape)
        assert_close(
            {"outputs": artifact.call(inputs)},
            {"outputs": apply(jnp.asarray(inputs))},
            dtype="float64",
        )


@pytest.mark.parametrize(
    ("options", "size", "constraint"),
    [
        ({"padding": "VALID"}, "h", "h >= 3"),
        ({"padding": ((1, 0), (1, 1))}, "h", "h >= 2"),
        ({"padding": ((1, 1), (2, 0)), "kernel_dilation": 2}, "h", "h >= 3"),
        ({"padding": ((1, 1), (-2, 1))}, "w", "w >= 4"),
    ],
)
def test_size_that_may_be_too_small_is_refused_with_the_constraint(
    options, size, constraint
):
    def export_with(constraints):
        def apply(inputs):
            kernel = jnp.ones((2, 3, 3, 3, 2))
            return dynamic_conv(inputs, inputs[:, 0, 0, :2], kernel, **options)

        return exported(apply, "b, h, w, 3", constraints=constraints, dtype="float64")

    with pytest.raises(ValueError, match=rf"\(h, w\) may be.*{size}.*'{constraint}'"):
        export_with(())
    other = {"h": "w", "w": "h"}[size]
    export_with([constraint, f"{other} >= 5"])


@pytest.mark.parametrize("form", ["scan", "row_conv", "vmap"])
def test_forms_that_need_a_number_of_samples_say_so(form):
    with pytest.raises(ValueError, match=f"'{form}'.*how many.*'patches', 'rows'"):
        exported(
            lambda inputs, kernel: per_sample_conv(inputs, kernel, implementation=form),
            "b, h, w, 3",
            "b, 3, 3, 3, 2",
        )


def test_transposed_layer_that_crops_all_of_a_small_image_says_so():
    with pytest.raises(ValueError, match="may be too small.*>= 1"):
        exported(layer("DynamicConvTranspose", 4, 6, (3, 3), padding=2), "b, h, w, 4")


def test_cost_of_an_unknown_size_is_that_of_a_typical_one():
    shape = export.symbolic_shape("b, h, 9, 3")
    geometry = Geometry.create(3, 4, (3, 3), padding=((-40, 0), (0, 0)))
    problem = Problem.of(
        jax.ShapeDtypeStruct(shape, jnp.float32), geometry, 2, chip=chip_for("cpu")
    )
    assert problem.batch is None
    assert problem.spatial == (43, 9)
    assert geometry.output_size(problem.spatial) == (1, 7)


def test_layer_in_training_exports_with_all_sizes_open():
    block = layer("DynamicConvBlock")
    graphdef, state = nnx.split(block)

    def train(inputs):
        block = nnx.merge(graphdef, state, copy=True)
        return block(inputs), nnx.to_pure_dict(nnx.state(block, nnx.BatchStat))

    artifact = exported(train, "b, h, w, 4")
    for shape in ((2, 5, 4, 4), (3, 1, 6, 4)):
        inputs = images(*shape)
        actual, expected = (
            dict(outputs=each[0], mean=each[1]["bn"]["mean"], var=each[1]["bn"]["var"])
            for each in (artifact.call(inputs), train(jnp.asarray(inputs)))
        )
        assert_close(actual, expected, dtype="float32")


def test_numbers_of_an_artifact_are_arrays_of_the_asked_dtype():
    artifact = exported(layer("DynamicConv"), "b, h, w, 4")
    assert artifact.call(np.ones((1, 2, 3, 4), np.float32)).dtype == np.float32
