"""The modulated convolution: its forms, its gain, transformations, what it refuses."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import dynconv_torch
from dynconv_jax import modulated_conv
from parity_tests.passes import as_numpy
from parity_tests.tolerances import assert_close


def operands(rng, *leading):
    """Inputs, styles and a kernel, with more leading axes."""
    shapes = (2, 5, 3, 4), (2, 4), (3, 1, 4, 6)
    return [rng.normal(size=(*leading, *shape)) for shape in shapes]


@pytest.mark.parametrize("shape", [(), (4,), (2, 4)])
def test_gain_may_be_of_each_channel(shape, rng):
    inputs, styles, kernel = operands(rng)
    gain = rng.normal(size=shape)
    of_channels = np.broadcast_to(gain, (2, 4))[:, None, None]
    expected = modulated_conv(inputs * of_channels, styles, kernel)
    theirs = dynconv_torch.modulated_conv(
        torch.from_numpy(inputs).movedim(-1, 1),
        torch.from_numpy(styles),
        torch.from_numpy(kernel).permute(3, 2, 0, 1),
        gain=torch.from_numpy(gain),
        padding=(1, 0),
    )
    for implementation in ("scaled", "fused"):
        found = modulated_conv(
            inputs, styles, kernel, gain=gain, implementation=implementation
        )
        assert_close({"": found}, {"": expected}, dtype="float64")
    assert_close({"": as_numpy(theirs.movedim(1, -1))}, {"": expected}, dtype="float64")


def test_scaled_form_makes_no_kernel_per_sample():
    inputs, styles = jnp.ones((8, 5, 4, 16)), jnp.ones((8, 16))
    kernel = jnp.ones((3, 3, 16, 16))

    def largest(implementation):
        program = jax.make_jaxpr(
            lambda *given: modulated_conv(*given, implementation=implementation)
        )(inputs, styles, kernel)
        return max(each.aval.size for eqn in program.eqns for each in eqn.outvars)

    assert largest("auto") == inputs.size
    assert largest("fused") >= 8 * kernel.size


def test_ensemble_by_vmap_has_the_gradients_of_its_members(rng):
    given = operands(rng, 3)

    def loss(*operands):
        return jnp.sin(modulated_conv(*operands, pre_normalize=True)).sum()

    gradients = jax.grad(loss, (0, 1, 2))
    mapped = jax.jit(jax.vmap(gradients))(*given)
    own = jax.jit(gradients)(*(each[1] for each in given))
    for found, expected in zip(mapped, own, strict=True):
        assert_close({"": found[1]}, {"": expected}, dtype="float64")


def test_gradient_of_a_wide_kernel_is_not_rounded_in_a_narrow_layer(rng):
    inputs, styles, kernel = operands(rng)
    narrow = inputs.astype(ml_dtypes.bfloat16)
    styles, kernel = styles.astype("float32"), kernel.astype("float32")

    def loss(kernel):
        outputs = modulated_conv(narrow, styles, kernel, demodulate=False)
        assert outputs.dtype == jnp.bfloat16
        return outputs.astype(jnp.float32).sum()

    gradient = np.asarray(jax.grad(loss)(kernel))
    assert gradient.dtype == np.float32
    assert (gradient != gradient.astype(ml_dtypes.bfloat16).astype("float32")).any()


def test_normalised_operands_stay_in_range_where_others_overflow(rng):
    inputs, styles, kernel = (each.astype("float16") for each in operands(rng))
    styles, kernel = styles * np.float16(100), kernel * np.float16(1000)
    outputs = modulated_conv(inputs, styles, kernel)
    normalised = modulated_conv(inputs, styles, kernel, pre_normalize=True)
    assert not np.isfinite(outputs).all() and np.isfinite(normalised).all()
    wide = (each.astype("float32") for each in (inputs, styles, kernel))
    expected = modulated_conv(*wide)
    found = np.asarray(normalised, np.float32)
    assert_close({"": found}, {"": expected.astype("bfloat16")}, dtype="bfloat16")


def test_kernel_and_style_of_zeros_give_zeros(rng):
    inputs, styles, kernel = operands(rng)
    for style, own in ((styles * 0, kernel), (styles, kernel * 0)):
        assert not modulated_conv(inputs, style, own, pre_normalize=True).any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(styles=np.ones((2, 3))), "`styles` .*in_(features|channels). = .2, 4."),
        (dict(gain=np.ones(2)), "`gain` .shape .2,.. must be a number"),
        (dict(bias=np.ones(5)), "`bias` .shape .5,.. must be .out_(features|channels)"),
        (dict(kernel=np.ones((4, 6))), r"`(kernel|weight)` .* must be \((\*k|out_ch)"),
        (
            dict(implementation="vmap"),
            "`implementation` .='vmap'. must be one of 'auto",
        ),
    ],
)
def test_operands_that_do_not_fit_are_refused(wrong, message):
    given = dict(inputs=np.ones((2, 7, 4)), styles=np.ones((2, 4)))
    given |= dict(kernel=np.ones((3, 4, 6))) | wrong
    with pytest.raises(ValueError, match=message):
        modulated_conv(**given)
    tensors = {
        name: torch.from_numpy(value.T.copy() if name == "kernel" else value)
        for name, value in given.items()
        if isinstance(value, np.ndarray)
    }
    rest = {name: value for name, value in given.items() if name not in tensors}
    inputs, weight = tensors.pop("inputs").movedim(-1, 1), tensors.pop("kernel")
    with pytest.raises(ValueError, match=message):
        dynconv_torch.modulated_conv(inputs, weight=weight, **tensors, **rest)
