"""Operations that are the same but for their names."""

from benchmarks.compiled.hlo import parse_program
from benchmarks.compiled.twins import twins

TEXT = """HloModule m

%body.1 (p.1: f32[8,128]) -> f32[8,128] {
  %p.1 = f32[8,128]{1,0} parameter(0)
  ROOT %negate.1 = f32[8,128]{1,0} negate(%p.1), metadata={op_name="jit(f)/neg{1}"}
}

%body.2 (p.2: f32[8,128]) -> f32[8,128] {
  %p.2 = f32[8,128]{1,0} parameter(0)
  ROOT %negate.2 = f32[8,128]{1,0} negate(%p.2), metadata={op_name="jit(f)/neg{2}"}
}

%body.3 (p.3: f32[8,128]) -> f32[8,128] {
  %p.3 = f32[8,128]{1,0} parameter(0)
  ROOT %exp.3 = f32[8,128]{1,0} exponential(%p.3)
}

ENTRY %main (a: f32[8,128], b: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %b = f32[8,128]{1,0:T(8,128)S(1)} parameter(1)
  %fusion.1 = f32[8,128]{1,0} fusion(%a), kind=kLoop, calls=%body.1, metadata={op_name="x"}, backend_config={"window_config":{"bounds":["1"]},"used":[{"offset":"0"}]}
  %fusion.2 = f32[8,128]{1,0} fusion(%fusion.1), kind=kLoop, calls=%body.2, metadata={op_name="y"}, backend_config={"window_config":{"bounds":["1"]},"used":[{"offset":"9"}]}
  %fusion.3 = f32[8,128]{1,0} fusion(%fusion.2), kind=kLoop, calls=%body.3, backend_config={"window_config":{"bounds":["1"]}}
  %fusion.4 = f32[8,128]{1,0} fusion(%a), kind=kLoop, calls=%body.1, backend_config={"window_config":{"bounds":["2"]}}
  %fusion.5 = f32[8,128]{1,0} fusion(%b), kind=kLoop, calls=%body.1, backend_config={"window_config":{"bounds":["1"]}}
  %slice.1 = f32[4,128]{1,0} slice(%a), slice={[0:4], [0:128]}
  %slice.2 = f32[4,128]{1,0} slice(%fusion.3), slice={[0:4], [0:128]}
  %slice.3 = f32[4,128]{1,0} slice(%a), slice={[4:8], [0:128]}
  ROOT %add = f32[8,128]{1,0} add(%fusion.4, %fusion.5)
}
"""  # noqa: E501


def test_twins_do_the_same_to_the_same_kinds_of_operands():
    found = twins(parse_program(TEXT))
    # Not what computes, is cut, lies or is sliced otherwise.
    assert found["fusion.1"] == ["fusion.2"] and found["fusion.2"] == ["fusion.1"]
    assert found["slice.1"] == ["slice.2"]
    alone = ("fusion.3", "fusion.4", "fusion.5", "slice.3", "add")
    assert not any(name in found for name in alone)
