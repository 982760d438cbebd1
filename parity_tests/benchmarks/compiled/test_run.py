"""Compilers in processes of their own: what they answer, and that they end."""

import json
import time
from dataclasses import replace

import jax
import pytest

from benchmarks.compiled import __main__ as program
from benchmarks.compiled import compiler
from benchmarks.compiled.__main__ import Config, compile_all
from benchmarks.compiled.chips import CHIPS
from benchmarks.compiled.jobs import DENSE, PASSES, Job, choice, layer_jobs
from benchmarks.compiled.run import fingerprint, key, known, run_job, versions
from benchmarks.compiled.worker import Task, compile_job
from benchmarks.shapes import Shape

STAND_IN = "parity_tests.benchmarks.compiled.stand_in"
CHIP = CHIPS["v5e"]


def job(form: str, variant: str = PASSES[1]) -> Job:
    return Job("layer", dict(vars(Shape(2, 5, 3, 4, experts=3))), form, variant)


def test_the_record_of_a_worker_comes_back():
    record = run_job(job("answers"), CHIP, 60, STAND_IN, GIVEN="a variable")
    assert record == {"bound": 3.0, "variable": "a variable"}


def test_a_compiler_that_takes_too_long_is_ended_and_said_so():
    start = time.monotonic()
    assert run_job(job("sleeps"), CHIP, 0.5, STAND_IN) == {"late": 0.5}
    assert time.monotonic() - start < 60


def test_a_compiler_that_dies_is_told_with_its_last_line():
    record = run_job(job("dies"), CHIP, 60, STAND_IN)
    assert record == {"refused": "the compiler died (-6): F0101 no room for the kernel"}


@pytest.fixture
def cpu(monkeypatch):
    """Has the CPU stand for the devices of every topology."""
    monkeypatch.setattr(compiler, "topology", lambda chip, count: jax.devices()[:1])


def task(tmp_path, form: str, variant: str = PASSES[1]) -> Task:
    return Task("h100", job(form, variant), tmp_path, tmp_path / "record.json", 60)


@pytest.mark.parametrize("form", ["static", "auto", "experts"])
def test_a_program_is_compiled_and_told_of(cpu, tmp_path, form):
    record = compile_job(task(tmp_path, form))
    assert record["bound"] > 0 and record["bytes"] > 0 and record["seconds"] > 0
    assert record["temporary"] is not None and record["collectives"] == {}
    json.dumps(record)


def test_all_outputs_and_gradients_are_among_what_is_moved(cpu, tmp_path):
    forward, both = (
        compile_job(task(tmp_path, "experts", variant))["bytes"] for variant in PASSES
    )
    assert both > 2 * forward


def test_a_refusal_is_told_by_its_first_line(monkeypatch, tmp_path):
    def refuse(chip, count):
        raise RuntimeError("\nout of memory in vmem\nand a page of details")

    monkeypatch.setattr(compiler, "topology", refuse)
    record = compile_job(task(tmp_path, "static"))
    assert record == {"refused": "RuntimeError: out of memory in vmem"}


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Runs `compile_all` with answers from a table; returns it and what it compiled."""
    jobs = layer_jobs(DENSE[:1], PASSES[1:], "v5e")
    asked: list[str] = []

    def run(answers: dict[str, dict], **flags) -> dict:
        asked.clear()

        def answer(job, chip, limit):
            asked.append(job.form_title)
            return dict(answers.get(job.form_title, {"bound": 2.0}))

        monkeypatch.setattr(program, "run_job", answer)
        config = replace(Config("v5e", out=tmp_path, limit=100.0), **flags)
        return compile_all(config, jobs)

    return run, asked, jobs


def test_what_was_compiled_is_not_compiled_again(compiled):
    run, asked, jobs = compiled
    run({"vmap": {"late": 100.0}, "experts": {"refused": "no"}})
    assert len(asked) == len(jobs)
    results = run({})
    assert asked == []
    assert results["records"][key(jobs[0])]["bound"] == 2.0


def test_what_was_late_is_compiled_again_when_it_may_take_longer(compiled):
    run, asked, _ = compiled
    run({"vmap": {"late": 100.0}})
    run({}, limit=200.0)
    assert asked == ["vmap"]


def test_a_fresh_run_compiles_all_again(compiled):
    run, asked, jobs = compiled
    run({})
    run({}, fresh=True)
    assert len(asked) == len(jobs)


def test_records_of_another_library_are_not_reused(compiled, tmp_path):
    run, asked, jobs = compiled
    run({})
    path = tmp_path / "v5e.json"
    path.write_text(path.read_text().replace(fingerprint(), "another"))
    run({})
    assert len(asked) == len(jobs)
    assert known(path, "yet another") == {}


def test_results_say_what_made_them_and_what_auto_chooses(compiled, tmp_path):
    run, _, _ = compiled
    run({})
    written = json.loads((tmp_path / "v5e.json").read_text())
    assert written["versions"] == versions() and "jax" in written["versions"]
    assert written["choices"][str(DENSE[0])] == str(choice(DENSE[0], "v5e"))
