"""What there is to compile, and what the command line takes of it."""

import dataclasses
import re
import tomllib

import jax
import pytest

from benchmarks.compiled import compiler, jobs
from benchmarks.compiled.__main__ import Config, check_filters, jobs_of, main
from benchmarks.compiled.chips import CHIPS
from benchmarks.compiled.compiler import environment
from benchmarks.compiled.jobs import (
    DENSE,
    DEPTHWISE,
    EVERY_FORM,
    PASSES,
    STEPS,
    choice,
    forms,
    layer_jobs,
    stack_jobs,
    step_jobs,
)
from benchmarks.compiled.layers import layer_work
from benchmarks.compiled.page import _columns
from benchmarks.compiled.run import describe, key
from benchmarks.compiled.worker import Task
from benchmarks.shapes import Shape
from benchmarks.stacks import Stack
from dynconv_jax.functional import choice as choice_module
from dynconv_jax.functional.choice import IMPLEMENTATIONS
from dynconv_jax.functional.forms import FORMS
from dynconv_jax.functional.pallas.by_platform import form_for
from parity_tests.tools.checkout import ROOT


def test_every_form_of_the_library_is_compiled_for_one_shape_or_another():
    found = {
        form
        for shape in (*DENSE, *DEPTHWISE)
        for platform in ("cpu", "gpu", "tpu")
        for form in forms(shape, platform)
    }
    kernels = {form_for(platform) for platform in ("cpu", "gpu", "tpu")}
    assert found == {*FORMS, "experts", "experts by convolution", *kernels}


@pytest.mark.parametrize("shape", [DENSE[0], DEPTHWISE[0], DENSE[4]], ids=str)
@pytest.mark.parametrize(("chip", "platform"), [("v6e", "tpu"), ("a100", "gpu")])
def test_a_layer_is_compiled_static_as_auto_in_every_form_and_in_that_of_the_chip(
    shape, chip, platform
):
    found = layer_jobs((shape,), PASSES, chip)
    for variant in PASSES:
        titles = [job.form_title for job in found if job.variant == variant]
        assert len(titles) == len(set(titles))
        chosen = str(choice(shape, chip))
        assert set(titles) == {"static", "auto", chosen, *forms(shape, platform)}


def test_forms_that_cannot_compute_a_shape_are_left_out():
    assert "taps" not in forms(DENSE[0], "tpu")
    assert "taps" in forms(DEPTHWISE[0], "tpu")
    assert "row_conv" not in forms(DENSE[0], "gpu")
    assert "looped taps" not in forms(DEPTHWISE[0], "gpu")


def test_a_form_that_the_library_gains_is_compiled_and_has_its_column(monkeypatch):
    monkeypatch.setattr(jobs, "EVERY_FORM", (*EVERY_FORM, "waves"))
    monkeypatch.setattr(choice_module, "IMPLEMENTATIONS", (*IMPLEMENTATIONS, "waves"))
    found = layer_jobs(DENSE[:1], PASSES, "v5e")
    assert "waves" in {job.form_title for job in found}
    assert "waves" in _columns([describe(job) for job in found])


@pytest.mark.parametrize("every_form", [False, True])
def test_a_step_is_held_against_the_same_with_static_convolutions(every_form):
    steps = step_jobs(STEPS, (1, 4), every_form)
    titles = {job.title for job in steps if job.form == "static"}
    assert len(titles) == 3
    assert {job.static_title for job in steps} == titles
    forms = {job.form for job in steps}
    assert {"patches", "rows", "experts"} <= forms if every_form else len(forms) == 2


def test_steps_are_compiled_in_the_forms_that_are_asked_for():
    found = {
        job.form_title for job in jobs_of(Config("v5e", steps=True, forms=("rows",)))
    }
    assert found == {"rows"}


def test_a_job_reaches_its_process_as_it_is(tmp_path):
    layers = layer_jobs(DEPTHWISE[:1], PASSES, "v5e")
    for job in (*layers, *step_jobs(STEPS, (1, 4)), *stack_jobs(PASSES)):
        task = Task("v5e", job, tmp_path, tmp_path / "record.json", 3.5)
        assert Task.from_json(task.to_json()) == task


def test_names_of_records_differ():
    layers = layer_jobs((*DENSE, *DEPTHWISE), PASSES, "h100")
    every = [*layers, *step_jobs(STEPS, (1, 8), every_form=True), *stack_jobs(PASSES)]
    assert len({key(job) for job in every}) == len(every)
    assert describe(every[0])["title"] == str(Shape(**every[0].subject))


@pytest.mark.parametrize("variant", PASSES)
def test_a_stack_is_lowered_without_a_group_for_each_kernel(variant):
    (job, *_) = stack_jobs((variant,), (Stack(3, 2, 5, 4, 6),))
    work = layer_work(job)
    assert len(work.arguments) == 2 + PASSES.index(variant)
    lowered = jax.jit(work.function).trace(*work.arguments)
    text = lowered.lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.convolution" in text
    assert set(re.findall(r"_group_count = (\d+)", text)) == {"1"}


def kinds(config: Config) -> set[str]:
    return {
        "depthwise" if "depthwise" in job.title and job.kind == "layer" else job.kind
        for job in jobs_of(config)
    }


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, {"layer", "depthwise", "step"}),
        ({"layers": True}, {"layer"}),
        ({"depthwise": True}, {"depthwise"}),
        ({"steps": True}, {"step"}),
        ({"mapped": True}, {"stack"}),
        ({"layers": True, "steps": True}, {"layer", "step"}),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_parts_are_chosen_by_their_flags(flags, expected, quick):
    assert kinds(Config("v6e", quick=quick, **flags)) == expected


def test_a_quick_run_is_a_few_programs():
    assert len(jobs_of(Config("v5e", quick=True))) < len(jobs_of(Config("v5e"))) / 5


def test_forms_and_passes_are_chosen_by_their_flags():
    config = Config("v5e", layers=True, forms=("static", "rows"), passes="gradient")
    chosen = jobs_of(config)
    assert {job.form_title for job in chosen} == {"static", "rows"}
    assert {job.variant for job in chosen} == {PASSES[1]}
    both = jobs_of(dataclasses.replace(config, passes="all"))
    assert {job.variant for job in both} == set(PASSES)


def test_steps_are_chosen_by_network_and_number_of_chips():
    config = Config("v5e", steps=True, models=("dynamic_net",), devices=(4,))
    chosen = jobs_of(config)
    assert [(job.subject[1], job.variant) for job in chosen] == [
        ("static", "4"),
        ("dynamic", "4"),
    ]
    assert {job.subject[0] for job in chosen} == {"dynamic_net"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"layers": True, "forms": ("rwos",)},
            r"--forms \(=rwos\) .* among auto, e",
        ),
        ({"models": ("resnet81",)}, r"--models \(=resnet81\) .* among dynamic_net, "),
        ({"devices": (3,)}, r"--devices \(=3\) must be among 1, 4, 8"),
    ],
)
def test_what_no_program_has_is_refused_with_what_there_is(flags, said):
    with pytest.raises(SystemExit, match=said):
        check_filters(Config("v5e", **flags))


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_a_missing_compiler_is_named_with_what_installs_it(chip, monkeypatch):
    monkeypatch.setattr(compiler, "is_installed", lambda chip: False)
    with pytest.raises(
        SystemExit, match=rf"--chip {chip.name} is compiled for by"
    ) as why:
        main(Config(chip.name, quick=True))
    assert "pip install" in str(why.value)


def test_what_installs_the_compilers_of_tpus_is_an_extra_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["tpu-compiler"]
    with pytest.raises(compiler.CompilerMissing, match=r"\.\[tpu-compiler\]"):
        raise compiler.missing(CHIPS["v5e"])


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_every_chip_has_its_figures_and_topologies(chip, tmp_path):
    assert chip.flops > 1e14 and chip.bandwidth > 5e11
    assert [chip.topology(count) for count in (1, 4, 8)]
    assert environment(chip, tmp_path)["JAX_PLATFORMS"] == "cpu"
    if chip.platform == "tpu":
        assert chip.clock > 1e9
    else:
        assert f"memory_bandwidth: {chip.bandwidth:.0f}"[:21] in chip.target
        assert chip.target.count("{") == chip.target.count("}")
    with pytest.raises(
        ValueError, match=r"`count` \(=3\) of .* must be one of 1, 4, 8"
    ):
        chip.topology(3)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
    ],
)
def test_a_device_is_one_chip_by_its_name(device, name):
    found = [chip.name for chip in CHIPS.values() if re.fullmatch(chip.kinds, device)]
    assert found == [name]
