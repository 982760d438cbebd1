"""Planted faults: what is touched, what is not, which tests run, and what is kept."""

import ast
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from parity_tests.tools import mutate
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.mutations import Mutation, mutations_of
from parity_tests.tools.nearest_tests import nearest_tests

# They are about a tool for those who work on this, which takes minutes itself.
pytestmark = pytest.mark.slow


def faults(source: str) -> set[str]:
    """Returns a line of code with each of its faults."""
    return {fault.apply(source) for fault in mutations_of(source, "file.py")}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("y = a + b", {"y = (a - b)", "y = (a)"}),
        ("y = a @ b", set()),
        ("y += a", {"y -= a"}),
        ("y = a < b", {"y = (a <= b)"}),
        ("y = a is None", {"y = (a is not None)"}),
        ("y = not a", {"y = (a)"}),
        ("y = -a", {"y = (a)"}),
        ("y = -1", {"y = (1)", "y = (-2)"}),
        ("y = 3", {"y = (4)"}),
        ("y = 0.5", {"y = (1.0)"}),
        ("y = 0.0", {"y = (1.0)"}),
        ("y = True", {"y = (False)"}),
        ("y = a and b or c", {"y = (a and b)", "y = (a) or c"}),
        ("y = (a, b, c)", {"y = ((b, a, c))"}),
        ("y = (a, a)", set()),
        ("y = x[:, None]", {"y = x[None, :]"}),
        ("y = max(a, b)", {"y = (min(a, b))"}),
        ("y = x.transpose(1, 2)", {f"y = {x}" for x in (
            "(x.transpose(2, 1))", "x.transpose((2), 2)", "x.transpose(1, (3))"
        )}),
        ('y = einsum("bk,ko->bo", a)', {"y = (einsum('bk,ko->ob', a))"}),
        ('y = einsum("bk,k...->b...", a)', set()),
    ],
)  # fmt: skip
def test_faults_of_an_expression(source, expected):
    assert faults(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""Adds 1 + 1."""',
        '__all__ = ["a", "b"]',
        "y: Literal[1, 2]",
        "def f(x: Literal[1, 2]) -> Annotated[int, 3]: pass",
        "@cache(maxsize=3)\ndef f(): pass",
        'raise ValueError(f"{a + 1} is more than {2}")',
        'warnings.warn("1 + 1", stacklevel=2)',
        'assert a, f"{b + 1}"',
        'y = f"{a + 1}"',
        "y = zip(a, b, strict=True)",
        "y = isinstance(a, (int, float))",
        'y = ("left", "right")',
        "Y = tuple[int, ...] | Literal[1, 2]",
        "if TYPE_CHECKING:\n    y = 1",
    ],
)
def test_what_computes_nothing_is_left_alone(source):
    assert faults(source) == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("y: int = 3", "y: int = (4)"),
        ("def f(x: int = 3): pass", "def f(x: int = (4)): pass"),
        ("class A:\n    y = 3", "class A:\n    y = (4)"),
        ("if a > b: raise ValueError(1)", "if (a >= b): raise ValueError(1)"),
        ("é = '猫'; y = 3", "é = '猫'; y = (4)"),
    ],
)
def test_what_computes_beside_it_is_not(source, expected):
    assert faults(source) == {expected}


def test_a_fault_of_the_libraries_is_python_and_another_program():
    for fault in mutate.choose(mutate.Config(count=100)):
        source = (ROOT / fault.path).read_text()
        changed = ast.dump(ast.parse(fault.apply(source)))
        assert changed != ast.dump(ast.parse(source))


def test_faults_are_drawn_by_the_seed_from_all_files_in_turn():
    config = mutate.Config(count=120)
    drawn = mutate.choose(config)
    assert drawn == mutate.choose(config)
    assert drawn != mutate.choose(mutate.Config(count=120, seed=1))
    paths = [fault.path for fault in drawn]
    assert max(map(paths.count, paths)) <= 2
    assert {path.split("/")[0] for path in paths} == {"dynconv_jax", "dynconv_torch"}


def test_faults_are_planted_only_where_asked():
    config = mutate.Config(count=10, only=mutate.Path("dynconv_torch/layers"))
    assert all(
        fault.path.startswith(str(config.only)) for fault in mutate.choose(config)
    )
    with pytest.raises(SystemExit, match="--only .=train. has nothing"):
        mutate.choose(mutate.Config(only=mutate.Path("train")))


@pytest.mark.parametrize(
    ("module", "first"),
    [
        ("dynconv_jax/layers/od_conv.py", "layers/test_od_conv_in_use.py"),
        ("dynconv_torch/layers/od_conv.py", "layers/test_od_conv_in_use.py"),
        ("dynconv_jax/routing.py", "test_routing.py"),
        ("dynconv_torch/functional/choice.py", "functional/test_choice.py"),
    ],
)
def test_the_nearest_tests_have_the_name_of_the_module(module, first):
    assert nearest_tests(module)[0] == (0, f"parity_tests/{first}")


def test_tests_without_the_name_are_found_by_what_they_import():
    distances = {file: steps for steps, file in nearest_tests("dynconv_jax/gating.py")}
    assert distances["parity_tests/test_gating.py"] == 0
    assert distances["parity_tests/test_routing.py"] >= 1


def fault_in(path: str) -> Mutation:
    return Mutation(path, 3, 10, 11, "constant", "1", "(2)")


def test_slow_tests_run_only_for_what_they_are_named_after():
    slow = "parity_tests/functional/test_sharding.py"
    near, wide = mutate.concerned(
        fault_in("dynconv_jax/functional/sharding.py"), mutate.Config(wide=10**6)
    )
    assert near == [slow]
    assert not any(part in file for part in mutate.LEFT_OUT for file in wide[1:])
    near, wide = mutate.concerned(
        fault_in("dynconv_jax/functional/geometry.py"), mutate.Config(wide=10**6)
    )
    assert slow not in near + wide
    reached = [file for _, file in nearest_tests("dynconv_jax/functional/geometry.py")]
    assert slow in reached


def test_the_examples_of_a_module_run_if_its_own_tests_notice_nothing():
    near, wide = mutate.concerned(fault_in("dynconv_jax/gating.py"), mutate.Config())
    assert near == ["parity_tests/test_gating.py"]
    assert wide[0] == f"{mutate.EXAMPLES}[dynconv_jax.gating]"
    file, _, name = mutate.EXAMPLES.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()


FAULT = fault_in("dynconv_jax/gating.py")


def test_a_record_is_kept_and_read_again(tmp_path):
    path = tmp_path / "new" / "record.json"
    record = mutate.Record(path)
    assert record.find(FAULT) is None
    record.add(FAULT, outcome="survived", told="", seconds=1.5, tests=["a"])
    again = mutate.Record(path)
    row = again.find(FAULT)
    assert row and (row["outcome"], row["tests"]) == ("survived", ["a"])
    assert os.listdir(path.parent) == ["record.json"]
    told = mutate.report([FAULT], again)
    assert told.startswith("0 of 1 faults were noticed, 1 survived, 0 ran out of time,")
    assert told.endswith("survived  dynconv_jax/gating.py:3  constant: 1  ->  (2)")


class StandIn:
    """Stands in for the checkout: its tests notice faults in the second file."""

    def __init__(self, root):
        self.root, self.ran = root, []

    def test(self, files):
        """Notes what was run; only a planted fault fails."""
        self.ran.append(list(files))
        is_planted = "(2)" in (self.root / "file.py").read_text()
        return (
            (1, "FAILED wide.py::test")
            if is_planted and "wide.py" in files
            else (0, "")
        )

    def write(self, name, source):
        """Writes the source."""
        (self.root / name).write_text(source)


def test_wider_tests_run_where_the_nearest_notice_nothing(tmp_path, monkeypatch):
    (tmp_path / "file.py").write_text("x = 1\n")
    (fault,) = mutations_of("x = 1\n", "file.py")
    concerned = ["near.py"], ["wide.py"]
    monkeypatch.setattr(mutate, "concerned", lambda *_: concerned)
    tests: Any = StandIn(tmp_path)
    record = mutate.Record(tmp_path / "record.json")
    mutate.plant(fault, tests, record, mutate.Config())
    row = record.find(fault)
    assert row and (row["outcome"], row["told"]) == ("noticed", "FAILED wide.py::test")
    # Without a fault first, or any test that fails would seem to notice one.
    assert tests.ran == [["near.py"], ["near.py"], ["wide.py"], ["wide.py"]]
    assert (tmp_path / "file.py").read_text() == "x = 1\n"
    assert record.sound == {"near.py": True, "wide.py": True}


def test_tests_run_in_a_process_that_reads_the_code_anew(tmp_path):
    program = (
        "from parity_tests.tools import forked_pytest as f; f.FRAMEWORKS = ['pytest']"
    )
    flags = ["-q", "-n0", "-pno:cacheprovider", f"--rootdir={tmp_path}", "-c/dev/null"]
    statuses = []
    with subprocess.Popen(
        [sys.executable, "-c", f"{program}; f.main()"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin and server.stdout
        for body, seconds in (("pass", 60), ("assert 0", 60), ("while True: pass", 1)):
            path = tmp_path / "test_it.py"
            path.write_text(f"def test_it():\n    {body}\n")
            order = {"arguments": [*flags, str(path)], "seconds": seconds}
            server.stdin.write(json.dumps(order) + "\n")
            server.stdin.flush()
            statuses.append(json.loads(server.stdout.readline())["status"])
    assert server.returncode == 0
    assert statuses == [0, 1, None]
