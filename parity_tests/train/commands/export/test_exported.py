"""An export predicts as its run does; a damaged one is refused before it is used."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity_tests.tolerances import assert_close
from parity_tests.tools.lively import write_lively
from train.commands import predict
from train.commands.export import exported as reading
from train.commands.export import main as export
from train.commands.export.exported import digest, is_export, read_export
from train.errors import TrainError

DEFAULT_NUMERICS = True

ALONE = ("--formats", "stablehlo")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run with its export, and a folder of five pictures beside it."""
    path = tmp_path_factory.mktemp("runs") / "run"
    dataset, _ = write_lively(path, conv="static")  # which compiles sooner
    export([str(path), *ALONE])
    folder = path.parent / "pictures"
    folder.mkdir()
    for index in range(5):
        picture = Image.fromarray(dataset.test.image(index).squeeze(-1))
        picture.save(folder / f"{index}.png")
    return path


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """An export to be damaged."""
    return shutil.copytree(trained / "export", tmp_path / "export")


def edit(path: Path, **changes) -> None:
    """Changes what `model.json` says."""
    description = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps(description | changes))


def table(path: Path, pictures: Path, out: Path, *argv: str) -> list[list[str]]:
    """Returns the rows that are predicted of pictures, with all classes."""
    predict.main([str(path), str(pictures), "--top=10", *argv, f"--out={out}"])
    with open(out, newline="") as file:
        return [*csv.reader(file)]


def probabilities(rows: list[list[str]]) -> dict[str, np.ndarray]:
    """Returns the probabilities of all classes, in one order, by picture."""
    found = {}
    for image, *rest in rows[1:]:
        by_class = dict(zip(rest[::2], rest[1::2], strict=True))
        found[image] = np.array([float(by_class[name]) for name in sorted(by_class)])
    return found


def test_rows_are_those_of_the_run(trained, tmp_path):
    pictures, out = trained.parent / "pictures", tmp_path / "seen.csv"
    ran = table(trained, pictures, out, "--batch-size=2")
    answered = table(trained / "export", pictures, out, "--batch-size=3")
    assert answered[0] == ran[0] and len(answered) == 6
    assert [row[:2] for row in answered] == [row[:2] for row in ran]
    assert_close(probabilities(answered), probabilities(ran), dtype="float32")


def test_pictures_that_cannot_be_read_are_put_up_with_as_told(trained, tmp_path):
    pictures = shutil.copytree(trained.parent / "pictures", tmp_path / "pictures")
    (pictures / "1.png").write_bytes(b"torn")
    arguments = [str(trained / "export"), str(pictures)]
    out = tmp_path / "seen.jsonl"
    with pytest.raises(TrainError, match="1.png cannot be read as an image") as caught:
        predict.main([*arguments, f"--out={out}"])
    assert caught.value.exit_status == 1 and not out.exists()
    predict.main([*arguments, f"--out={out}", "--on-bad-image=skip"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(row["image"]).stem for row in rows] == ["0", "2", "3", "4"]
    assert all(row["attention"] == {} for row in rows)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--weights=best"],
            r"--weights \(=best\) must be left out: .*export has only",
        ),
        (
            ["--artifact=onnx"],
            "export has no model.onnx; give --artifact stablehlo, or",
        ),
        (
            ["--artifact=pt2"],
            r"--artifact \(=pt2\) must be one of: stablehlo, onnx, in",
        ),
    ],
)
def test_flags_that_are_not_for_it_are_refused(flags, words, trained):
    with pytest.raises(TrainError, match=words):
        predict.main([str(trained / "export"), "no.png", *flags])


def test_a_program_of_a_run_is_refused(trained):
    with pytest.raises(
        TrainError, match=r"--artifact \(=onnx\) must be left out: .*ru"
    ):
        predict.main([str(trained), "no.png", "--artifact=onnx"])


# Directories that are no longer what was exported


def test_a_damaged_program_is_told_by_its_digest(copy):
    content = bytearray((copy / "model.stablehlo").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.stablehlo").write_bytes(content)
    words = "model.stablehlo is not the file that model.json beside it tells of"
    with pytest.raises(TrainError, match=words) as caught:
        read_export(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.json", "model.stablehlo"])
def test_a_missing_file_is_named(name, copy):
    (copy / name).unlink()
    words = f"{name} cannot be read \\(it does not exist\\); export the run again"
    with pytest.raises(TrainError, match=words):
        predict.main([str(copy), "no.png"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": []}, "class_names: expected `array` of length >= 1"),
        ({"mean": [0.5, 0.5]}, r"mean has 2 numbers, and the images have 1 channel"),
        ({"files": {"model.stablehlo": {}}}, "missing required field `sha256`"),
        ({"files": None}, r"files \(=None\): expected `object`, got `null`"),
    ],
)
def test_a_description_that_is_none_is_refused_by_its_field(changes, words, copy):
    edit(copy, **changes)
    with pytest.raises(TrainError, match=f"model.json cannot be read .*{words}"):
        read_export(copy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"image_shape": [9, 8, 1]},
            r"takes \(any, 8, 8, 1\) of uint8, but model.json says \(any, 9, 8, 1\) of",
        ),
        (
            {"class_names": ["0", "1"]},
            r"answers \(any, 10\) of float32, but model.json says \(any, 2\) of",
        ),
    ],
)
def test_a_program_of_other_shapes_than_described_is_refused(changes, words, copy):
    edit(copy, **changes)
    with pytest.raises(TrainError, match=words):
        read_export(copy)


def test_a_program_that_jax_cannot_read_is_told_with_the_version_that_wrote_it(copy):
    (copy / "model.stablehlo").write_bytes(b"of another time")
    files = {"model.stablehlo": {"sha256": digest(b"of another time")}}
    edit(copy, files=files, versions={"jax": "9.8.7"})
    words = "model.stablehlo cannot be run here: .*; it was written with jax 9.8.7; exp"
    with pytest.raises(TrainError, match=words) as caught:
        read_export(copy)
    assert "\n" not in str(caught.value)


def test_a_program_for_other_platforms_is_refused(copy, monkeypatch):
    from jax import export as jax_export

    monkeypatch.setattr(jax_export, "default_export_platform", lambda: "rocm")
    with pytest.raises(TrainError, match="it is for cpu, cuda, tpu, not for rocm; it"):
        read_export(copy)


def test_a_module_that_is_missing_is_named(copy, monkeypatch):
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    words = "model.stablehlo needs flatbuffers, not installed here; give: pip install"
    with pytest.raises(TrainError, match=words):
        read_export(copy)


def test_an_export_with_nothing_to_run_here_says_what_may_be(copy):
    edit(copy, files={"model.pt2": {"sha256": "0" * 64}})
    words = "has no model.stablehlo and no model.onnx; export the run again"
    with pytest.raises(TrainError, match=words):
        read_export(copy)


def test_a_run_is_no_export_and_neither_is_an_empty_directory(trained, tmp_path):
    assert is_export(trained / "export")
    assert not is_export(trained) and not is_export(tmp_path)
