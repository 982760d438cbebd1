"""What PyTorch writes of a run serves every batch, with nothing but its runtime."""

import json
import re
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from parity_tests.tolerances import TOLERANCES, assert_close
from parity_tests.tools import environments
from parity_tests.tools.lively import write_lively
from train.commands.export import exported as reading
from train.commands.export import main
from train.commands.export.exported import read_export
from train.commands.export.programs import classifier
from train.data import presets
from train.errors import TrainingFailed
from train.flags.config import Config

DEFAULT_NUMERICS = True

pytestmark = pytest.mark.slow

BATCHES = (1, 3, 17)

FILES = "model.stablehlo", "model.onnx", "model.pt2"
# What must not be there where a file is run.
OTHERS = "dynconv_jax", "dynconv_torch", "flax", "train", "safetensors", "jax", "torch"

PROGRAM = """
import importlib.util, numpy, os
found = [name for name in {others} if importlib.util.find_spec(name)]
assert not found, found
pictures = numpy.load("pictures.npy")
for batch in {batches}:
    images = pictures[:batch]
{code}
    numpy.save(f"answers-{{batch}}.npy", numpy.asarray(probabilities))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A directory of all formats; the pictures and what the network says of them."""
    path = tmp_path_factory.mktemp("runs") / "run"
    dataset, model = write_lively(path)
    main([str(path), "--formats", "stablehlo", "onnx", "int8", "pt2"])
    pictures, _ = dataset.test.gather(np.arange(max(BATCHES)))
    return path / "export", pictures, np.asarray(classifier(model, dataset)(pictures))


def assert_answers(actual, expected):
    assert_close(
        {"probabilities": actual},
        {"probabilities": expected[: len(actual)]},
        dtype="float32",
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_onnx_serves_every_batch(exported, batch):
    folder, pictures, expected = exported
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    probabilities = np.asarray(session.run(None, {"images": pictures[:batch]})[0])
    assert len(probabilities) == batch
    assert_answers(probabilities, expected)


def test_predict_takes_onnx_where_nothing_reads_the_program_of_jax(
    exported, monkeypatch
):
    folder, pictures, expected = exported
    monkeypatch.setattr(
        reading, "find_spec", lambda name: None if name == "flatbuffers" else name
    )
    monkeypatch.setattr(reading, "load_stablehlo", None)
    assert_answers(read_export(folder).call(pictures), expected)


def test_predict_takes_weights_of_eight_bits_by_name(exported):
    folder, pictures, expected = exported
    found = read_export(folder, "int8").call(pictures)
    session = onnxruntime.InferenceSession(folder / "model.int8.onnx")
    assert_answers(found, np.asarray(session.run(None, {"images": pictures})[0]))
    assert np.abs(found - expected).max() > TOLERANCES["float32"].relative


@pytest.mark.parametrize(
    ("name", "file"), [("int8", "model.int8.onnx"), ("onnx", "model.onnx")]
)
def test_accuracy_of_weights_of_eight_bits_is_told(exported, name, file):
    folder, _, _ = exported
    (figures,) = json.loads((folder / "export.json").read_text())["quantized"].values()
    session = onnxruntime.InferenceSession(folder / file)
    source = presets.load(Config()).test
    right = []
    # In the batches of the program, of which the quantizer takes the range.
    for chosen in np.array_split(np.arange(len(source)), 6):
        pictures, _ = source.gather(chosen)
        found = np.asarray(session.run(None, {"images": pictures})[0]).argmax(-1)
        right.append(found == source.labels[chosen])
    assert figures[f"test_accuracy_of_{name}"] == np.concatenate(right).mean()
    assert figures["images"] == len(source)
    whole = (folder / "model.onnx").stat().st_size
    assert figures["bytes"] == (folder / "model.int8.onnx").stat().st_size < whole / 2


@pytest.mark.parametrize("batch", BATCHES)
def test_program_of_pytorch_serves_every_batch(exported, batch):
    folder, pictures, expected = exported
    program = torch.export.load(folder / "model.pt2").module()
    probabilities = program(torch.from_numpy(pictures[:batch])).detach().numpy()
    assert len(probabilities) == batch
    assert_answers(probabilities, expected)


def lines_of_the_readme(folder, name: str) -> str:
    """Returns the program of the section on a file."""
    text = (folder / "README.md").read_text()
    section = text[text.index(f"## {name}") :]
    section = section.partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


@pytest.mark.parametrize("name", FILES)
def test_lines_of_the_readme_serve_every_batch(exported, name, monkeypatch):
    folder, pictures, expected = exported
    monkeypatch.chdir(folder)
    for batch in BATCHES:
        names = {"images": pictures[:batch]}
        exec(lines_of_the_readme(folder, name), names)
        answers = np.asarray(names["probabilities"])
        assert len(answers) == batch
        assert_answers(answers, expected)


# That the other two files need nothing but theirs, test_deploy.py shows.
def test_lines_of_the_readme_run_with_nothing_but_onnxruntime(exported, tmp_path):
    folder, pictures, expected = exported
    place = tmp_path / "environment"
    place.mkdir()
    environments.environment(place, "onnxruntime", "numpy")
    (tmp_path / "model.onnx").symlink_to(folder / "model.onnx")
    np.save(tmp_path / "pictures.npy", pictures)
    lines = lines_of_the_readme(folder, "model.onnx").splitlines()
    program = PROGRAM.format(
        others=OTHERS, batches=BATCHES, code="".join(f"    {line}\n" for line in lines)
    )
    environments.run(place, program, tmp_path)
    for batch in BATCHES:
        answers = np.load(tmp_path / f"answers-{batch}.npy")
        assert len(answers) == batch
        assert_answers(answers, expected)


def test_weights_and_description_build_the_twin_as_the_readme_says(
    exported, monkeypatch
):
    folder, pictures, _ = exported
    monkeypatch.chdir(folder)
    names = {}
    exec(lines_of_the_readme(folder, "weights.safetensors"), names)
    inputs = torch.from_numpy(pictures.transpose(0, 3, 1, 2) / np.float32(255))
    with torch.no_grad():
        answers = names["net"](inputs).softmax(-1).numpy()
    program = torch.export.load(folder / "model.pt2").module()
    expected = program(torch.from_numpy(pictures)).detach().numpy()
    assert_answers(answers, expected)


def test_broken_onnx_is_told_in_one_line(tmp_path, monkeypatch, exported):
    (tmp_path / "onnx.py").write_text("raise ImportError('no such symbol in onnx')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    words = "cannot be written: ImportError: no such symbol in onnx; mend PyTorch"
    with pytest.raises(TrainingFailed, match=words) as error:
        main([str(exported[0].parent), "--formats", "onnx", f"--out={out}"])
    assert "\n" not in str(error.value) and not out.exists()
    assert sys.modules["onnxruntime"] is onnxruntime
