"""per_sample_conv: every implementation of both frameworks, one against another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dynconv_torch
from dynconv_jax import per_sample_conv
from parity_tests.tolerances import assert_close
from parity_tests.tools.cases import CASES


def operands(case, rng, dtype="float64"):
    group = (case.width, case.outputs)
    arrays = (
        case.inputs(rng),
        rng.normal(size=(case.batch, *case.kernel_size, *group)),
        rng.normal(size=(case.batch, case.outputs)),
    )
    return tuple(array.astype(dtype) for array in arrays)


def jax_results(case, arrays, implementation):
    """Outputs and gradients of `per_sample_conv` under a random cotangent."""

    @jax.jit
    def run(*arrays):
        outputs, pullback = jax.vjp(
            lambda *arrays: per_sample_conv(
                *arrays, implementation=implementation, **case.jax_geometry
            ),
            *arrays,
        )
        cotangent = np.random.default_rng(1).normal(size=outputs.shape)
        return outputs, pullback(jnp.asarray(cotangent))

    outputs, gradients = run(*map(jnp.asarray, arrays))
    names = ("inputs", "kernel", "bias")
    return {"output": outputs, **dict(zip(names, gradients, strict=True))}


@functools.cache
def case_with_reference(name):
    """Operands for a case, and what the readable reference makes of them."""
    case = CASES[name]
    arrays = operands(case, np.random.default_rng(0))
    return case, arrays, jax_results(case, arrays, "vmap")


@pytest.mark.parametrize("name", CASES)
def test_patches_equal_the_mapped_convolution(name):
    case, arrays, expected = case_with_reference(name)
    assert_close(jax_results(case, arrays, "patches"), expected, dtype="float64")


OTHER_FORMS = [
    (name, form)
    for name in ("2d uneven", "3d")
    for form in ("rows", "scan", "row_conv")
]
OTHER_FORMS += [("2d grouped", form) for form in ("rows", "row_conv")]
OTHER_FORMS += [("2d depthwise, multiplied", "taps")]


@pytest.mark.parametrize(("name", "form"), OTHER_FORMS)
def test_other_forms_equal_the_mapped_convolution(name, form):
    case, arrays, expected = case_with_reference(name)
    assert_close(jax_results(case, arrays, form), expected, dtype="float64")


@pytest.mark.parametrize("implementation", ["loop", "grouped", "patches"])
@pytest.mark.parametrize("name", CASES)
def test_pytorch_forms_equal_the_jax_reference(name, implementation):
    case, (x, kernel, bias), expected = case_with_reference(name)
    rank = len(case.spatial)
    weight = np.transpose(kernel, (0, rank + 2, rank + 1, *range(1, rank + 1)))
    outputs = dynconv_torch.per_sample_conv(
        torch.from_numpy(x).movedim(-1, 1),
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        implementation=implementation,
        **case.torch_geometry,
    )
    actual = {"output": outputs.movedim(1, -1).numpy()}
    assert_close(actual, {"output": expected["output"]}, dtype="float64")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["2d", "2d grouped", "3d"])
def test_narrow_dtypes_stay_and_agree_with_float64(name, dtype, rng):
    case = CASES[name]
    wide = [jnp.asarray(array, dtype) for array in operands(case, rng)]
    outputs = per_sample_conv(*wide, **case.jax_geometry)
    assert outputs.dtype == dtype
    exact = [array.astype("float64") for array in wide]
    expected = per_sample_conv(*exact, implementation="vmap", **case.jax_geometry)
    assert_close({"output": outputs}, {"output": expected}, dtype=dtype)


@pytest.mark.parametrize(
    "implementation", ["patches", "rows", "scan", "row_conv", "vmap"]
)
def test_preferred_element_type_is_the_dtype_of_the_output(implementation, rng):
    x, kernel, _ = operands(CASES["2d"], rng, "float32")
    outputs = per_sample_conv(
        jnp.asarray(x, jnp.bfloat16),
        jnp.asarray(kernel, jnp.bfloat16),
        implementation=implementation,
        preferred_element_type=jnp.float32,
    )
    assert outputs.dtype == jnp.float32


@pytest.mark.parametrize(
    "implementation", ["auto", "patches", "rows", "scan", "row_conv"]
)
def test_an_empty_batch_gives_an_empty_output(implementation):
    outputs = per_sample_conv(
        jnp.ones((0, 5, 4, 3)),
        jnp.ones((0, 3, 3, 3, 2)),
        implementation=implementation,
    )
    assert outputs.shape == (0, 5, 4, 2)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("int32", "^`kernel` .int32. must be floating.*float32"),
        ("complex64", "^`inputs` .complex64. must be real"),
    ],
)
def test_dtypes_that_are_not_floating_are_refused(dtype, message):
    with pytest.raises(ValueError, match=message):
        per_sample_conv(jnp.ones((2, 5, 3), dtype), jnp.ones((2, 3, 3, 2), dtype))


def test_nan_reaches_the_output_of_its_own_sample_only(rng):
    x, kernel, bias = operands(CASES["2d"], rng)
    x[0, 3, 3, 0] = np.nan
    outputs = np.asarray(per_sample_conv(*map(jnp.asarray, (x, kernel, bias))))
    assert np.isnan(outputs[0]).any()
    assert np.isfinite(outputs[1]).all()


def test_experts_are_refused_because_they_need_the_attention():
    with pytest.raises(ValueError, match="experts.*dynamic_conv"):
        per_sample_conv(
            jnp.ones((1, 4, 3)), jnp.ones((1, 3, 3, 2)), implementation="experts"
        )


def test_unknown_implementation_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="'winograd'.*'auto', 'patches'"):
        per_sample_conv(
            jnp.ones((1, 4, 3)), jnp.ones((1, 3, 3, 2)), implementation="winograd"
        )


BAD_OPERANDS = {
    "no spatial axis": ((2, 3), (2, 3, 4), None, "inputs.*spatial"),
    "four spatial axes": ((2, 3, 3, 3, 3, 3), (2, 3, 4), None, "inputs.*spatial"),
    "kernel of another rank": ((2, 5, 5, 3), (2, 3, 3, 4), None, "kernel.*5 dim"),
    "kernel of another batch": ((2, 5, 3), (3, 3, 3, 4), None, r"kernel.*\(2, 3, 3, 4"),
    "kernel of other channels": ((2, 5, 3), (2, 3, 2, 4), None, r"kernel.*shape \(2, "),
    "bias of another batch": ((2, 5, 3), (2, 3, 3, 4), (1, 4), r"bias.*\(2, 4\)"),
    "bias of one sample": ((2, 5, 3), (2, 3, 3, 4), (4,), r"bias.*\(2, 4\)"),
}


@pytest.mark.parametrize("name", BAD_OPERANDS)
def test_operands_that_do_not_fit_are_refused(name):
    inputs, kernel, bias, message = BAD_OPERANDS[name]
    with pytest.raises(ValueError, match=message):
        per_sample_conv(
            jnp.ones(inputs), jnp.ones(kernel), None if bias is None else jnp.ones(bias)
        )


def test_dtypes_that_differ_are_refused():
    with pytest.raises(ValueError, match="float32.*bfloat16.*same dtype"):
        per_sample_conv(
            jnp.ones((2, 5, 3), jnp.float32), jnp.ones((2, 3, 3, 4), jnp.bfloat16)
        )


def test_patches_become_one_batched_product_and_no_convolution():
    def loss(x, kernel):
        return per_sample_conv(x, kernel, padding=1).sum()

    arrays = jnp.ones((4, 6, 5, 3)), jnp.ones((4, 3, 3, 3, 8))
    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arrays).as_text()
    assert "stablehlo.convolution" not in program
    assert "stablehlo.dot_general" in program
