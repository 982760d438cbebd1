"""What every form of the convolution takes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dynconv_jax.functional.forms import FORMS
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from parity_tests.tolerances import assert_close


@pytest.mark.parametrize("form", FORMS)
def test_padding_by_its_name_is_that_by_its_numbers(form, rng):
    named = Geometry.create(
        3, 6, (3, 2), strides=(2, 1), padding="SAME", feature_group_count=3
    )
    inputs = jnp.asarray(rng.normal(size=(2, 6, 5, 3)))
    numbered = dataclasses.replace(named, padding=named.pads((6, 5)))
    assert numbered.padding == ((0, 1), (0, 1))
    kernel = jnp.asarray(rng.normal(size=(2, *named.kernel_shape)))

    def convolve(geometry):
        arranged = FORMS[form].arrange(kernel, geometry)
        return FORMS[form].convolve(inputs, arranged, geometry, Numerics())

    actual, expected = jax.jit(lambda: tuple(map(convolve, (named, numbered))))()
    assert actual.shape == (2, 3, 5, 6)
    assert_close({"": actual}, {"": expected}, dtype="float64")
