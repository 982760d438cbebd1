"""The transposed convolution's functions: phases, and every form."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from jax import export

import dynconv_torch
from dynconv_jax import dynamic_conv_transpose, per_sample_conv_transpose
from dynconv_jax.functional.transpose_geometry import TransposeGeometry
from dynconv_jax.multiply_adds import _count
from parity_tests.tolerances import assert_close
from parity_tests.tools.cases import TRANSPOSE_CASES, transposed_convolutions

NAMES = ("inputs", "attention", "kernel", "bias")


def operands(case, rng):
    """Inputs, attention, experts (K, *k, C/g, O) and their biases."""
    return (
        case.inputs(rng),
        rng.normal(size=(case.batch, case.num_experts)),
        rng.normal(
            size=(case.num_experts, *case.kernel_size, case.width, case.outputs)
        ),
        rng.normal(size=(case.num_experts, case.outputs)),
    )


def torch_kernel(case, kernel):
    """(K, *k, C/g, O) → (K, C, O/g, *k), group by group."""
    rank = len(case.kernel_size)
    groups = kernel.tensor_split(case.groups, dim=-1)
    moved = [
        part.permute(0, rank + 1, rank + 2, *range(1, rank + 1)) for part in groups
    ]
    return torch.cat(moved, dim=1)


def crop_as_asked(case, full):
    """Crops, or lengthens by zeros, what `conv_transpose` answers without padding."""
    flat = []
    for (low, high), extra in zip(case.padding, case.output_padding, strict=True):
        flat = [-low, extra - high, *flat]
    longer = torch.nn.functional.pad(full, [max(pad, 0) for pad in flat])
    return torch.nn.functional.pad(longer, [min(pad, 0) for pad in flat])


def plain_loop(case, inputs, attention, kernel, bias):
    """Sample by sample, one kernel mixed at a time, with PyTorch's own function."""
    function = getattr(torch.nn.functional, f"conv_transpose{len(case.spatial)}d")
    weight = torch_kernel(case, kernel)
    options: dict[str, Any] = dict(
        stride=case.strides, groups=case.groups, dilation=case.dilation
    )
    if case.is_torch_padding:
        options["padding"] = tuple(low for low, _ in case.padding)
        options["output_padding"] = case.output_padding
    outputs = []
    for sample, weights in zip(inputs.movedim(-1, 1), attention, strict=True):
        one = function(sample[None], torch.tensordot(weights, weight, 1), **options)
        if not case.is_torch_padding:
            one = crop_as_asked(case, one)
        outputs.append(one + (weights @ bias).reshape(-1, *(1,) * len(case.spatial)))
    return torch.cat(outputs).movedim(1, -1)


def torch_results(function, arrays):
    """Outputs and gradients of a function on tensors under a random cotangent."""
    leaves = [torch.from_numpy(array).requires_grad_() for array in arrays]
    outputs = function(*leaves)
    cotangent = np.random.default_rng(1).normal(size=tuple(outputs.shape))
    gradients = torch.autograd.grad(outputs, leaves, torch.from_numpy(cotangent))
    named = {n: g.numpy() for n, g in zip(NAMES, gradients, strict=True)}
    return {"output": outputs.detach().numpy(), **named}


def jax_results(case, arrays, jit=True, **options):
    """The same of `dynamic_conv_transpose`."""

    def run(*arrays):
        outputs, pullback = jax.vjp(
            lambda *arrays: dynamic_conv_transpose(
                *arrays, **case.jax_geometry, **options
            ),
            *arrays,
        )
        cotangent = np.random.default_rng(1).normal(size=outputs.shape)
        return outputs, pullback(jnp.asarray(cotangent, outputs.dtype))

    run = jax.jit(run) if jit else run
    outputs, gradients = run(*map(jnp.asarray, arrays))
    return {"output": outputs, **dict(zip(NAMES, gradients, strict=True))}


@functools.cache
def case_with_reference(name):
    """Operands for a case, and what the plain loop makes of them."""
    case = TRANSPOSE_CASES[name]
    arrays = operands(case, np.random.default_rng(0))
    return case, arrays, torch_results(functools.partial(plain_loop, case), arrays)


@pytest.mark.parametrize("name", TRANSPOSE_CASES)
def test_patches_equal_the_plain_loop(name):
    case, arrays, expected = case_with_reference(name)
    actual = jax_results(case, arrays, implementation="patches")
    assert_close(actual, expected, dtype="float64")


OTHER_FORMS = [("2d, uneven", form) for form in ("auto", "rows", "scan", "experts")]
OTHER_FORMS += [("2d, depthwise", "taps"), ("2d, depthwise, multiplied", "taps")]
OTHER_FORMS += [("2d, grouped", "experts"), ("3d", "rows")]
OTHER_FORMS += [(name, "vmap") for name in ("1d, dilated", "2d, uneven", "2d, grouped")]


@pytest.mark.parametrize(("name", "implementation"), OTHER_FORMS)
def test_other_forms_equal_the_plain_loop(name, implementation):
    case, arrays, expected = case_with_reference(name)
    actual = jax_results(case, arrays, implementation=implementation)
    assert_close(actual, expected, dtype="float64")


@pytest.mark.parametrize(
    "implementation", ["auto", "loop", "grouped", "patches", "experts"]
)
@pytest.mark.parametrize("name", TRANSPOSE_CASES)
def test_pytorch_forms_equal_the_plain_loop(name, implementation):
    case, arrays, expected = case_with_reference(name)

    def function(inputs, attention, kernel, bias):
        return dynconv_torch.dynamic_conv_transpose(
            inputs.movedim(-1, 1),
            attention,
            torch_kernel(case, kernel),
            bias,
            implementation=implementation,
            **case.torch_geometry,
        ).movedim(1, -1)

    assert_close(torch_results(function, arrays), expected, dtype="float64")


@settings(max_examples=15, deadline=None)
@given(case=transposed_convolutions())
def test_any_geometry_agrees_with_the_plain_loop_or_is_refused_by_both(case):
    arrays = operands(case, np.random.default_rng(0))
    inputs, attention, kernel, bias = map(torch.from_numpy, arrays)

    def theirs():
        return dynconv_torch.dynamic_conv_transpose(
            inputs.movedim(-1, 1),
            attention,
            torch_kernel(case, kernel),
            bias,
            **case.torch_geometry,
        ).movedim(1, -1)

    def ours():
        forward = functools.partial(dynamic_conv_transpose, **case.jax_geometry)
        return jax.jit(forward)(*map(jnp.asarray, arrays))

    geometry = TransposeGeometry.create(
        case.channels, case.outputs, case.kernel_size, **case.jax_geometry
    )
    cropped = [
        low + high - extra
        for (low, high), extra in zip(case.padding, case.output_padding, strict=True)
    ]
    full = dataclasses.replace(geometry, padding=((0, 0),) * geometry.rank)
    full = dataclasses.replace(full, output_padding=(0,) * geometry.rank)
    sizes = np.subtract(full.output_size(case.spatial), cropped)
    if sizes.min() < 1:
        for call in (ours, theirs):
            with pytest.raises(ValueError, match=r"padding.*crops all of the output"):
                call()
        return
    expected = plain_loop(case, inputs, attention, kernel, bias).numpy()
    assert expected.shape[1:-1] == tuple(sizes)
    for outputs in (ours(), theirs()):
        assert_close({"output": outputs}, {"output": expected}, dtype="float64")


@pytest.mark.parametrize("implementation", ["patches", "vmap"])
def test_kernels_of_ones_own_equal_one_expert_a_sample(implementation, rng):
    case = TRANSPOSE_CASES["2d, uneven"]
    inputs, _, _, _ = operands(case, rng)
    group = case.width, case.outputs
    kernel = jnp.asarray(rng.normal(size=(case.batch, *case.kernel_size, *group)))
    bias = jnp.asarray(rng.normal(size=(case.batch, case.outputs)))
    outputs = per_sample_conv_transpose(
        jnp.asarray(inputs),
        kernel,
        bias,
        implementation=implementation,
        **case.jax_geometry,
    )
    chosen = jnp.eye(case.batch)
    expected = dynamic_conv_transpose(
        jnp.asarray(inputs), chosen, kernel, bias, **case.jax_geometry
    )
    assert_close({"output": outputs}, {"output": expected}, dtype="float64")
    theirs = dynconv_torch.per_sample_conv_transpose(
        torch.from_numpy(inputs).movedim(-1, 1),
        torch_kernel(case, torch.from_numpy(np.array(kernel))),
        torch.from_numpy(np.array(bias)),
        **case.torch_geometry,
    )
    actual = {"output": theirs.movedim(1, -1).numpy()}
    assert_close(actual, {"output": expected}, dtype="float64")


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_inputs_are_multiplied_by_taps_and_never_by_inserted_zeros(kernel):
    arrays = jnp.ones((2, 6, 5, 3)), jnp.ones((2, kernel, kernel, 3, 4))

    def multiply_adds(form):
        function = functools.partial(
            per_sample_conv_transpose, strides=2, implementation=form
        )
        return _count(jax.make_jaxpr(function)(*arrays).jaxpr)

    # Every input meets every tap, as of each remainder there is an output per input.
    all_pairs = 2 * (6 * 5) * kernel**2 * 3 * 4
    assert multiply_adds("patches") == multiply_adds("vmap") == all_pairs


@pytest.mark.parametrize("form", ["auto", "patches", "rows", "scan", "experts"])
def test_no_form_but_the_reference_convolves_or_spreads_the_inputs(form, rng):
    case = TRANSPOSE_CASES["2d"]
    arrays = tuple(map(jnp.asarray, operands(case, rng)))

    def forward(*arrays):
        return dynamic_conv_transpose(*arrays, implementation=form, **case.jax_geometry)

    def gradient(*arrays):
        return jax.grad(lambda *arrays: forward(*arrays).sum(), (0, 1, 2))(*arrays)

    for function in (forward, gradient):
        program = jax.jit(function).lower(*arrays).as_text()
        assert "stablehlo.convolution" not in program
        assert "stablehlo.dot_general" in program
    program = jax.jit(forward).lower(*arrays).as_text()
    pads = re.findall(r"stablehlo\.pad.*interior = \[([\d, ]+)\]", program)
    assert pads and not set("".join(pads)) - set("0, ")


def test_depthwise_kernels_have_taps_and_others_refuse_them():
    arrays = jnp.ones((2, 5, 3)), jnp.ones((2, 2)), jnp.ones((2, 3, 3, 3))
    with pytest.raises(ValueError, match=r"'taps'.*depthwise.*'patches'"):
        dynamic_conv_transpose(*arrays, implementation="taps")


@pytest.mark.parametrize("form", ["auto", "rows", "experts"])
def test_transposed_convolution_with_a_free_batch(form, rng):
    case = TRANSPOSE_CASES["2d, outputs that no tap reaches"]
    inputs, attention, kernel, bias = map(jnp.asarray, operands(case, rng))

    @jax.jit
    def function(inputs, attention):
        def loss(inputs, attention):
            outputs = dynamic_conv_transpose(
                inputs,
                attention,
                kernel,
                bias,
                implementation=form,
                **case.jax_geometry,
            )
            return jnp.sin(outputs).sum()

        return jax.grad(loss, argnums=(0, 1))(inputs, attention)

    scope = export.SymbolicScope()
    free = [
        jax.ShapeDtypeStruct(
            export.symbolic_shape(f"b, {str(array.shape[1:])[1:-1]}", scope=scope),
            array.dtype,
        )
        for array in (inputs, attention)
    ]
    artifact = export.export(function)(*free)
    whole = function(inputs, attention)
    for batch in (1, 2):
        few = artifact.call(inputs[:batch], attention[:batch])
        assert_close(
            dict(zip(NAMES[:2], map(np.asarray, few), strict=True)),
            dict(zip(NAMES[:2], (part[:batch] for part in whole), strict=True)),
            dtype="float64",
        )


@pytest.mark.parametrize("form", ["scan", "vmap"])
def test_forms_that_need_the_batch_say_what_does_not(form):
    shape = export.symbolic_shape("b, 5, 3")
    inputs = jax.ShapeDtypeStruct(shape, jnp.float64)
    with pytest.raises(ValueError, match=f"'{form}'.*how many.*'patches'"):
        export.export(
            jax.jit(
                lambda inputs: dynamic_conv_transpose(
                    inputs,
                    inputs[:, 0, :2],
                    jnp.ones((2, 3, 3, 4)),
                    implementation=form,
                )
            )
        )(inputs)


@pytest.mark.parametrize("form", ["rows", "experts"])
def test_a_batch_of_batches_can_be_mapped(form, rng):
    case = TRANSPOSE_CASES["2d"]
    inputs, attention, kernel, bias = map(jnp.asarray, operands(case, rng))

    def function(inputs, attention):
        return dynamic_conv_transpose(
            inputs, attention, kernel, bias, implementation=form, **case.jax_geometry
        )

    pairs = jnp.stack([inputs, -inputs]), jnp.stack([attention, attention])
    mapped = jax.jit(jax.vmap(function))(*pairs)
    expected = [jax.jit(function)(*each) for each in zip(*pairs, strict=True)]
    assert_close({"output": mapped}, {"output": np.stack(expected)}, dtype="float64")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["2d, outputs that no tap reaches", "2d, grouped"])
def test_narrow_dtypes_stay_and_agree_with_float64(name, dtype, rng):
    case = TRANSPOSE_CASES[name]
    narrow = [jnp.asarray(array, dtype) for array in operands(case, rng)]
    function = jax.jit(functools.partial(dynamic_conv_transpose, **case.jax_geometry))
    outputs = function(*narrow)
    assert outputs.dtype == dtype
    expected = function(*(array.astype("float64") for array in narrow))
    assert_close({"output": outputs}, {"output": expected}, dtype=dtype)


def test_preferred_element_type_is_the_dtype_of_the_output():
    outputs = per_sample_conv_transpose(
        jnp.ones((2, 5, 3), jnp.bfloat16),
        jnp.ones((2, 2, 3, 4), jnp.bfloat16),
        strides=3,
        preferred_element_type=jnp.float32,
    )
    assert outputs.dtype == jnp.float32


@pytest.mark.parametrize("form", ["auto", "patches", "scan", "vmap"])
def test_an_empty_batch_gives_an_empty_output(form):
    outputs = per_sample_conv_transpose(
        jnp.ones((0, 5, 3)), jnp.ones((0, 3, 3, 2)), strides=2, implementation=form
    )
    assert outputs.shape == (0, 10, 2)


@pytest.mark.parametrize("form", ["loop", "grouped", "patches", "experts"])
def test_an_empty_batch_gives_an_empty_output_in_the_twin(form):
    outputs = dynconv_torch.dynamic_conv_transpose(
        torch.ones(0, 3, 5),
        torch.ones(0, 2),
        torch.ones(2, 3, 4, 3),
        stride=2,
        implementation=form,
    )
    assert outputs.shape == (0, 4, 11)


def test_nan_reaches_the_output_of_its_own_sample_only(rng):
    case = TRANSPOSE_CASES["2d, outputs that no tap reaches"]
    inputs, attention, kernel, bias = operands(case, rng)
    inputs[0] = np.nan
    arrays = map(jnp.asarray, (inputs, attention, kernel, bias))
    outputs = np.asarray(dynamic_conv_transpose(*arrays, **case.jax_geometry))
    assert np.isnan(outputs[0]).any()
    assert np.isfinite(outputs[1]).all()
    # What no tap reaches is the bias, whatever the inputs are.
    assert np.isfinite(outputs[0, 1::3]).all()
