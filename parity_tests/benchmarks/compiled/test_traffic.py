"""Bytes, collectives and shared memory of programs whose figures are known."""

from pathlib import Path

import pytest

from benchmarks.compiled.hlo import Array, Program, arrays_of, parse_program
from benchmarks.compiled.traffic import (
    collectives,
    memory_bytes,
    operation_flops,
    operations,
)

DUMPS = Path(__file__).parent / "dumps"


def read(name: str) -> Program:
    return parse_program((DUMPS / f"{name}.hlo.txt").read_text())


def flops(program: Program) -> int:
    return sum(
        count * operation_flops(operation, computation, program)
        for operation, computation, count in operations(program)
    )


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        ("", 8 * 50 * 96 * 2),
        ("2,1,0", 8 * 50 * 96 * 2),
        ("2,1,0:T(8,128)(2,1)", 8 * 56 * 128 * 2),  # in full tiles
        ("1,2,0:T(8,128)(2,1)S(1)", 8 * 128 * 96 * 2),
        ("0,2,1:T(128)", 128 * 50 * 96 * 2),
    ],
)
def test_an_array_takes_whole_tiles(layout, size):
    assert Array("bf16", (8, 50, 96), layout).size == size


@pytest.mark.parametrize(
    ("dtype", "size"), [("pred", 15), ("s8", 15), ("f32", 60), ("f8e4m3fn", 15)]
)
def test_bytes_of_a_number(dtype, size):
    assert Array(dtype, (3, 5)).size == size


def test_arrays_of_nested_tuples():
    kind = "((f32[2,3]{1,0:T(8,128)}), /*index=1*/u32[]{:S(2)}, token[])"
    first, second, third = arrays_of(kind)
    assert first == Array("f32", (2, 3), "1,0:T(8,128)")
    assert (second.shape, second.space) == ((), 2)
    assert third.size == 0


def test_a_product_moves_its_operands_and_its_result_once():
    program = read("product")  # 512×1024 by 1024×2048
    assert memory_bytes(program) == 2 * (512 * 1024 + 1024 * 2048 + 512 * 2048)
    assert flops(program) == 2 * 512 * 1024 * 2048


def test_a_convolution_moves_its_operands_and_its_result_once():
    program = read("convolution")  # 8×14×14×256 by 3×3×256×256
    images = 8 * 14 * 14 * 256
    assert memory_bytes(program) == 2 * (2 * images + 9 * 256 * 256)
    assert flops(program) == 2 * images * 9 * 256


def test_a_copy_reads_and_writes_in_whole_tiles():
    assert memory_bytes(read("copy")) == 2 * 2 * 8 * 1024 * 96  # 8×1000×96


def test_what_a_loop_keeps_on_the_core_is_moved_once():
    matrices = 3 * 2 * 1024 * 1024
    program = read("loop")
    assert matrices <= memory_bytes(program) < 1.001 * matrices
    assert flops(program) == 7 * 2 * 1024**3


def test_a_loop_over_slices_moves_the_slices_not_the_whole_each_time():
    whole = 2 * 16 * 512 * 2048  # read twice, written once
    assert 3 * whole <= memory_bytes(read("slices")) < 1.001 * 3 * whole


def test_collectives_are_counted_by_kind():
    assert collectives(read("step")) == {"all-reduce f32": 1}
    assert collectives(read("product")) == {}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("f32[8]{0} all-gather-start(%a), dimensions={0}", "all-gather"),
        ("f32[8]{0} collective-permute(%a)", "collective-permute"),
        ("f32[8]{0} all-to-all(%a), dimensions={0}", "all-to-all"),
        ("f32[8]{0} reduce-scatter(%a), to_apply=%add", "reduce-scatter"),
    ],
)
def test_every_kind_of_collective_is_known(line, kind):
    text = (
        "HloModule m\n\nENTRY %main (a: f32[8]) -> f32[8] {\n"
        f"  %a = f32[8]{{0}} parameter(0)\n  ROOT %b = {line}\n}}\n"
    )
    assert collectives(parse_program(text)) == {f"{kind} f32": 1}


def test_arguments_that_share_memory_with_results_are_counted():
    assert read("step").aliased == 1
    assert read("copy").aliased == 0


def test_many_arguments_that_share_memory():
    header = (
        "HloModule m, input_output_alias={ {0}: (0, {}, may-alias), {1, 0}: (12, {}, "
        "must-alias), {2}: (3, {1}, may-alias) }, num_partitions=4\n"
    )
    text = (DUMPS / "copy.hlo.txt").read_text().partition("\n")[2]
    assert parse_program(header + text).aliased == 3


def test_a_loop_without_a_constant_end_is_named():
    text = (DUMPS / "loop.hlo.txt").read_text().replace("constant(7)", "foreign()")
    _, unknown = parse_program(text).trips
    assert unknown == ("while",)


def test_a_count_that_the_compiler_wrote_down_is_taken():
    text = (DUMPS / "loop.hlo.txt").read_text().replace("constant(7)", "foreign()")
    known = 'backend_config={"known_trip_count":{"n":"9"}}'
    text = text.replace("body=%wide", f"{known}, body=%wide")
    times, unknown = parse_program(text).trips
    assert not unknown and 9 in times.values()


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match=r"`text` \('nothing'…\) has no entry"):
        parse_program("nothing")
