"""Pictures of one's own: folders are classes; all pictures get one form."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.data import folder, presets
from train.data.pictures import UnreadableImage, read_picture
from train.errors import TrainError
from train.flags.config import Config

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
    assert message.count("\n") == 1


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


# Pictures


def test_picture_is_scaled_to_cover_and_cut_to_its_middle(tmp_path):
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(
        read_picture(tmp_path / "wide.png", (4, 4, 3)), pixels[:, 4:8]
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_picture_of_any_mode_gets_the_channels_asked_for(mode, tmp_path):
    path = tmp_path / "picture.png"
    Image.new(mode, (5, 5), 0).save(path)
    for channels in (1, 3):
        picture = read_picture(path, (4, 4, channels))
        assert picture.shape == (4, 4, channels)
        assert picture.dtype == np.uint8


def test_picture_of_16_bits_keeps_its_shades(tmp_path):
    shades = np.linspace(0, 2**16 - 1, 16, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    picture = read_picture(tmp_path / "deep.png", (4, 4, 1))
    np.testing.assert_array_equal(picture[..., 0], shades >> 8)


def test_transparent_picture_is_laid_upon_black(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(path)
    assert not read_picture(path, (4, 4, 3)).any()


def test_picture_is_turned_as_its_camera_says(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    turned = read_picture(tmp_path / "photo.png", (8, 8, 1))
    np.testing.assert_array_equal(turned[..., 0], pixels[::-1])


@pytest.mark.parametrize(
    "name", ["cut.jpg", "cut.png", "text.png", "empty.jpg", "none"]
)
def test_broken_picture_is_named_in_one_line(name, tmp_path):
    path = tmp_path / name
    if name.startswith("cut"):
        noise = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:-200])
    elif name != "none":
        path.write_text("no picture" if name.startswith("text") else "")
    with pytest.raises(UnreadableImage) as caught:
        read_picture(path, (8, 8, 3))
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read as an image: ")
    assert "\n" not in message


def test_unreadable_row_is_blank_and_says_why(animals):
    broken = animals / "train" / "cat" / "b.PNG"
    broken.write_bytes(b"")
    source = folder.load(animals, 4).train
    images, unreadable = source.gather(np.array([2, 1]))
    assert [*unreadable] == [1]
    assert str(broken) in unreadable[1]
    assert images[0].any() and not images[1].any()
    with pytest.raises(UnreadableImage):
        source.image(1)
