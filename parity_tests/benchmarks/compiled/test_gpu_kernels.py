"""The roofline of a GPU's kernels, from programs as XLA writes them for one."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.compiled.chips import CHIPS
from benchmarks.compiled.estimate import bound
from benchmarks.compiled.hlo import parse_program

CHIP = replace(CHIPS["h100"], flops=1e15, bandwidth=1e12)

# Calls of libraries answer (result, memory to work in).
CALLS = {
    "forward": (
        "(bf16[8,14,10,64]{3,2,1,0}, u8[4194304]{0}) custom-call(%x, %w), "
        "window={size=3x5 pad=1_1x2_2}, dim_labels=b01f_o01i->b01f, "
        'custom_call_target="__cudnn$convForward"'
    ),
    "input": (
        "(bf16[8,14,10,32]{3,2,1,0}, u8[0]{0}) custom-call(%y, %w), "
        "window={size=3x5 pad=1_1x2_2}, dim_labels=b01f_o01i->b01f, "
        'custom_call_target="__cudnn$convBackwardInput"'
    ),
    "filter": (
        "(bf16[64,3,5,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), "
        "window={size=3x5 pad=1_1x2_2}, dim_labels=b01f_o01i->b01f, "
        'custom_call_target="__cudnn$convBackwardFilter"'
    ),
}
X, Y, W = 8 * 14 * 10 * 32, 8 * 14 * 10 * 64, 64 * 15 * 32


def program(line: str) -> str:
    return (
        "HloModule jit_f, is_scheduled=true\n\n"
        "ENTRY %main.1 (x: bf16[8,14,10,32]) -> bf16[8,14,10,64] {\n"
        "  %x = bf16[8,14,10,32]{3,2,1,0} parameter(0)\n"
        "  %y = bf16[8,14,10,64]{3,2,1,0} parameter(1)\n"
        "  %w = bf16[64,3,5,32]{3,2,1,0} parameter(2)\n"
        f"  ROOT %r.1 = {line}\n}}\n"
    )


@pytest.mark.parametrize("which", CALLS)
def test_a_convolution_and_both_its_gradients_cost_alike(which):
    found = bound(parse_program(program(CALLS[which])), CHIP, Path())
    assert found["bytes"] == 2 * (X + Y + W)
    assert found["compute"] == pytest.approx(1e6 * 2 * Y * 15 * 32 / 1e15)
    assert found["kernels"] == 1


def test_a_batched_product_of_cublas():
    line = (
        "(bf16[8,14,64]{2,1,0}, s8[4194304]{0}) custom-call(%a, %b), "
        'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config"'
        ':{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],'
        '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}}}'
    )
    text = (
        "HloModule m\n\nENTRY %e (a: bf16[8,14,320], b: bf16[8,320,64]) -> f32[] {\n"
        "  %a = bf16[8,14,320]{2,1,0} parameter(0)\n"
        "  %b = bf16[8,320,64]{2,1,0} parameter(1)\n"
        f"  ROOT %r = {line}\n}}\n"
    )
    found = bound(parse_program(text), CHIP, Path())
    assert found["bytes"] == 2 * 8 * (14 * 320 + 320 * 64 + 14 * 64)
    assert found["compute"] == pytest.approx(1e6 * 2 * 8 * 14 * 320 * 64 / 1e15)


def test_the_bound_is_the_larger_part_of_each_kernel_and_what_starting_it_costs():
    found = bound(parse_program(program(CALLS["forward"])), CHIP, Path())
    assert found["bound"] == pytest.approx(max(found["compute"], found["memory"]) + 2)
    fast = replace(CHIP, flops=1e9)
    slow = bound(parse_program(program(CALLS["forward"])), fast, Path())
    assert slow["bound"] == pytest.approx(slow["compute"] + 2)


@pytest.mark.parametrize("turns", [1, 8])
def test_kernels_in_a_loop_count_as_often_as_it_turns(turns):
    text = (
        "HloModule m\n\n%body (p: (s32[], f32[64])) -> (s32[], f32[64]) {\n"
        "  %p = (s32[], f32[64]{0}) parameter(0)\n"
        "  %i = s32[] get-tuple-element(%p), index=0\n"
        "  %v = f32[64]{0} get-tuple-element(%p), index=1\n"
        "  %n = f32[64]{0} negate(%v)\n"
        "  ROOT %t = (s32[], f32[64]{0}) tuple(%i, %n)\n}\n\n"
        "%cond (p.1: (s32[], f32[64])) -> pred[] {\n"
        "  %p.1 = (s32[], f32[64]{0}) parameter(0)\n"
        "  ROOT %c = pred[] constant(true)\n}\n\n"
        "ENTRY %e (a: (s32[], f32[64])) -> (s32[], f32[64]) {\n"
        "  %a = (s32[], f32[64]{0}) parameter(0)\n"
        "  ROOT %w = (s32[], f32[64]{0}) while(%a), condition=%cond, body=%body, "
        f'backend_config={{"known_trip_count":{{"n":"{turns}"}}}}\n}}\n'
    )
    found = bound(parse_program(text), CHIP, Path())
    assert found["kernels"] == turns and found["bytes"] == turns * 2 * 4 * 64
    assert not found["unknown"]


# As XLA writes it, the program of the kernel cut short.
PALLAS = (
    "(bf16[71680]{0}, f32[32]{0}) custom-call(%x, %w), "
    'custom_call_target="__gpu$xla.gpu.triton", '
    "operand_layout_constraints={bf16[64]{0}, bf16[8]{0}}, "
    'api_version=API_VERSION_TYPED_FFI, metadata={op_name="jit(f)/pallas_call"}, '
    "backend_config={debug = false, grid_x = 4 : i32, "
    'ir = "ML\\EFR\\0DMLIR23.0.0git\\00\\1F#\'+/37;\\22flops\\22: 5(C", '
    'name = "forward", num_stages = 2 : i32, num_warps = 8 : i32'
)


@pytest.mark.parametrize(
    ("metadata", "flops"),
    [
        (
            ', serialized_metadata = "{\\22flops\\22: \\22603979776\\22, '
            '\\22bytes_accessed\\22: \\226439040\\22}"',
            603979776,
        ),
        (', serialized_metadata = "{\\22tile\\22: \\2264\\22}"', 0),
        ("", 0),
    ],
)
def test_a_kernel_of_pallas_moves_its_operands_and_results_and_tells_its_work(
    metadata, flops
):
    found = bound(parse_program(program(PALLAS + metadata + "}")), CHIP, Path())
    assert found["bytes"] == 2 * (X + W + 71680) + 4 * 32
    assert found["compute"] == pytest.approx(1e6 * flops / 1e15)
    assert found["kernels"] == 1
