"""Files of a run that a hand has edited: one line says which, and where."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from parity_tests.tools.runs import make_dataset, write_run
from train.errors import TrainError
from train.storage.finished import read_run
from train.storage.run_directory import RunDirectory
from train.storage.run_files import (
    CONFIG,
    DOMAIN,
    METRICS,
    SUMMARY,
    read_domain,
    read_summary,
    weights_to_start_from,
)

DEFAULT_NUMERICS = True  # of a run


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, write_run(path, dataset=make_dataset())


@pytest.fixture
def run(written, tmp_path) -> Path:
    return shutil.copytree(written[0], tmp_path / "run")


def read_all(path: Path) -> None:
    """Reads a run as the commands do, one after the other."""
    read_run(path)
    read_summary(path)
    read_domain(path)


def refusal(path: Path) -> str:
    with pytest.raises(TrainError) as caught:
        read_all(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_run_as_it_was_written_is_read(run):
    read_all(run)


UNREADABLE = {
    "empty": (b"", "it is empty"),
    "cut": (b'{"steps": 4', "it is no JSON"),
    "no text": (b'{"steps": "\xff\xfe"}', "is no UTF-8"),
    "no number": (b'{"steps": NaN}', "NaN in it is no finite number"),
    "deep": (b"[" * 200_000, "nested too deeply"),
    "long": (b'{"steps": ' + b"9" * 10_000 + b"}", "a number in it has 10000 digits"),
    "twice": (b'{"steps": 4, "steps": 5}', "'steps' stands in it twice"),
    "list": (b"[1, 2]", "got `array`"),
    "null": (b"null", "got `null`"),
    "text": (b'"steps"', "got `str`"),
}


@pytest.mark.parametrize("name", [CONFIG, DOMAIN, SUMMARY])
@pytest.mark.parametrize(("content", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_file_that_cannot_be_read_is_named(run, name, content, words):
    (run / name).write_bytes(content)
    message = refusal(run)
    assert name in message and words in message


@pytest.mark.parametrize(
    ("content", "words"), [*UNREADABLE.values()][1:], ids=[*UNREADABLE][1:]
)
def test_line_that_cannot_be_read_is_named(run, content, words):
    (run / METRICS).write_bytes(b'{"step": 1}\n' + content + b'\n{"step": 2}\n')
    message = refusal(run)
    assert f"{run / METRICS}, line 2" in message and words in message


@pytest.mark.parametrize("name", [CONFIG, DOMAIN, METRICS, SUMMARY])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_named(run, name, make):
    (run / name).unlink()
    make(run / name)
    message = refusal(run)
    assert name in message and "no regular file" in message


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        (CONFIG, {"steps": "40"}, "steps (='40'): expected `int | null`, got `str`"),
        (CONFIG, {"steps": 0}, "--steps (=0) must be at least 1"),
        (CONFIG, {"learning_rate": [1]}, "learning_rate: expected `float`"),
        (CONFIG, {"learning_rate": None}, "learning_rate (=None): expected `float`"),
        (CONFIG, {"model_options": "a=1"}, "model_options (='a=1'): expected `array`"),
        (CONFIG, {"model_options": ["a=1", 2]}, "model_options[1] (=2)"),
        (CONFIG, {"overwrite": 1}, "overwrite (=1): expected `bool`"),
        (CONFIG, {"data": {}}, "data: expected `str"),
        (CONFIG, {"preset": "moons"}, "preset (='moons'): invalid enum value"),
        (CONFIG, {"seed": 1.5}, "seed (=1.5): expected `int`"),
        (CONFIG, {"seed": 2**70}, "--seed (="),
        (CONFIG, {"stepz": 3}, "has no flag 'stepz'"),
        (CONFIG, {"model": ...}, "has no 'model'"),
        (DOMAIN, {"image_shape": [100_000, 100_000, 3]}, "image_shape[0] (=100000)"),
        (DOMAIN, {"image_shape": [5, 0, 3]}, "image_shape[1] (=0)"),
        (DOMAIN, {"image_shape": [5, 5]}, "image_shape"),
        (DOMAIN, {"image_shape": [5, 5, 2]}, "image_shape[2] (=2)"),
        (DOMAIN, {"image_shape": 5}, "image_shape (=5)"),
        (DOMAIN, {"class_names": []}, "class_names"),
        (DOMAIN, {"class_names": ["a", None]}, "class_names[1] (=None)"),
        (DOMAIN, {"class_names": "abc"}, "class_names (='abc')"),
        (DOMAIN, {"class_names": ...}, "`class_names`"),
        (DOMAIN, {"mean": [0.5]}, "mean has 1 numbers, and the images have 3"),
        (DOMAIN, {"std": [0.5, 0.5, 0.0]}, "std[2] (=0.0)"),
        (DOMAIN, {"crop_pct": 0}, "crop_pct (=0)"),
        (DOMAIN, {"interpolation": "box"}, "interpolation (='box')"),
        (SUMMARY, {"test_accuracy": "0.5"}, "test_accuracy (='0.5')"),
        (SUMMARY, {"test_accuracy": 2.5}, "test_accuracy (=2.5)"),
        (SUMMARY, {"test_accuracy": ...}, "it has no test_accuracy"),
        (SUMMARY, {"parameters": 1.5}, "parameters (=1.5)"),
        (SUMMARY, {"static_parameters": 0}, "static_parameters (=0)"),
        (SUMMARY, {"images_per_second": 0}, "images_per_second (=0)"),
        (SUMMARY, {"wall_seconds": None}, "wall_seconds (=None)"),
        (SUMMARY, {"best_step": []}, "best_step: expected `int | null`"),
        (SUMMARY, {"params_sha256": 7}, "params_sha256 (=7)"),
    ],
)
def test_field_that_cannot_be_is_named_with_its_file(run, name, edit, words):
    values = json.loads((run / name).read_text()) | edit
    kept = {field: value for field, value in values.items() if value is not ...}
    (run / name).write_text(json.dumps(kept))
    message = refusal(run)
    assert words in message
    assert str(run) in message


ROW = {"step": 15, "loss": 1.0, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"step": ...}, "missing required field `step`"),
        ({"step": "15"}, "step (='15')"),
        ({"step": -1}, "step (=-1)"),
        ({"step": 1.5}, "step (=1.5)"),
        ({"loss": None}, "loss (=None)"),
        ({"loss": {}}, "loss: expected `float`"),
        ({"accuracy": 7}, "accuracy (=7)"),
        ({"learning_rate": True}, "learning_rate (=True)"),
        ({"entropy": [0.5]}, "entropy: expected `object`"),
        ({"entropy": {"router": "x"}}, "entropy[...]: expected `float`"),
        ({"usage": {"router": 0.5}}, "usage[...]: expected `array`"),
        ({"usage": {"router": [0.5, None]}}, "usage[...][1]: expected `float`"),
        ({"test_loss": "nan"}, "test_loss (='nan')"),
    ],
)
def test_line_of_the_metrics_is_named_with_its_number(run, edit, words):
    row = {name: value for name, value in (ROW | edit).items() if value is not ...}
    lines = (run / METRICS).read_text().splitlines()
    lines[1] = json.dumps(row)
    (run / METRICS).write_text("\n".join(lines) + "\n")
    message = refusal(run)
    assert f"{run / METRICS}, line 2: cannot be read" in message
    assert words in message


def test_lines_are_those_between_line_feeds(run):
    row = json.dumps(ROW | {"note": "a\u2028b\x85"}, ensure_ascii=False)
    (run / METRICS).write_text(f"\n{row}\r\n\n{row}\n{row}", "utf-8")
    assert len(read_run(run).training) == 2  # the last one is written by half


def test_run_with_a_broken_line_is_not_gone_on_with(run, written):
    with open(run / METRICS, "a") as file:
        file.write('{"step": "x"}\n{"step": 40}\n')
    before = (run / METRICS).read_bytes()
    with RunDirectory(dataclasses.replace(written[1], out=run)) as directory:
        with pytest.raises(TrainError, match=r"metrics\.jsonl, line \d+"):
            directory.rewind(20)
    assert (run / METRICS).read_bytes() == before


def test_run_of_a_version_with_fewer_flags_is_read(run):
    flags = json.loads((run / CONFIG).read_text())
    del flags["erasing"]
    (run / CONFIG).write_text(json.dumps(flags))
    assert read_run(run).config.erasing is None


def test_domain_of_a_version_that_told_less_is_read(run):
    told = json.loads((run / DOMAIN).read_text())
    del told["crop_pct"], told["interpolation"]
    (run / DOMAIN).write_text(json.dumps(told))
    domain = read_domain(run)
    assert (domain.crop_pct, domain.interpolation) == (1.0, "bicubic")


def test_figure_that_is_needed_is_asked_for(run):
    summary = json.loads((run / SUMMARY).read_text())
    del summary["parameters"]
    (run / SUMMARY).write_text(json.dumps(summary))
    assert read_summary(run) == summary
    with pytest.raises(TrainError, match="it has no parameters"):
        read_summary(run, "steps", "parameters")


# The weights that another run starts from


def test_of_a_run_it_is_the_weights_that_evaluate_loads(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "best.safetensors").write_bytes(b"")
    assert weights_to_start_from(tmp_path) == tmp_path / "model.safetensors"
    best = tmp_path / "best.safetensors"
    assert weights_to_start_from(best) == best
    assert weights_to_start_from(None) is None


def test_directory_without_weights_is_refused_with_what_it_has(tmp_path):
    with pytest.raises(TrainError, match="has no model.safetensors; give a file of"):
        weights_to_start_from(tmp_path)
    best = tmp_path / "best.safetensors"
    best.write_bytes(b"")
    with pytest.raises(TrainError) as caught:
        weights_to_start_from(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"--init-from (={tmp_path}) must be")
    assert message.endswith(f"; give {best}")
