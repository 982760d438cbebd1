"""`evaluate` finds again what the model of a run computes."""

import itertools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from parity_tests.tolerances import TOLERANCES
from parity_tests.tools.runs import write_trained
from train.commands.evaluate import EvaluateFlags, main
from train.data import presets
from train.data.dataset import Dataset
from train.data.folder import FolderSource
from train.errors import TrainError
from train.flags.config import Config
from train.learning.augment import normalize

DEFAULT_NUMERICS = True


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    flags = {"conv": "static", "ema_decay": 0.5, "batch_size": 64, "mean": (0.25,)}
    return path, *write_trained(path, **flags)


def test_results_are_those_of_the_model(trained, capsys):
    path, dataset, model = trained
    main([str(path), "--json"])
    results = json.loads(capsys.readouterr().out)
    images = normalize(dataset.test.images, dataset.mean, dataset.std)
    labels = dataset.test.labels
    evaluating = nnx.view(model, use_running_average=True)
    logits = jax.jit(evaluating)(images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    tolerance = TOLERANCES["float32"].relative
    np.testing.assert_allclose(results["test_loss"], losses.mean(), rtol=tolerance)
    assert results["test_accuracy"] == (logits.argmax(-1) == labels).mean()
    assert sum(each["images"] for each in results["classes"]) == len(labels)


def test_results_are_told_by_class(trained, capsys):
    main([str(trained[0])])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("final weights on 360 test images: accuracy 0.")
    assert len([line for line in lines if "│" in line]) == 10


def test_part_that_a_run_has_not_is_refused(trained):
    with pytest.raises(TrainError, match=r"--part \(=val\) must be left out"):
        main([str(trained[0]), "--part=val"])


def test_data_of_other_classes_are_refused(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    domain = json.loads((tmp_path / "run" / "domain.json").read_text())
    domain["class_names"].reverse()
    (tmp_path / "run" / "domain.json").write_text(json.dumps(domain))
    with pytest.raises(TrainError, match="the images have class_names"):
        main([str(tmp_path / "run")])


def test_flags_of_images_are_those_of_the_run_but_for_what_is_given():
    config = Config(on_bad_image="skip", max_image_pixels=7)
    assert EvaluateFlags(run=(Path("run"),)).adapt(config) == config
    given = EvaluateFlags(run=(Path("run"),), on_bad_image="stop", max_image_pixels=9)
    changed = given.adapt(config)
    assert (changed.on_bad_image, changed.max_image_pixels) == ("stop", 9)
    with pytest.raises(TrainError, match=r"--max-image-pixels \(=0\)"):
        EvaluateFlags(run=(Path("run"),), max_image_pixels=0).adapt(config)


@pytest.fixture
def folder_run(tmp_path) -> tuple[Config, Dataset]:
    for split, name in itertools.product(("train", "val"), ("ant", "bee")):
        (tmp_path / "old" / split / name).mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / "old" / split / name / "a.png")
    classes = tmp_path / "old" / "classes.txt"
    classes.write_text("bee\nant\n")
    flags = {"class_map": classes, "crop_pct": 0.9, "interpolation": "lanczos"}
    config = Config(preset="folder", data=tmp_path / "old", **flags)
    return config, presets.load(config)


def test_pictures_are_shown_as_in_the_run_but_for_what_is_given(folder_run):
    config, before = folder_run
    run = (Path("run"),)
    _, same = EvaluateFlags(run=run).load_images(config, before)
    assert same.to_json() == before.to_json()
    flags = EvaluateFlags(run=run, crop_pct=1.0, interpolation="nearest")
    changed, dataset = flags.load_images(config, before)
    assert isinstance(dataset.test, FolderSource)
    for each in (changed, dataset, dataset.test):
        assert (each.crop_pct, each.interpolation) == (1.0, "nearest")
    with pytest.raises(TrainError, match=r"--crop-pct \(=0\.0\) must be above 0"):
        EvaluateFlags(run=run, crop_pct=0.0).load_images(config, before)


def test_images_that_have_a_size_are_not_cut_to_their_middle(trained):
    flags = EvaluateFlags(run=(trained[0],), crop_pct=0.5)
    with pytest.raises(TrainError, match=r"--crop-pct .* with --preset digits, whose"):
        flags.load_images(Config(), trained[1])


def test_pictures_and_their_class_map_may_have_moved(folder_run, tmp_path):
    config, before = folder_run
    moved = (tmp_path / "old").rename(tmp_path / "new")
    flags = {"run": (Path("run"),), "data": moved}
    with pytest.raises(TrainError, match=r"--class-map \(=.*old.*\) cannot be read"):
        EvaluateFlags(**flags).load_images(config, before)
    told = EvaluateFlags(**flags, class_map=moved / "classes.txt")
    _, dataset = told.load_images(config, before)
    assert dataset.identity() == before.identity()
    assert dataset.class_names == ("bee", "ant")


@pytest.mark.parametrize("weights", ["best", "ema"])
def test_weights_that_are_not_there_are_refused(trained, weights):
    with pytest.raises(TrainError, match=f"{weights}.safetensors"):
        main([str(trained[0]), "--weights", weights])


def test_averages_of_a_run_that_has_none_are_not_promised(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["ema_decay"] = None
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainError, match="the run had no --ema-decay"):
        main([str(tmp_path / "run"), "--weights", "ema"])


def test_weights_that_are_cut_are_refused(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "cut")
    weights = (trained[0] / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(TrainError, match=r"model\.safetensors cannot be loaded"):
        main([str(tmp_path / "cut")])


@pytest.mark.parametrize("arguments", [[], ["one", "two"]])
def test_other_than_one_run_is_refused(arguments):
    with pytest.raises(TrainError, match="the directory of one run"):
        main(arguments)
