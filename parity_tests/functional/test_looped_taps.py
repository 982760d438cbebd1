"""The depthwise form that loops over a few samples at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynconv_jax.functional.forms import FORMS
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.looped_taps import conv_by_looped_taps
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.taps import arrange_for_taps
from parity_tests.tolerances import assert_close

NAMES: tuple[str, ...] = ("output", "inputs", "kernel")


@dataclasses.dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution to test, and the size of its input.

    Attributes:
        spatial: The spatial size of the input.
        kernel_size: The spatial size of the kernel.
        multiplier: Outputs of a channel.
        options: As in `Geometry.create`.
    """

    spatial: tuple[int, ...]
    kernel_size: tuple[int, ...]
    multiplier: int = 1
    options: dict = dataclasses.field(default_factory=dict)

    @property
    def geometry(self) -> Geometry:
        """The geometry, of three channels."""
        outputs = 3 * self.multiplier
        return Geometry.create(
            3, outputs, self.kernel_size, feature_group_count=3, **self.options
        )

    def operands(self, rng, batch, dtype="float64"):
        """Draws inputs and kernels."""
        shapes = (
            (batch, *self.spatial, 3),
            (batch, *self.geometry.kernel_shape),
        )
        return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


CASES = {
    "1d": Depthwise((11,), (4,), 2, dict(strides=3, kernel_dilation=2)),
    "2d": Depthwise((7, 6), (3, 3)),
    "many rows": Depthwise((67, 2), (3, 2), 1, dict(padding=((1, 1), (0, 1)))),
    "uneven": Depthwise(
        (9, 8), (3, 4), 2, dict(strides=(2, 3), padding=((0, 2), (3, 1)))
    ),
    "dilated": Depthwise((9, 10), (3, 2), 1, dict(strides=2, kernel_dilation=(2, 3))),
    "cropped": Depthwise((8, 9), (3, 3), 1, dict(padding=((-1, 2), (1, -2)))),
    "strides past the window": Depthwise((9, 8), (2, 1), 1, dict(strides=(3, 2))),
    "3d": Depthwise((5, 4, 6), (2, 3, 3), 1, dict(strides=(2, 1, 2), padding=1)),
}
# Bytes that make steps of one sample, of several with a last step that is not whole,
# and of all; and those that the forward pass may take at once.
STEPS = {"one": (1, 0), "some": (15_000, 0), "all": (10**9, 10**9)}


def results(form, geometry, x, kernel):
    """Outputs and gradients under a random cotangent."""

    @jax.jit
    def run(x, kernel):
        outputs, pull = jax.vjp(functools.partial(convolve, form, geometry), x, kernel)
        cotangent = np.random.default_rng(1).normal(size=outputs.shape)
        return outputs, *pull(jnp.asarray(cotangent, outputs.dtype))

    return dict(zip(NAMES, run(x, kernel), strict=True))


def convolve(form, geometry, x, kernel, *, output_dtype=None):
    numerics = Numerics(None, output_dtype)
    if isinstance(form, str):
        arranged = FORMS[form].arrange(kernel, geometry)
        return FORMS[form].convolve(x, arranged, geometry, numerics)
    step, whole = form
    arranged = arrange_for_taps(kernel, geometry)
    return conv_by_looped_taps(x, arranged, geometry, numerics, step=step, whole=whole)


@functools.cache
def reference(name):
    """Operands of a case, and what the product of windows makes of them."""
    case = CASES[name]
    operands = case.operands(np.random.default_rng(0), 5)
    return operands, results("patches", case.geometry, *operands)


@pytest.mark.parametrize(
    ("name", "steps"),
    [*((name, "some") for name in CASES), ("uneven", "one"), ("uneven", "all")],
)
def test_outputs_and_gradients(name, steps):
    operands, expected = reference(name)
    actual = results(STEPS[steps], CASES[name].geometry, *operands)
    assert_close(actual, expected, dtype="float64")


def test_gradients_of_gradients(rng):
    case = CASES["1d"]
    operands = case.operands(rng, 3)

    def slope(form):
        def loss(*operands):
            return jnp.sum(jnp.sin(convolve(form, case.geometry, *operands)))

        def length(*operands):
            parts = jax.grad(loss, argnums=(0, 1))(*operands)
            return sum(jnp.sum(jnp.cos(part)) for part in parts)

        parts = jax.jit(jax.grad(length, argnums=(0, 1)))(*operands)
        return dict(zip(NAMES[1:], parts, strict=True))

    assert_close(slope(STEPS["one"]), slope("patches"), dtype="float64")


@pytest.mark.parametrize("steps", ["one", "all"])
def test_bfloat16_is_summed_in_float32(steps, rng):
    case = Depthwise((16, 16), (5, 5), 2, dict(strides=2))
    narrow = case.operands(rng, 2, "bfloat16")
    actual = results(STEPS[steps], case.geometry, *narrow)
    assert {array.dtype.name for array in actual.values()} == {"bfloat16"}
    wide = results(
        "patches", case.geometry, *(each.astype("float64") for each in narrow)
    )
    rounded = {name: array.astype("bfloat16") for name, array in wide.items()}
    assert_close(actual, rounded, dtype="bfloat16")
    # Each is the exact sum, rounded once: sums in bfloat16 would be off by many units.
    for name, array in actual.items():
        exact = np.asarray(wide[name])
        error = np.abs(np.asarray(array, "float64") - exact)
        cotangent_is_rounded = 0 if name == "output" else 2**-8 * np.abs(exact).max()
        assert np.all(error <= 2**-8 * np.abs(exact) + cotangent_is_rounded), name


def test_the_preferred_type_is_that_of_the_output(rng):
    case = CASES["2d"]
    x, kernel = case.operands(rng, 5, "bfloat16")
    actual = convolve(STEPS["one"], case.geometry, x, kernel, output_dtype=jnp.float32)
    exact = convolve(
        "patches", case.geometry, *(a.astype("float64") for a in (x, kernel))
    )
    assert actual.dtype == jnp.float32
    assert_close({"output": actual}, {"output": exact}, dtype="float32")


def test_of_the_whole_batch_there_are_only_operands_and_results():
    case = Depthwise((24, 20), (5, 5), 1, dict(strides=2))
    x, kernel = case.operands(np.random.default_rng(0), 64, "float32")

    def temporaries(form):
        def gradients(x, kernel):
            apply = functools.partial(convolve, form, case.geometry)
            outputs, pull = jax.vjp(apply, x, kernel)
            return outputs, pull(outputs)

        compiled = jax.jit(gradients).lower(x, kernel).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporaries((x.nbytes // 32, 0)) < x.nbytes / 2 < temporaries("taps")


@pytest.mark.parametrize("shape", ["b, 7, 6, 3", "5, h, w, 3"])
def test_sizes_that_are_not_known_when_it_is_exported(shape, rng):
    case = Depthwise((7, 6), (3, 3), 1, dict(strides=2, padding=1))
    x, kernel = case.operands(rng, 5, "float32")
    arranged = arrange_for_taps(kernel, case.geometry)
    symbolic = jax.export.symbolic_shape(shape)
    batch = symbolic[0]
    exported = jax.export.export(
        jax.jit(
            lambda x, kernel: conv_by_looped_taps(
                x, kernel, case.geometry, Numerics(), step=1, whole=0
            )
        )
    )(
        jax.ShapeDtypeStruct(symbolic, x.dtype),
        jax.ShapeDtypeStruct((batch, *arranged.shape[1:]), x.dtype),
    )
    actual = {"output": exported.call(x, arranged)}
    expected = {"output": convolve("patches", case.geometry, x, kernel)}
    assert_close(actual, expected, dtype="float32")


def test_an_empty_batch(rng):
    case = CASES["2d"]
    actual = results(STEPS["one"], case.geometry, *case.operands(rng, 0))
    assert [actual[name].shape for name in NAMES] == [
        (0, 7, 6, 3),
        (0, 7, 6, 3),
        (0, 3, 3, 1, 3),
    ]
