"""Static schedules: bundles counted through loops, skipped regions and calls."""

import pytest

from benchmarks.compiled import bundles
from benchmarks.compiled.bundles import DELAY_SLOTS, issue, parse_bundles, read_schedule

PREAMBLE = "= control target key start\nLB: loop body\n= control target key end\n\n"


def pipeline(turns: int, body: int) -> str:
    """A loop as the compiler writes it: its body is skipped in its first and last turn.

    Its set-up is a bundle, the head of a turn 2 and the delay slots, the end as many.
    """
    head = (
        " 0 : { %s90_s7 = smov 0 /* copy for cssa */ } /* Start region 30 */\n"
        " 0x1 LB: > { %p10_p0 = scmp.ge.s32.totalorder %s91_s7, 1  ;;  "
        f"%p11_p1 = scmp.lt.s32.totalorder %s91_s7, {turns - 1}  ;;  "
        "%s91_s7 = sphi %s90_s7, %s92_s7 /* phi copy */ } /* Start region 40 */\n"
        " 0x2 : > { %p12_p2 = pnand %p11_p1, %p10_p0 } /* End region 22 */\n"
        " 0x3 : > { %102 = sbr.rel (%p12_p2) target = $region25 }\n"
    )
    slots = " 0x4 : {}\n" * DELAY_SLOTS
    work = " 0x8 : > { %v3_v0 = vld [vmem:[%s20_s3 + $0x1c0]] /* of\nlines: 2 */ }\n"
    end = (
        " 0x9 PF: > { %s92_s7 = sadd.s32 1, %s91_s7 } /* Start/End empty region 25 */\n"
        f" 0xa : > {{ %p5_p7 = scmp.ge.s32.totalorder %s92_s7, {turns} }}\n"
        " 0xb : { %7 = sbr.rel (!%p5_p7) target = $region40 }\n"
    )
    return PREAMBLE + head + slots + work * body + end + slots


@pytest.mark.parametrize(("turns", "body"), [(3, 5), (10, 5), (10, 700), (300, 2)])
def test_a_pipelined_loop_issues_its_body_in_all_turns_but_the_first_and_last(
    turns, body
):
    issued, calls, unknown = issue(parse_bundles(pipeline(turns, body)))
    around = (3 + DELAY_SLOTS) + (3 + DELAY_SLOTS)
    assert issued == 1 + turns * around + (turns - 2) * body
    assert not calls and not unknown


@pytest.mark.parametrize("turns", [1, 9])
def test_a_counter_may_be_carried_and_moved_on_in_one_bundle(turns):
    text = PREAMBLE + (
        " 0 : { %s90_s7 = smov 0 } /* Start region 30 */\n"
        " 1 LB: >> { %s92_s7 = sadd.s32 1, %s91_s7  ;;  "
        "%s91_s7 = sphi %s90_s7, %s92_s7 /* phi copy */ } /* Start region 40 */\n"
        f" 2 : >> {{ %p5_p7 = scmp.ge.s32.totalorder %s92_s7, {turns} }}\n"
        " 3 : >> { %7 = sbr.rel (!%p5_p7) target = $region40 }\n"
    )
    issued, _, unknown = issue(parse_bundles(text + " 4 : {}\n" * DELAY_SLOTS))
    assert issued == 1 + turns * (3 + DELAY_SLOTS) and not unknown


def test_bundles_without_branches_are_issued_once():
    text = PREAMBLE + " 0 : { %s0_s1 = smov 3 }\n 0x1 : {}\n 0x2 : {}\n"
    assert issue(parse_bundles(text))[0] == 3


def program(turns: int) -> str:
    """A program that keeps the counter of its loop in memory, and calls in the loop."""
    return PREAMBLE + (
        " 0 : { %389 = inlined_call /* <late-initialization> */ }\n"
        " 1 : { %s5_s1 = sld [smem:[#allocation2]] }\n"
        " 2 : { %p1_p1 = scmp.ne.s32.totalorder %s5_s1, 1 }\n"
        " 3 : { %9 = sbr.rel (%p1_p1) target = $region4 }\n"
        " 4 : { %s50_s8 = smov 0 }\n"
        " 5 : { %590 = sst [smem:[#allocation24_spill]] %s50_s8 }\n"
        " 6 LB: > { %176 = inlined_call %s5_s0, %s6_s1 "
        "/* %copy.12 = copy(%get-tuple-element.37) */ } /* Start region 110 */\n"
        " 7 : > { %s51_s9 = sld [smem:[#allocation24_spill]] }\n"
        " 8 : > { %s52_s9 = sadd.s32 1, %s51_s9 /* copy for cssa */ }\n"
        f" 9 : > {{ %p14_p2 = scmp.lt.s32.totalorder %s52_s9, {turns} }}\n"
        " a : > { %s53_s3 = scalar_select /*predicate=*/%p14_p2, /*on_true=*/1, "
        "/*on_false=*/0  ;;  %597 = sst [smem:[#allocation24_spill]] %s52_s9 }\n"
        " b : > { %p15_p3 = scmp.eq.s32.totalorder %s53_s3, 0 }\n"
        " c : { %147 = sbr.rel (!%p15_p3) target = $region110 }\n"
        + " d : {}\n" * DELAY_SLOTS
        + " 11 PF: { %252 = vtrace 1 } /* Start/End empty region 4 */\n"
    )


@pytest.fixture
def dumped(tmp_path):
    """Writes dumps as the compiler names them; returns their folder."""

    def write(**texts: str):
        for name, text in texts.items():
            path = tmp_path / f"1795-{name}-01-final_bundles.txt"
            path.write_text(text)
            analysis = f"1795-{name}-00-schedule-analysis_final_bundles.txt"
            (tmp_path / analysis).write_text("Schedule analysis:\n")
        return tmp_path

    return write


@pytest.mark.parametrize("turns", [1, 7, 40])
def test_a_loop_of_n_turns_costs_n_times_what_it_calls(dumped, turns):
    start = PREAMBLE + " 0 : {}\n" * 32
    texts = {"TLP": program(turns), "copy.12": pipeline(6, 100)}
    schedule = read_schedule(dumped(**texts, **{"<late-initialization>": start}))
    one, _, _ = issue(parse_bundles(pipeline(6, 100)))
    assert schedule.operations == {"<late-initialization>": 32, "copy.12": turns * one}
    own = 6 + turns * (7 + DELAY_SLOTS) + 1
    assert schedule.bundles == own + 32 + turns * one
    assert not schedule.unknown


def test_a_loop_whose_end_depends_on_data_is_counted_once_and_said_so():
    text = pipeline(6, 3).replace("scmp.ge.s32.totalorder %s92_s7, 6", "vtos %v3_v0")
    issued, _, unknown = issue(parse_bundles(text))
    assert unknown == ["a loop to region 40"]
    assert issued == 1 + 2 * (3 + DELAY_SLOTS)


def test_an_operation_without_a_dump_is_named(dumped):
    folder = dumped(TLP=program(1), **{"<late-initialization>": PREAMBLE})
    assert read_schedule(folder).unknown == ["no bundles of copy.12"]


def test_an_operation_like_one_with_a_dump_has_its_schedule(dumped):
    texts = {"TLP": program(3), "copy.2": pipeline(6, 100)}
    folder = dumped(**texts, **{"<late-initialization>": PREAMBLE})
    schedule = read_schedule(folder, twins={"copy.12": ["copy.1", "copy.2"]})
    one, _, _ = issue(parse_bundles(pipeline(6, 100)))
    assert schedule.operations["copy.12"] == 3 * one
    assert not schedule.unknown


def test_what_waits_for_other_chips_is_not_counted(dumped):
    endless = pipeline(6, 3).replace("scmp.ge.s32.totalorder %s92_s7, 6", "vtos %v3")
    texts = {"TLP": program(1) + endless, "copy.12": pipeline(6, 100)}
    folder = dumped(**texts, **{"<late-initialization>": PREAMBLE})
    assert read_schedule(folder).unknown == ["a loop to region 40 in TLP"]
    schedule = read_schedule(folder, exchanges={"copy.12"})
    assert schedule.operations["copy.12"] == 0
    assert not schedule.unknown


def test_a_folder_without_a_program_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no final bundles of a program in"):
        read_schedule(tmp_path)


def test_a_loop_without_end_is_given_up_and_said_so(monkeypatch):
    monkeypatch.setattr(bundles, "LIMIT", 1000)
    text = pipeline(6, 3).replace("(!%p5_p7) ", "")
    assert issue(parse_bundles(text))[2] == ["a loop without end"]
