"""Scalar instructions of a TPU: what decides where a program goes on."""

import pytest

from benchmarks.compiled.scalars import MASK, evaluate, parse_instruction

STATE = {"s1": 7, "s2": 3, "s3": MASK, "p1": 1, "p2": 0, "s9": None, "p9": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sadd.s32 4294967295, %s10_s1", 6 + 2**32),
        ("ssub.s32 %s10_s1, %s11_s2", 4),
        ("smul.u32 1152, %s11_s2", 3456),
        ("sand.u32 1, %s10_s1", 1),
        ("sshll.u32 %s11_s2, 4", 48),
        ("sshrl.u32 %s12_s3, 31", 1),
        ("sshra.s32 %s12_s3, 1", -1),
        ("smov 0", 0),
        ("smov (%p20_p1, %s10_s1), 0", 0),
        ("smov (%p21_p2, %s10_s1), 0", 7),
        ("smov (!%p21_p2, %s10_s1), %s11_s2", 3),
        ("sadd.s32 (%p20_p1), %s10_s1, %s11_s2", 10),
        ("scalar_select %p21_p2, 5, %s11_s2", 3),
        ("sadd.s32 1, %s40_s9", None),
        ("vtos %v3_v0", None),
    ],
)
def test_numbers(text, expected):
    instruction = parse_instruction(f"%s99_s5 = {text}")
    assert instruction is not None and instruction.register == "s5"
    assert evaluate(instruction, STATE) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scmp.lt.s32.totalorder %s12_s3, 0", 1),  # -1
        ("scmp.lt.u32.totalorder %s12_s3, 0", 0),
        ("scmp.ge.s32.totalorder %s10_s1, 7", 1),
        ("scmp.ne.s32.totalorder %s10_s1, %s11_s2", 1),
        ("pnand %p20_p1, %p20_p1", 0),
        ("pnand %p20_p1, %p21_p2", 1),
        ("por %p20_p1, %p40_p9", 1),
        ("pand %p21_p2, %p40_p9", 0),
        ("pand %p20_p1, %p40_p9", None),
        ("pand %p20_p1, !%p21_p2", 1),
        ("pneg %p20_p1", 0),
    ],
)
def test_predicates_also_where_half_is_unknown(text, expected):
    instruction = parse_instruction(f"%p99_p5 = {text}")
    assert instruction is not None
    assert evaluate(instruction, STATE) == expected


@pytest.mark.parametrize(
    ("condition", "taken"),
    [("(%p20_p1)", 1), ("(!%p20_p1)", 0), ("(%p40_p9)", None), ("", 1)],
)
def test_branches(condition, taken):
    instruction = parse_instruction(f"%13 = sbr.rel {condition} target = $region9312")
    assert instruction is not None and instruction.target == "9312"
    assert evaluate(instruction, STATE) == taken


@pytest.mark.parametrize(
    "text",
    ["", "%14 = compiler-scheduling-barrier", "%v3_v0 = vld [vmem:[%s1_s2]]", "%3 = x"],
)
def test_what_no_branch_depends_on_is_left_out(text):
    assert parse_instruction(text) is None
