"""The adaptive convolution: its forms, its norms, transformations, what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dynconv_torch
from dynconv_jax import adaptive_conv
from parity_tests.passes import as_numpy
from parity_tests.tolerances import assert_close


def operands(rng, *leading) -> list[Any]:
    """Inputs, styles, attention and experts, with more leading axes."""
    shapes = (2, 5, 3, 4), (2, 4), (2, 3), (3, 3, 1, 4, 6)
    return [rng.normal(size=(*leading, *shape)) for shape in shapes]


def as_torch(inputs, styles, attention, kernel) -> list[Any]:
    """The same for PyTorch."""
    return [
        torch.from_numpy(inputs).movedim(-1, 1),
        *map(torch.from_numpy, (styles, attention)),
        torch.from_numpy(kernel).permute(0, 4, 3, 1, 2),
    ]


@pytest.mark.parametrize("gain", [0.7, np.linspace(1, 2, 8).reshape(2, 4)])
def test_every_form_of_both_computes_what_the_fused_one_does(gain, rng):
    given, bias = operands(rng), rng.normal(size=(3, 6))
    expected = adaptive_conv(*given, bias=bias, gain=gain, implementation="fused")
    for form in ("auto", "patches", "scan", "experts"):
        found = adaptive_conv(*given, bias=bias, gain=gain, implementation=form)
        assert_close({form: found}, {form: expected}, dtype="float64")
    shared: dict[str, Any] = dict(
        bias=torch.from_numpy(bias),
        gain=gain if isinstance(gain, float) else torch.from_numpy(gain),
        padding=(1, 0),
    )
    for form in ("auto", "grouped", "patches", "experts", "loop", "fused"):
        theirs = dynconv_torch.adaptive_conv(
            *as_torch(*given), implementation=form, **shared
        )
        found = as_numpy(theirs.movedim(1, -1))
        assert_close({form: found}, {form: expected}, dtype="float64")


def test_norms_make_no_kernel_per_sample():
    inputs, styles = jnp.ones((8, 5, 4, 16)), jnp.ones((8, 16))
    attention, kernel = jnp.ones((8, 2)) / 2, jnp.ones((2, 3, 3, 16, 16))

    def largest(implementation):
        program = jax.make_jaxpr(
            lambda *given: adaptive_conv(*given, implementation=implementation)
        )(inputs, styles, attention, kernel)
        return max(each.aval.size for eqn in program.eqns for each in eqn.outvars)

    assert largest("experts") <= 2 * max(inputs.size, kernel.size)
    assert largest("fused") >= 8 * kernel[0].size


def test_experts_that_cancel_have_a_norm_of_zero_and_no_more_than_that(rng):
    inputs, styles, _, kernel = (each.astype("float32") for each in operands(rng))
    kernel = np.concatenate([kernel[:1], -kernel[:1]])
    given: list[Any] = [inputs, styles, np.full((2, 2), 0.5, np.float32), kernel]
    outputs = adaptive_conv(*given)
    theirs = dynconv_torch.adaptive_conv(*as_torch(*given), padding=(1, 0))
    assert not outputs.any() and not theirs.any()


def test_ensemble_by_vmap_has_the_gradients_of_its_members(rng):
    given = operands(rng, 3)

    def loss(*operands):
        return jnp.sin(adaptive_conv(*operands)).sum()

    gradients = jax.grad(loss, (0, 1, 2, 3))
    mapped = jax.jit(jax.vmap(gradients))(*given)
    own = jax.jit(gradients)(*(each[1] for each in given))
    for found, expected in zip(mapped, own, strict=True):
        assert_close({"": found[1]}, {"": expected}, dtype="float64")


@pytest.mark.parametrize("implementation", ["auto", "fused"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(styles=np.ones((2, 3))), "`styles` .*in_(features|channels). = .2, 4."),
        (dict(gain=np.ones(2)), "`gain` .shape .2,.. must be a number"),
        (dict(attention=np.ones((2, 4))), "`attention` .*num_experts. = .2, 3."),
        (dict(attention=None), "`attention` .=None. is for a single expert"),
        (dict(bias=np.ones((3, 5))), "`bias` .shape .3, 5.. must be"),
    ],
)
def test_operands_that_do_not_fit_are_refused(wrong, message, implementation, rng):
    names = ("inputs", "styles", "attention", "kernel")
    given = dict(zip(names, operands(rng), strict=True))
    with pytest.raises(ValueError, match=message):
        adaptive_conv(**(given | wrong), implementation=implementation)
    tensors: dict[str, Any] = dict(
        zip(("input", *names[1:3], "weight"), as_torch(*given.values()), strict=True)
    )
    others: dict[str, Any] = {
        name: None if value is None else torch.from_numpy(value)
        for name, value in wrong.items()
    }
    with pytest.raises(ValueError, match=message):
        dynconv_torch.adaptive_conv(**(tensors | others), implementation=implementation)
