"""`export` writes files that compute what the network of a run does, or nothing."""

import json
import os
import shutil
import tempfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from jax import export as jax_export

from parity_tests.tolerances import assert_close
from parity_tests.tools.lively import write_lively
from train.commands import export
from train.commands.export import main
from train.commands.export.programs import classifier
from train.errors import TrainError

DEFAULT_NUMERICS = True

# Without PyTorch, and so in this process.
ALONE = ("--formats", "stablehlo")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    written = write_lively(path)
    (path / "report.html").write_text("<main><footer></footer></main>")
    return path, *written


@pytest.fixture(scope="module")
def exported(trained):
    main([str(trained[0]), *ALONE])
    return trained[0] / "export"


def read(exported, name):
    return json.loads((exported / name).read_text())


def program_of(exported):
    return jax_export.deserialize(
        bytearray((exported / "model.stablehlo").read_bytes())
    )


def test_directory_holds_program_weights_and_descriptions(exported):
    assert {path.name for path in exported.iterdir()} == {
        *("model.stablehlo", "weights.safetensors"),
        *("model.json", "export.json", "README.md"),
    }


def test_program_serves_every_batch_and_computes_what_the_network_does(
    trained, exported
):
    _, dataset, model = trained
    program = program_of(exported)
    assert program.platforms == ("cpu", "cuda", "tpu")
    expected = np.asarray(classifier(model, dataset)(dataset.test.images[:17]))
    assert (expected.max(0) - expected.min(0)).max() > 0.1  # it tells them apart
    for batch in (1, 3, 17):
        answered = program.call(dataset.test.images[:batch])
        assert_close(
            {"probabilities": np.asarray(answered)},
            {"probabilities": expected[:batch]},
            dtype="float32",
        )


def test_report_of_the_run_shows_the_export(trained, exported):
    page = (trained[0] / "report.html").read_text()
    assert "model.stablehlo" in page and page.endswith("<footer></footer></main>")


def test_a_report_that_cannot_be_written_is_told_of(
    trained, tmp_path, monkeypatch, capsys
):
    def refuse(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(export, "show_export", refuse)
    main([str(trained[0]), *ALONE, f"--out={tmp_path / 'export'}"])
    told = " ".join(capsys.readouterr().out.split())
    assert "its report does not show it: Read-only file system" in told


def test_batch_norms_are_folded_into_the_program(trained, exported, tmp_path):
    assert read(exported, "model.json")["is_folded"] is True
    assert "rsqrt" not in program_of(exported).mlir_module()
    main([str(trained[0]), *ALONE, "--no-fold", f"--out={tmp_path / 'whole'}"])
    assert read(tmp_path / "whole", "model.json")["is_folded"] is False
    assert "rsqrt" in program_of(tmp_path / "whole").mlir_module()


def test_weights_are_those_of_the_run(trained, exported):
    ours, theirs = (
        safetensors.numpy.load_file(file)
        for file in (exported / "weights.safetensors", trained[0] / "model.safetensors")
    )
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key])


def test_description_has_all_that_a_user_of_the_files_needs(trained, exported):
    dataset = trained[1]
    description = read(exported, "model.json")
    for name, value in dataset.to_json().items():
        assert description[name] == value
    assert description["create_model"] == dict(
        name="dynamic_net", in_channels=1, num_classes=10, width_mult=0.25
    )
    assert description["versions"]["jax"] == jax.__version__


def test_accuracy_is_that_of_the_network_on_the_test_images(trained, exported):
    _, dataset, model = trained
    logits = classifier(model, dataset)(dataset.test.images)
    right = np.asarray(logits).argmax(-1) == dataset.test.labels
    figures = read(exported, "export.json")
    assert figures["accuracy"]["test_accuracy"] == right.mean()
    assert figures["accuracy"]["images"] == len(right)


def test_figures_say_how_far_a_file_is_from_the_network(exported):
    figures = read(exported, "export.json")
    (program,) = figures["files"].values()
    assert 0 < program["relative_difference"] < figures["allowed"] == 1e-4
    assert program["same_class"] == 1
    assert program["bytes"] == (exported / "model.stablehlo").stat().st_size
    assert figures["pictures"] == 21


def test_program_of_another_network_is_refused_and_nothing_written(
    trained, tmp_path, monkeypatch
):
    def fold(model, domain):
        other = nnx.clone(model)
        other.fc.bias[...] += np.arange(10) / 1000
        return other, True

    monkeypatch.setattr(export, "fold", fold)
    with pytest.raises(TrainError, match="model.stablehlo does not compute what the n"):
        main([str(trained[0]), *ALONE, f"--out={tmp_path / 'export'}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_program_with_its_size_open_serves_other_pictures(trained, tmp_path):
    path, dataset, model = trained
    out = tmp_path / "open"
    main([str(path), *ALONE, "--open-size", f"--out={out}"])
    assert read(out, "model.json")["has_open_size"] is True
    assert "any height and width" in (out / "README.md").read_text()
    pictures = np.tile(dataset.test.images[:2], (1, 2, 1, 1))[:, :, :7]
    assert_close(
        {"probabilities": np.asarray(program_of(out).call(pictures))},
        {"probabilities": np.asarray(classifier(model, dataset)(pictures))},
        dtype="float32",
    )


@pytest.mark.slow
def test_network_in_bfloat16(trained, tmp_path):
    out = tmp_path / "narrow"
    main([str(trained[0]), *ALONE, "--dtype=bfloat16", f"--out={out}"])
    assert read(out, "model.json")["dtype"] == "bfloat16"
    assert "bf16" in program_of(out).mlir_module()


def test_network_in_bfloat16_is_refused_by_the_formats_of_pytorch(trained, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: name)  # with PyTorch or not
    with pytest.raises(
        TrainError, match=r"--dtype \(=bfloat16\) .* not for onnx and pt2;"
    ):
        main([str(trained[0]), "--dtype=bfloat16"])


def test_an_earlier_export_is_replaced(trained, exported, tmp_path, capsys):
    out = shutil.copytree(exported, tmp_path / "export")
    (out / "model.stablehlo").write_bytes(b"old")
    main([str(trained[0]), *ALONE, f"--out={out}", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == read(out, "export.json")["files"]
    assert (out / "model.stablehlo").stat().st_size > 3


@pytest.mark.parametrize("name", ["notes.txt", "model.json"])
def test_files_of_others_are_left_alone(trained, name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(TrainError, match=f"holds other files, such as {name}; choose"):
        main([str(trained[0]), f"--out={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_in_the_place_of_the_directory_is_refused(trained, tmp_path):
    (tmp_path / "export").write_text("mine")
    with pytest.raises(TrainError, match=r"--out \(=.*export\) is a file"):
        main([str(trained[0]), f"--out={tmp_path / 'export'}"])


def test_a_place_below_a_file_is_refused_at_once(tmp_path):
    (tmp_path / "notes").write_text("mine")
    out = tmp_path / "notes" / "more" / "export"
    with pytest.raises(TrainError, match=r"--out \(=.*export\): .*notes is a file"):
        main([str(tmp_path / "no run"), f"--out={out}"])


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(TrainError, match=f"{tmp_path} cannot be written"):
        main([str(tmp_path / "no run"), f"--out={tmp_path / 'more' / 'export'}"])


def test_temporary_files_that_cannot_be_written_are_told_of(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(TrainError, match="^temporary files .* set TMPDIR to"):
        main([str(trained[0]), *ALONE, f"--out={tmp_path / 'export'}"])
    assert not (tmp_path / "export").exists()


def test_a_network_that_answers_no_numbers_is_refused(trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    weights = safetensors.numpy.load_file(run / "model.safetensors")
    weights["fc.bias"][0] = np.nan
    safetensors.numpy.save_file(weights, run / "model.safetensors")
    with pytest.raises(TrainError, match=r"answers nan .* --weights \(=final\)"):
        main([str(run), *ALONE, f"--out={tmp_path / 'export'}"])
    assert not (tmp_path / "export").exists()


def test_a_run_without_its_weights_is_refused(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(
        TrainError, match=r"--weights \(=final\) must be there"
    ) as error:
        main([str(run), *ALONE])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("formats", "missing", "words"),
    [
        ("stablehlo", "flatbuffers", r"--formats stablehlo needs flatbuffers,.*export"),
        ("onnx", "onnxscript", r"--formats onnx needs onnxscript, not .*\[onnx\]"),
        ("pt2", "torch", "--formats pt2 needs torch, not installed"),
    ],
)
def test_a_format_whose_modules_are_missing_is_refused(
    trained, formats, missing, words, monkeypatch
):
    monkeypatch.setattr(export, "find_spec", lambda name: name != missing or None)
    with pytest.raises(TrainError, match=words):
        main([str(trained[0]), "--formats", formats])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "export needs the directory of one run, and was given 0"),
        (["one", "two"], "and was given 2"),
        (["run", "--formats"], "--formats needs a value"),
        (
            ["run", "--formats", "tflite"],
            r"--formats \(=tflite\) must be one of: stable",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(TrainError, match=words):
        main(arguments)


# Static


@pytest.mark.slow
def test_static_network_tells_what_it_costs(trained, tmp_path):
    path, dataset, model = trained
    out = tmp_path / "static"
    main([str(path), *ALONE, "--static", f"--out={out}"])
    description = read(out, "model.json")
    assert description["create_model"]["conv"] == "static"
    accuracy = description["accuracy"]
    logits = classifier(model, dataset)(dataset.test.images)
    right = np.asarray(logits).argmax(-1) == dataset.test.labels
    assert accuracy["test_accuracy_before_static"] == right.mean()
    kernel = safetensors.numpy.load_file(out / "weights.safetensors")
    assert kernel["stage1.dyn.weight"].shape == (16, 8, 3, 3)
