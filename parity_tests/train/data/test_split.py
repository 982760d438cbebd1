"""A validation part: of each class its share, by the seed, and apart from the rest."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity_tests.tools.runs import make_dataset
from train.data import presets
from train.data.batches import training_batches
from train.data.dataset import ArraySource, Dataset
from train.data.split import Subset, original_numbers, split_off
from train.errors import TrainError
from train.flags.config import Config

DEFAULT_NUMERICS = True


@pytest.fixture(scope="module")
def whole() -> Dataset:
    """60 images: 30, 20 and 10 of the classes."""
    dataset = make_dataset(classes=3, images=60)
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [30, 20, 10]))
    images, _ = dataset.train.gather(np.arange(60))
    source = ArraySource(images, labels.astype(np.int32))
    return dataclasses.replace(dataset, train=source)


def parts_of(dataset: Dataset) -> tuple[Subset, Subset]:
    assert isinstance(dataset.train, Subset) and isinstance(dataset.val, Subset)
    return dataset.train, dataset.val


def test_each_class_gives_its_share(whole):
    train, val = parts_of(split_off(whole, 0.3, seed=1))
    assert np.bincount(val.labels).tolist() == [9, 6, 3]
    assert np.bincount(train.labels).tolist() == [21, 14, 7]


def test_parts_have_every_image_once(whole):
    train, val = parts_of(split_off(whole, 0.3, seed=1))
    assert sorted([*train.indices, *val.indices]) == list(range(60))


def test_same_seed_gives_the_same_part_and_another_seed_another(whole):
    one, same, other = (
        parts_of(split_off(whole, 0.3, seed))[1].indices for seed in (1, 1, 2)
    )
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()


def test_images_of_a_part_are_those_of_their_numbers(whole):
    _, val = parts_of(split_off(whole, 0.3, seed=1))
    images, unreadable = val.gather(np.array([4, 0]))
    np.testing.assert_array_equal(images, whole.train.gather(val.indices[[4, 0]])[0])
    np.testing.assert_array_equal(val.image(4), images[0])
    assert unreadable == {}
    assert original_numbers(val, np.array([4])) == val.indices[4]
    assert original_numbers(whole.train, np.array([4])) == 4


def test_no_image_for_validation_is_trained_on(whole):
    train, val = parts_of(split_off(whole, 0.3, seed=1))
    batches = training_batches(train, 7, seed=0)
    drawn = np.concatenate([next(batches).images for _ in range(12)])
    batches.close()
    held_out, _ = val.gather(np.arange(len(val)))
    kept = {each.tobytes() for each in held_out}
    assert not kept & {each.tobytes() for each in drawn}


def test_run_is_told_from_one_with_another_part(whole):
    first, same, other, none = (
        each.identity()
        for each in (
            *(split_off(whole, 0.3, seed) for seed in (1, 1, 2)),
            whole,
        )
    )
    assert first == same
    assert first["val_images"] == 18 and first["train_images"] == 42
    assert first["labels_sha256"] != other["labels_sha256"]
    assert "val_images" not in none


def test_class_with_one_image_is_refused():
    dataset = make_dataset(classes=3, images=7)
    labels = np.array([0, 0, 0, 1, 1, 1, 2], np.int32)
    source = ArraySource(np.zeros((7, 5, 6, 3), np.uint8), labels)
    with pytest.raises(TrainError, match="but 'class <2>' has 1 to train on"):
        split_off(dataclasses.replace(dataset, train=source), 0.5, seed=0)


@pytest.mark.parametrize("share", [0.02, 0.98])
def test_share_that_leaves_a_class_without_an_image_is_refused(whole, share):
    message = rf"--val-split \(={share}\) must be from 0\.05 to 0\.95"
    with pytest.raises(TrainError, match=message):
        split_off(whole, share, seed=0)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_share_must_be_one(share):
    with pytest.raises(TrainError, match=r"--val-split .* at least 0 and less than 1"):
        Config(val_split=share)


# Folders


@pytest.fixture
def folder(tmp_path) -> Path:
    """Eight pictures each of two classes, in train/ alone."""
    for name in ("cat", "dog"):
        put(tmp_path / "train" / name, 8)
    return tmp_path


def put(path: Path, count: int) -> None:
    path.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (6, 5), (number, 0, 0)).save(path / f"{number}.png")


def load(folder: Path) -> Dataset:
    return presets.load(
        Config(preset="folder", data=folder, image_size=4, val_split=0.25)
    )


def counts_of(dataset: Dataset) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.part("val")), len(dataset.test)


def test_folder_to_train_on_is_enough(folder):
    dataset = load(folder)
    assert counts_of(dataset) == (12, 4, 0)
    assert not dataset.has("test")


@pytest.mark.parametrize("name", ["val", "test"])
def test_other_folder_is_what_it_is_tested_on(name, folder):
    for each in ("cat", "dog"):
        put(folder / name / each, 3)
    assert counts_of(load(folder)) == (12, 4, 6)


def test_of_two_other_folders_test_is_tested_on_and_val_left_out_aloud(folder, capsys):
    for name, count in (("val", 3), ("test", 2)):
        for each in ("cat", "dog"):
            put(folder / name / each, count)
    assert len(load(folder).test) == 4
    assert f"{folder / 'val'} is left out: with --val-split" in capsys.readouterr().err


def test_folder_to_test_on_has_the_same_classes(folder):
    put(folder / "test" / "cow", 1)
    with pytest.raises(TrainError, match="train/ and test/ must have the same classes"):
        load(folder)
