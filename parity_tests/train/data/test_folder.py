"""Pictures of one's own: folders are classes; all pictures get one form."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from parity_tests.tolerances import ONE_LEVEL
from train.data import folder, presets
from train.data.dataset import named
from train.data.folder import FolderSource
from train.data.pictures import UnreadableImage
from train.errors import TrainError
from train.flags.config import Config
from train.storage.run_directory import RunDirectory
from train.storage.run_files import read_domain

DEFAULT_NUMERICS = True


def refusal_of(root: Path) -> str:
    with pytest.raises(TrainError) as caught:
        folder.load(root)
    return str(caught.value)


def save(path: Path, value: int = 128, size: tuple[int, int] = (6, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


@pytest.fixture
def animals(tmp_path) -> Path:
    for split in ("train", "val"):
        save(tmp_path / split / "dog" / "a.png", 10)
        save(tmp_path / split / "cat" / "b.PNG", 20)
        save(tmp_path / split / "cat" / "a.jpeg", 30)
    return tmp_path


def test_folders_are_classes_in_the_order_of_their_names(animals):
    dataset = presets.load(Config(preset="folder", data=animals, image_size=4))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 0, 1]
    images, unreadable = dataset.train.gather(np.arange(3))
    assert images[:, 0, 0, 0].tolist() == [30, 20, 10]
    assert images.shape[1:] == dataset.image_shape == (4, 4, 3)
    assert unreadable == {}


def test_pictures_cover_the_height_and_the_width_and_are_cut_to_their_middle(animals):
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 3:9] = 200
    Image.fromarray(pixels).save(animals / "val" / "dog" / "a.png")
    config = Config(preset="folder", data=animals, image_size=(4, 6))
    dataset = presets.load(config)
    images, _ = dataset.test.gather(np.array([2]))
    assert dataset.image_shape == (4, 6, 3)
    np.testing.assert_array_equal(images[0], pixels[:, 3:9])


@pytest.fixture
def target(tmp_path) -> Path:
    """Pictures that are brighter in their middle, to be trained and tested on."""
    pixels = np.zeros((12, 16, 3), np.uint8)
    pixels[3:9, 4:12] = 200
    for split in ("train", "val"):
        for number in range(4):
            path = tmp_path / split / "ring" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path


CUT: dict[str, Any] = dict(image_size=(6, 8), crop_pct=0.5, interpolation="nearest")


@pytest.mark.parametrize("val_split", [0.0, 0.25])
def test_pictures_are_cut_in_evaluation_and_whole_in_training(val_split, target):
    config = Config(preset="folder", data=target, val_split=val_split, **CUT)
    dataset = presets.load(config)
    for source in filter(None, (dataset.test, dataset.val)):
        assert np.all(source.image(0) == 200)
    seen = dataset.train.image(0)[..., 0]
    np.testing.assert_array_equal(seen, np.pad(np.full((3, 4), 200), ((1, 2), (2, 2))))


def test_network_sees_other_pictures_as_those_of_the_test(target, tmp_path):
    config = Config(preset="folder", data=target, out=tmp_path / "run", **CUT)
    dataset = presets.load(config)
    with RunDirectory(config, dataset=dataset):
        pass
    domain = read_domain(tmp_path / "run")
    assert (domain.crop_pct, domain.interpolation) == (0.5, "nearest")
    assert isinstance(dataset.test, FolderSource)
    other = FolderSource.unlabelled(dataset.test.paths, domain)
    for field in dataclasses.fields(FolderSource):
        if field.name != "labels":
            own = getattr(dataset.test, field.name)
            assert getattr(other, field.name) == own, field.name


def test_no_picture_is_read_before_it_is_asked_for(animals):
    (animals / "train" / "cat" / "a.jpeg").write_bytes(b"")
    dataset = folder.load(animals)
    assert len(dataset.train) == 3


def test_files_that_are_no_pictures_are_left_out_aloud(animals, capsys):
    (animals / "train" / "dog" / "notes.txt").write_text("mine")
    (animals / "train" / "dog" / ".hidden.png").write_text("")
    assert len(folder.load(animals).train) == 3
    message = capsys.readouterr().err
    assert f"{animals / 'train'}: 1 file(s) left out" in message
    assert message.endswith(": dog/notes.txt\n")
    assert message.count("\n") == 1


def test_pictures_in_folders_of_a_class_belong_to_it(animals):
    save(animals / "train" / "cat" / "wild" / "big" / "a.webp", 40)
    save(animals / "train" / "cat" / "wild" / "b.bmp", 50)
    source = folder.load(animals, (4, 6)).train
    assert source.labels.tolist() == [0, 0, 0, 0, 1]
    images, _ = source.gather(np.arange(5))
    np.testing.assert_allclose(images[:, 0, 0, 0], [30, 20, 50, 40, 10], atol=ONE_LEVEL)


def test_class_may_have_all_its_pictures_in_folders(animals):
    (animals / "val" / "dog" / "a.png").unlink()
    save(animals / "val" / "dog" / "puppies" / "a.png")
    assert folder.load(animals).test.labels.tolist() == [0, 0, 1]


def test_what_lies_beside_the_folders_of_the_classes_is_said(animals, capsys):
    save(animals / "train" / "stray.png")
    (animals / "val" / "fox").symlink_to("nowhere")
    folder.load(animals)
    strays, links = capsys.readouterr().err.splitlines()
    assert strays.endswith(
        f"{animals / 'train'}: 1 file(s) left out, which lie in no folder of a class: "
        "stray.png"
    )
    assert links.endswith("1 file(s) left out, which are links to nowhere: fox")


def test_broken_link_to_a_picture_is_a_picture_that_cannot_be_read(animals):
    (animals / "train" / "dog" / "b.jpg").symlink_to("gone.jpg")
    source = folder.load(animals, (4, 6)).train
    images, unreadable = source.gather(np.arange(4))
    assert [*unreadable] == [3]
    assert "it is a link to gone.jpg, where nothing is" in unreadable[3]
    assert not images[3].any()


def test_picture_above_the_limit_cannot_be_read(animals):
    save(animals / "train" / "cat" / "a.jpeg", size=(30, 20))
    config = Config(preset="folder", data=animals, max_image_pixels=599)
    _, unreadable = presets.load(config).train.gather(np.arange(3))
    assert [*unreadable] == [0]
    assert "600 pixels, more than --max-image-pixels (=599)" in unreadable[0]


# The names of classes

# One text in two spellings of Unicode: as it is usual, and as macOS writes files.
SPELLINGS = [
    ("caf\xe9", "cafe\u0301"),
    ("\xc5ngstr\xf6m", "A\u030angstro\u0308m"),
    ("\uac00", "\u1100\u1161"),
]


@pytest.mark.parametrize(("composed", "decomposed"), SPELLINGS)
def test_classes_are_the_same_however_unicode_spells_them(
    composed, decomposed, tmp_path
):
    for name in (decomposed, "zebra"):
        save(tmp_path / "train" / name / "a.png")
    for name in (composed, "zebra"):
        save(tmp_path / "val" / name / "a.png")
    dataset = folder.load(tmp_path)
    assert dataset.class_names == tuple(sorted([composed, "zebra"]))
    for source in (dataset.train, dataset.test):
        assert isinstance(source, folder.FolderSource)
        shown = [dataset.class_names[label] for label in source.labels]
        assert [named(path.parent.name) for path in source.paths] == shown


@pytest.mark.parametrize(("composed", "decomposed"), SPELLINGS)
def test_two_folders_of_one_name_are_refused(composed, decomposed, animals):
    save(animals / "train" / composed / "a.png")
    save(animals / "train" / decomposed / "a.png")
    message = refusal_of(animals)
    assert f"{animals / 'train'} has two folders of one name" in message
    assert ascii(composed) in message and ascii(decomposed) in message


def test_name_of_a_class_does_not_steer_a_terminal(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split / "a\x1b[2J\n" / "a.png")
        save(tmp_path / split / "b\udcff" / "a.png")
    assert folder.load(tmp_path).class_names == (r"a\x1b[2J\n", r"b\udcff")


def test_name_of_a_class_of_one_split_does_not_steer_a_terminal(animals):
    save(animals / "val" / "cow\x1b[2J" / "a.png")
    assert r"only one of them has 'cow\x1b[2J' (in val/)" in refusal_of(animals)


def test_run_goes_on_though_its_classes_were_spelled_otherwise(tmp_path):
    composed, decomposed = SPELLINGS[0]
    for split in ("train", "val"):
        save(tmp_path / "data" / split / composed / "a.png")
    dataset = folder.load(tmp_path / "data")
    config = Config(preset="folder", data=tmp_path / "data", out=tmp_path / "run")
    with RunDirectory(config, dataset=dataset):
        pass
    domain = tmp_path / "run" / "domain.json"
    told = json.loads(domain.read_text()) | {"class_names": [decomposed]}
    domain.write_text(json.dumps(told))
    with RunDirectory(config, dataset=dataset):
        assert read_domain(tmp_path / "run").class_names == (composed,)


def test_classes_of_one_split_only_are_refused(animals):
    save(animals / "val" / "cow" / "a.png")
    assert "only one of them has 'cow'" in refusal_of(animals)


def test_class_without_pictures_is_refused(animals):
    (animals / "val" / "dog" / "a.png").unlink()
    message = refusal_of(animals)
    assert f"{animals / 'val' / 'dog'} has no images" in message


def test_folder_without_splits_is_refused(tmp_path):
    message = refusal_of(tmp_path)
    assert f"{tmp_path / 'train'} cannot be read" in message
    assert "--data must be the directory above train/ and val/" in message


def test_split_without_classes_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    assert "has no folders" in refusal_of(tmp_path)


def test_unreadable_row_is_blank_and_says_why(animals):
    broken = animals / "train" / "cat" / "b.PNG"
    broken.write_bytes(b"")
    source = folder.load(animals, (4, 6)).train
    images, unreadable = source.gather(np.array([2, 1]))
    assert [*unreadable] == [1]
    assert str(broken) in unreadable[1]
    assert images[0].any() and not images[1].any()
    with pytest.raises(UnreadableImage):
        source.image(1)
