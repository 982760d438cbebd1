"""A class map orders the classes, and is refused where they are others."""

from pathlib import Path

import pytest
from PIL import Image

from train.data import presets
from train.data.class_map import read_class_map
from train.data.dataset import Dataset
from train.errors import TrainError
from train.flags.config import Config

DEFAULT_NUMERICS = True


@pytest.fixture
def animals(tmp_path) -> Path:
    for split in ("train", "val"):
        for count, name in enumerate(("ant", "bee", "caf\xe9"), start=1):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                place = tmp_path / split / name / f"{number}.png"
                Image.new("L", (2, 2)).save(place)
    return tmp_path


def load(animals: Path, content: str | bytes) -> Dataset:
    path = animals / "classes.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return presets.load(Config(preset="folder", data=animals, class_map=path))


@pytest.mark.parametrize(
    "content",
    [
        "bee\ncaf\xe9\nant\n",
        "bee\ncaf\xe9\nant",
        "bee \r\ncaf\xe9\r\nant\r\n",
        "\ufeffbee\ncafe\u0301\nant\n",
    ],
    ids=["plain", "no last end", "of Windows", "other spelling"],
)
def test_labels_have_the_order_of_the_lines(content, animals):
    dataset = load(animals, content)
    assert dataset.class_names == ("bee", "caf\xe9", "ant")
    for source in (dataset.train, dataset.test):
        assert source.labels.tolist() == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("bee\ncaf\xe9\n", " must name the folders of train/, which has folders that "
         "are not in it: 'ant'"),
        ("bee\ncaf\xe9\nant\nfox\ncow", " must name the folders of train/, which has "
         "no folder for 'cow', 'fox'"),
        ("bee\ncaf\xe9\nAnt", "no folder for 'Ant' and has folders that are not in it: "
         "'ant'"),
        ("\n".join("pqrstuvw"), "no folder for 'p', 'q', 'r', 's', 't', 3 more and has "
         "folders"),
        ("bee\n\nant", ": line 2 is empty; give a text file with the name of a class"),
        ("bee\nant\n\n", ": line 3 is empty"),
        ("", ": line 1 is empty"),
        ("bee\nant\nbee\n", ": 'bee' stands on line 1 and on line 3; give each class"),
        ("bee\nant\x1b[2J\n", r"no folder for 'ant\x1b[2J'"),
        (b"bee\n\xff", " cannot be read: it is no UTF-8; give a text file"),
    ],
)  # fmt: skip
def test_map_of_other_classes_is_refused(content, words, animals):
    with pytest.raises(TrainError) as refusal:
        load(animals, content)
    message = str(refusal.value)
    assert message.startswith(f"--class-map (={animals / 'classes.txt'})")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["none.txt", "train"])
def test_map_that_is_no_file_is_refused(name, animals):
    with pytest.raises(TrainError, match=r"--class-map .* cannot be read: \w+"):
        read_class_map(animals / name)


def test_map_is_for_folders():
    with pytest.raises(TrainError, match="--class-map .* left out with --preset dig"):
        Config(class_map=Path("classes.txt"))
