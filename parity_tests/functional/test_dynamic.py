"""dynamic_conv and mix_kernels: the mixture before and after the convolution."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dynconv_torch
from dynconv_jax import dynamic_conv, mix_kernels, per_sample_conv
from parity_tests.tolerances import assert_close
from parity_tests.tools.cases import CASES

FORMS_OF_CASES = [
    (name, form)
    for name, case in CASES.items()
    for form in ("patches", "rows", "scan", "experts", "row_conv")
    + ("taps",) * case.is_depthwise
]
NAMES = ("inputs", "attention", "kernel", "bias", "spatial attention")


def operands(case, rng):
    group = (case.width, case.outputs)
    return (
        case.inputs(rng),
        rng.normal(size=(case.batch, case.num_experts)),
        rng.normal(size=(case.num_experts, *case.kernel_size, *group)),
        rng.normal(size=(case.num_experts, case.outputs)),
    )


def cotangent_like(outputs):
    return np.random.default_rng(1).normal(size=tuple(outputs.shape))


def jax_results(case, arrays, function=dynamic_conv, **options):
    """Outputs and gradients of `dynamic_conv` under a random cotangent."""

    @jax.jit
    def run(*arrays):
        outputs, pullback = jax.vjp(
            lambda *arrays: function(*arrays, **case.jax_geometry, **options),
            *arrays,
        )
        cotangent = jnp.asarray(cotangent_like(outputs), outputs.dtype)
        return outputs, pullback(cotangent)

    outputs, gradients = run(*map(jnp.asarray, arrays))
    return {"output": outputs, **dict(zip(NAMES, gradients, strict=False))}


def torch_results(case, arrays, function=dynconv_torch.dynamic_conv, **options):
    """The same of PyTorch's, arrays in JAX's layout."""
    rank = len(case.spatial)
    # (K, *k, C/g, O) -> (K, O, C/g, *k); autograd takes the gradient back.
    to_torch = (0, rank + 2, rank + 1, *range(1, rank + 1))
    leaves = [torch.from_numpy(array).requires_grad_() for array in arrays]
    x, attention, kernel, *others = leaves
    outputs = function(
        x.movedim(-1, 1),
        attention,
        kernel.permute(to_torch),
        *others,
        **case.torch_geometry,
        **options,
    ).movedim(1, -1)
    gradients = torch.autograd.grad(
        outputs, leaves, torch.from_numpy(cotangent_like(outputs))
    )
    named = zip(NAMES, (gradient.numpy() for gradient in gradients), strict=False)
    return {"output": outputs.detach().numpy(), **dict(named)}


@functools.cache
def case_with_reference(name):
    """Operands for a case, and what the readable reference makes of them."""
    case = CASES[name]
    arrays = operands(case, np.random.default_rng(0))
    return case, arrays, jax_results(case, arrays, implementation="vmap")


@pytest.mark.parametrize(("name", "implementation"), FORMS_OF_CASES)
def test_forms_equal_the_mapped_convolution(name, implementation):
    case, arrays, expected = case_with_reference(name)
    actual = jax_results(case, arrays, implementation=implementation)
    assert_close(actual, expected, dtype="float64")


@pytest.mark.parametrize("implementation", ["loop", "grouped", "patches", "experts"])
@pytest.mark.parametrize("name", CASES)
def test_pytorch_forms_equal_the_jax_reference(name, implementation):
    case, arrays, expected = case_with_reference(name)
    actual = torch_results(case, arrays, implementation=implementation)
    assert_close(actual, expected, dtype="float64")


SPATIAL = (*("2d strided", "2d grouped", "3d", "2d depthwise, multiplied"),)
SPATIAL_FORMS = [
    (name, form)
    for name, form in FORMS_OF_CASES
    if name in SPATIAL and (form != "scan" or not CASES[name].is_depthwise)
]


def with_spatial_attention(function):
    """Calls with the last operand as the spatial attention, which is differentiated."""

    def call(*operands, **options):
        *operands, spatial = operands
        return function(*operands, spatial_attention=spatial, **options)

    return call


@functools.cache
def spatial_case_with_reference(name):
    """As `case_with_reference`, with spatial attention; kernels multiplied by hand."""
    case = dataclasses.replace(CASES[name], batch=3)
    rng = np.random.default_rng(2)
    arrays = (*operands(case, rng), rng.normal(size=(case.batch, *case.kernel_size)))

    def multiplied(inputs, attention, kernel, bias, spatial, **options):
        return per_sample_conv(
            inputs,
            mix_kernels(attention, kernel) * spatial[..., None, None],
            mix_kernels(attention, bias),
            **options,
        )

    expected = jax_results(case, arrays, multiplied, implementation="vmap")
    return case, arrays, expected


@pytest.mark.parametrize(("name", "implementation"), SPATIAL_FORMS)
def test_spatial_attention_weighs_the_taps_in_every_form(name, implementation):
    case, arrays, expected = spatial_case_with_reference(name)
    actual = jax_results(
        case,
        arrays,
        with_spatial_attention(dynamic_conv),
        implementation=implementation,
    )
    assert_close(actual, expected, dtype="float64")


@pytest.mark.parametrize("implementation", ["loop", "grouped", "patches", "auto"])
@pytest.mark.parametrize("name", ["2d strided", "2d grouped", "3d"])
def test_spatial_attention_weighs_the_taps_in_pytorch(name, implementation):
    case, arrays, expected = spatial_case_with_reference(name)
    actual = torch_results(
        case,
        arrays,
        with_spatial_attention(dynconv_torch.dynamic_conv),
        implementation=implementation,
    )
    assert_close(actual, expected, dtype="float64")


@pytest.mark.parametrize("form", ["patches", "scan", "experts"])
def test_without_attention_one_expert_counts_fully(form, rng):
    case = dataclasses.replace(CASES["one expert"], batch=3)
    inputs, _, kernel, bias = map(jnp.asarray, operands(case, rng))
    taps = jnp.asarray(rng.normal(size=(3, *case.kernel_size)))
    for spatial in (taps, None):
        outputs, expected = (
            dynamic_conv(
                inputs,
                attention,
                kernel,
                bias,
                spatial_attention=spatial,
                implementation=form,
                **case.jax_geometry,
            )
            for attention in (None, jnp.ones((3, 1)))
        )
        assert_close({"output": outputs}, {"output": expected}, dtype="float64")


def test_without_attention_one_expert_counts_fully_in_pytorch(rng):
    x, weight = torch.randn(3, 4, 6, 5), torch.randn(1, 8, 2, 3, 3)
    for spatial in (torch.randn(3, 3, 3), None):
        outputs, expected = (
            dynconv_torch.dynamic_conv(
                x,
                attention,
                weight,
                torch.ones(1, 8),
                spatial_attention=spatial,
                groups=2,
            ).numpy()
            for attention in (None, torch.ones(3, 1))
        )
        assert_close({"output": outputs}, {"output": expected}, dtype="float32")


def test_without_any_attention_a_pointwise_kernel_is_one_product():
    def convolve(inputs, kernel):
        return dynamic_conv(inputs, None, kernel, strides=2)

    operands = jnp.ones((5, 7, 6, 3)), jnp.ones((1, 1, 1, 3, 4))
    program = jax.jit(convolve).lower(*operands).as_text()
    assert "dot_general" in program and "convolution" not in program
    assert "5x1x1x3x4" not in program and "tensor<5x3x4x" not in program


def test_attention_that_is_missing_for_several_experts_is_refused():
    with pytest.raises(ValueError, match=r"attention` \(=None\).*\(2, 3\)"):
        dynamic_conv(jnp.ones((2, 5, 4)), None, jnp.ones((3, 3, 4, 8)))
    with pytest.raises(ValueError, match=r"attention` \(=None\).*\(2, 3\)"):
        dynconv_torch.dynamic_conv(torch.ones(2, 4, 5), None, torch.ones(3, 8, 4, 3))


@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3,), (2, 3, 1)])
def test_spatial_attention_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"spatial_attention.*\(2, 3\)"):
        dynamic_conv(
            jnp.ones((2, 5, 4)),
            jnp.ones((2, 3)),
            jnp.ones((3, 3, 4, 8)),
            spatial_attention=jnp.ones(shape),
        )
    with pytest.raises(ValueError, match=r"spatial_attention.*\(2, 3\)"):
        dynconv_torch.dynamic_conv(
            torch.ones(2, 4, 5),
            torch.ones(2, 3),
            torch.ones(3, 8, 4, 3),
            spatial_attention=torch.ones(shape),
        )


def test_experts_of_pytorch_refuse_spatial_attention():
    with pytest.raises(ValueError, match="'experts'.*spatial_attention.*'grouped'"):
        dynconv_torch.dynamic_conv(
            torch.ones(2, 4, 5),
            torch.ones(2, 3),
            torch.ones(3, 8, 4, 3),
            spatial_attention=torch.ones(2, 3),
            implementation="experts",
        )


# Batches of several steps of a loop and a rest; planes of several blocks of rows.
LOOPED = {
    "scan": dataclasses.replace(CASES["2d strided"], batch=9),
    "scan, 3d": dataclasses.replace(CASES["3d"], batch=5),
    "taps": dataclasses.replace(CASES["2d depthwise"], batch=5),
    "taps, tall": dataclasses.replace(CASES["2d depthwise"], spatial=(70, 3), batch=3),
    "taps, multiplied": dataclasses.replace(
        CASES["2d depthwise, multiplied"], spatial=(69, 3), batch=4
    ),
}


@pytest.mark.parametrize("name", LOOPED)
def test_loops_equal_the_mapped_convolution(name, rng):
    case = LOOPED[name]
    arrays = operands(case, rng)
    actual = jax_results(case, arrays, implementation=name.split(",")[0])
    expected = jax_results(case, arrays, implementation="vmap")
    assert_close(actual, expected, dtype="float64")


def test_infinite_pixel_reaches_only_the_taps_that_see_it(rng):
    case = LOOPED["taps, tall"]
    arrays = operands(case, rng)
    arrays[0][0, -1] = np.inf

    def is_finite(implementation):
        found = jax_results(case, arrays, implementation=implementation)
        return {"kernel": np.isfinite(found["kernel"]).astype(float)}

    assert_close(is_finite("taps"), is_finite("vmap"), dtype="float64")


NARROW = [(form, "2d strided") for form in ("patches", "rows", "scan", "experts")]
NARROW += [("taps", "2d depthwise"), ("rows", "2d grouped"), ("scan", "3d")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("implementation", "name"), NARROW)
def test_forms_in_narrow_dtypes_agree_with_float64(implementation, name, dtype, rng):
    case = CASES[name]
    narrow = [jnp.asarray(array, dtype) for array in operands(case, rng)]
    actual = jax_results(case, narrow, implementation=implementation)
    assert all(value.dtype == dtype for value in actual.values())
    exact = [array.astype("float64") for array in narrow]
    expected = jax_results(case, exact, implementation="vmap")
    assert_close(actual, expected, dtype=dtype)


def test_auto_is_one_of_the_named_forms(rng):
    case = CASES["2d"]
    arrays = [jnp.asarray(array) for array in operands(case, rng)]
    outputs = dynamic_conv(*arrays, **case.jax_geometry)
    expected = dynamic_conv(*arrays, implementation="vmap", **case.jax_geometry)
    assert_close({"output": outputs}, {"output": expected}, dtype="float64")


def test_second_derivatives_equal_those_of_the_reference(rng):
    case = CASES["2d strided"]
    arrays = [jnp.asarray(array) for array in operands(case, rng)]

    def slope(implementation):
        def loss(x):
            outputs = dynamic_conv(
                x, *arrays[1:], implementation=implementation, **case.jax_geometry
            )
            return jnp.sin(outputs).sum()

        return jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2)))(arrays[0])

    expected = {"hessian": slope("vmap")}
    for form in ("patches", "experts"):
        assert_close({"hessian": slope(form)}, expected, dtype="float64")


def test_mixing_is_the_weighted_sum_of_the_experts(rng):
    attention, kernel = rng.normal(size=(2, 3)), rng.normal(size=(3, 4, 5))
    expected = np.stack([row @ kernel.reshape(3, -1) for row in attention])
    expected = expected.reshape(2, 4, 5)
    mixed = {
        "jax": mix_kernels(jnp.asarray(attention), jnp.asarray(kernel)),
        "torch": dynconv_torch.mix_kernels(
            torch.from_numpy(attention), torch.from_numpy(kernel)
        ).numpy(),
    }
    assert_close(mixed, dict.fromkeys(mixed, expected), dtype="float64")


def test_mixing_keeps_the_dtype_of_the_kernels():
    mixed = mix_kernels(jnp.ones((2, 3), jnp.float32), jnp.ones((3, 4), jnp.bfloat16))
    assert mixed.dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (3,), (2, 3, 1)])
def test_attention_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"attention.*\(2, 3\)"):
        dynamic_conv(jnp.ones((2, 5, 4)), jnp.ones(shape), jnp.ones((3, 3, 4, 8)))


@pytest.mark.parametrize("shape", [(2, 4), (3,)])
def test_mixing_another_number_of_experts_is_refused(shape):
    with pytest.raises(ValueError, match="attention.*3 experts"):
        mix_kernels(jnp.ones(shape), jnp.ones((3, 3, 4, 8)))


def test_kernel_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="kernel.*num_experts"):
        dynamic_conv(jnp.ones((2, 5, 4)), jnp.ones((2, 3)), jnp.ones((3, 3, 5, 8)))


def test_mixing_integers_is_refused():
    with pytest.raises(ValueError, match="kernel.*int32.*float32"):
        mix_kernels(jnp.full((2, 3), 0.5), jnp.ones((3, 4), jnp.int32))
    with pytest.raises(ValueError, match="weight.*int32.*float32"):
        dynconv_torch.mix_kernels(
            torch.full((2, 3), 0.5), torch.ones(3, 4, dtype=torch.int32)
        )
