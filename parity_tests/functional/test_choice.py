"""The choice behind "auto": what is chosen, why, and that it leaves no trace."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import DynamicConv, dynamic_conv, explain, per_sample_conv
from dynconv_jax.functional import cost
from dynconv_jax.functional.chips import chips
from dynconv_jax.functional.forms import FORMS
from dynconv_torch.functional import Geometry
from dynconv_torch.functional import choice as torch_choice
from parity_tests.tools.cases import EXTREMES
from parity_tests.tools.slow import thinned


@pytest.mark.parametrize("implementation", EXTREMES)
def test_each_form_is_chosen_where_it_is_at_home(implementation):
    inputs, kernel, options = EXTREMES[implementation]
    found = explain(inputs, kernel, platform="cpu", device_count=1, **options)
    assert found.plan.implementation == implementation


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("implementation", EXTREMES)
def test_the_chosen_plan_has_the_least_estimated_time(implementation, platform):
    inputs, kernel, options = EXTREMES[implementation]
    found = explain(inputs, kernel, platform=platform, device_count=1, **options)
    times = [each.milliseconds for each in found.estimates]
    assert found.estimates[0].plan == found.plan
    assert times == sorted(times)
    assert all(0 < each < math.inf for each in times)


@pytest.mark.parametrize("implementation", EXTREMES)
def test_no_loop_over_a_batch_that_may_be_sharded(implementation):
    inputs, kernel, options = EXTREMES[implementation]
    found = explain(inputs, kernel, platform="cpu", device_count=8, **options)
    assert "8 devices" in found.reason
    for each in found.estimates:
        assert each.plan.chunk is None
        assert each.plan.form != "looped taps"


def test_explanation_is_a_table_of_every_form():
    text = str(explain((32, 14, 14, 64), (4, 3, 3, 64, 64), device_count=1))
    first, header, *rows = text.splitlines()
    assert "fastest" in first
    assert "memory" in header
    forms = " ".join(rows)
    for name in ("patches", "rows", "experts", "scan of rows, 2 samples a step"):
        assert name in forms


def test_forms_that_do_not_fit_the_memory_are_passed_over(monkeypatch):
    shapes = (32, 28, 28, 64), (4, 3, 3, 64, 64)
    options: dict[str, Any] = dict(platform="cpu", device_count=1)
    sizes = {
        each.plan: each.gigabytes for each in explain(*shapes, **options).estimates
    }
    leanest = min(sizes, key=sizes.__getitem__)
    monkeypatch.setattr(cost, "memory_of", lambda chip: 1.01e9 * sizes[leanest])
    found = explain(*shapes, **options)
    assert found.plan == leanest
    assert "only one that fits the memory" in found.reason
    assert "too much" in str(found)


def test_where_nothing_fits_the_leanest_is_taken_and_the_estimate_told(monkeypatch):
    monkeypatch.setattr(cost, "memory_of", lambda chip: 1e6)
    found = explain((32, 28, 28, 64), (4, 3, 3, 64, 64), device_count=1)
    least = min(each.gigabytes for each in found.estimates)
    assert found.reason.startswith("no form fits the memory")
    assert f"{least:.3g} GB" in found.reason
    assert found.estimates[0].plan == found.plan


def instructions(program: str) -> list[str]:
    """Returns what a compiled program computes, without where it comes from."""
    lines = [line for line in program.splitlines() if " = " in line]
    assert lines
    return [re.sub(r", metadata=\{.*?\}|_\d+|\.\d+", "", line) for line in lines]


def test_auto_is_the_program_of_the_plan_it_names():
    inputs, kernel = jnp.ones((4, 9, 7, 8)), jnp.ones((2, 3, 3, 8, 6))
    attention = jnp.ones((4, 2))

    def program(implementation):
        def convolve(*arrays):
            return dynamic_conv(*arrays, implementation=implementation)

        compiled = jax.jit(convolve).lower(inputs, attention, kernel).compile()
        return compiled.as_text() or ""

    chosen = explain(inputs.shape, kernel.shape).plan.implementation
    assert instructions(program("auto")) == instructions(program(chosen))


def test_layers_say_what_they_would_do():
    found = explain((32, 14, 14, 64), (4, 1, 1, 64, 128))
    assert all(
        each.plan.form != "rows" for each in found.estimates
    )  # the same as patches


def test_an_unknown_platform_is_taken_for_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "METAL")
    found = explain((32, 14, 14, 64), (4, 3, 3, 64, 64), device_count=1)
    assert found.problem.chip.platform == "gpu"
    assert found.problem.chip.is_default


@pytest.mark.parametrize("chip", chips())
def test_the_choice_is_explained_for_a_chip_that_is_not_there(chip):
    found = explain((32, 14, 14, 64), (4, 3, 3, 64, 64), chip=chip, device_count=1)
    assert str(found).startswith(f"{found.plan} ({found.problem.chip.platform}, {chip}")


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("implementation", EXTREMES)
def test_loops_over_samples_are_for_cpus(implementation, platform):
    inputs, kernel, options = EXTREMES[implementation]
    found = explain(inputs, kernel, platform=platform, device_count=1, **options)
    for each in found.estimates:
        assert each.plan.chunk is None
        assert each.plan.form != "looped taps"
    assert "only a CPU" in found.reason


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("implementation", EXTREMES)
def test_kernels_are_mixed_by_sums_on_a_tpu_alone(implementation, platform):
    inputs, kernel, options = EXTREMES[implementation]
    found = explain(inputs, kernel, platform=platform, device_count=1, **options)
    mixing = [each.plan for each in found.estimates if each.plan.form in FORMS]
    assert {"patches", "rows"} <= {plan.form for plan in mixing}
    assert {plan.by_sums for plan in mixing} == {platform == "tpu"}
    others = [each.plan for each in found.estimates if each.plan not in mixing]
    assert not any(plan.by_sums for plan in others)  # which mix no kernels


REFUSED = {
    "unknown platform": (dict(platform="npu"), "platform.*'npu'.*'cpu'"),
    "unknown chip": (dict(chip="v3"), "chip.*'v3'.*'v5e'"),
    "chip of another platform": (
        dict(chip="v5e", platform="gpu"),
        "chip.*'v5e'.*is a tpu.*platform.*'gpu'",
    ),
    "no device": (dict(device_count=0), "device_count.*at least 1"),
    "groups that do not divide": (dict(feature_group_count=5), "divisible"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_explain_refuses(name):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        explain((2, 9, 7, 8), (2, 3, 3, 8, 6), **options)


def test_forms_that_cannot_do_the_geometry_name_those_that_can():
    inputs, kernel = jnp.ones((2, 9, 8)), jnp.ones((2, 3, 8, 6))
    able = "are 'auto', 'patches', 'rows', 'scan', "
    with pytest.raises(
        ValueError, match=f"'taps'.*depthwise.*{able}'experts', 'row_conv"
    ):
        dynamic_conv(inputs, jnp.ones((2, 2)), kernel, implementation="taps")
    with pytest.raises(
        ValueError, match=f"'experts'.*attention.*{able}'row_conv', 'vmap'"
    ):
        per_sample_conv(inputs, kernel, implementation="experts")


def test_layer_refuses_a_form_that_cannot_do_its_geometry_when_it_is_built():
    with pytest.raises(ValueError, match="'taps'.*depthwise"):
        DynamicConv(8, 6, (3, 3), implementation="taps", rngs=nnx.Rngs(0))


TORCH_EXTREMES = {
    "experts": ((64, 128, 2, 2), (4, 256, 128, 3, 3), 1),
    "grouped": ((32, 480, 14, 14), (4, 480, 1, 3, 3), 480),
    "loop": ((8, 201, 63, 63), (4, 28, 201, 5, 5), 1),
}


@pytest.mark.parametrize("has_gradient", [False, True])
@pytest.mark.parametrize("form", TORCH_EXTREMES)
def test_each_pytorch_form_is_chosen_where_it_is_at_home(form, has_gradient):
    shape, weight_shape, groups = TORCH_EXTREMES[form]
    x = torch.empty(shape, requires_grad=has_gradient)
    weight = torch.empty(weight_shape)
    geometry = Geometry.create(
        shape[1], weight_shape[1], weight_shape[3:], rank=2, padding=1, groups=groups
    )
    assert torch_choice.choose("auto", geometry, x, weight, num_experts=4) == form


@pytest.mark.parametrize(
    ("form", "kernel_size", "groups"),
    [("loop", (3, 3), 1), ("loop", (3, 3), 8), ("patches", (1, 1), 1)],
)
def test_onnx_loops_over_windows_and_multiplies_single_taps(
    form, kernel_size, groups, monkeypatch
):
    monkeypatch.setattr(torch_choice, "has_open_size", lambda *tensors: True)
    monkeypatch.setattr(torch_choice, "can_scan", lambda samples: True)
    geometry = Geometry.create(8, 8, kernel_size, rank=2, groups=groups)
    x, weight = torch.empty(2, 8, 5, 7), torch.empty(4, *geometry.weight_shape)
    assert torch_choice.choose("auto", geometry, x, weight, num_experts=4) == form


@pytest.mark.parametrize(
    "implementation",
    thinned(["auto", "loop", "grouped", "patches", "experts"], "auto", "patches"),
)
def test_pytorch_layer_compiles_without_graph_breaks(implementation):
    layer = dynconv_torch.DynamicConv2d(3, 4, 3, implementation=implementation)
    x = torch.randn(2, 3, 7, 6, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    actual, expected = compiled(x), layer(x)
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, [x, *layer.parameters()], cotangent),
        torch.autograd.grad(expected, [x, *layer.parameters()], cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
