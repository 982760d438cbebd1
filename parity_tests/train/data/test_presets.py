"""The data sets: what is read is what is there, and what is wrong with it is said."""

import gzip
import io
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.tools.clothes import idx, write_clothes
from train.data import cifar10, fashion, presets
from train.data.array_pickle import read_array_pickle
from train.data.dataset import Dataset, Source
from train.errors import TrainError
from train.flags.config import Config

DEFAULT_NUMERICS = True


def refusal(read: Callable[[], object]) -> str:
    """Returns the line with which something is refused."""
    with pytest.raises(TrainError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    return message


# Digits


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return presets.load(Config(preset="digits"))


def images_of(source: Source) -> np.ndarray:
    return source.gather(np.arange(len(source)))[0]


def test_test_images_are_not_trained_on(digits):
    trained = {image.tobytes() for image in images_of(digits.train)}
    tested = {image.tobytes() for image in images_of(digits.test)}
    assert len(tested) > 0
    assert trained.isdisjoint(tested)


def test_split_is_always_the_same(digits):
    again = presets.load(Config(preset="digits"))
    np.testing.assert_array_equal(images_of(again.test), images_of(digits.test))
    np.testing.assert_array_equal(again.train.labels, digits.train.labels)


def test_split_keeps_the_shares_of_the_classes(digits):
    counts = np.bincount(digits.test.labels) + np.bincount(digits.train.labels)
    shares = np.bincount(digits.test.labels) / counts
    # Whole images: each class may be off by one of them.
    assert np.all(np.abs(shares - 0.2) <= 1 / counts)


def test_digits_are_bytes_from_black_to_white(digits):
    images = images_of(digits.train)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    assert images.shape[1:] == digits.image_shape == (8, 8, 1)


# Normalisation


@pytest.mark.parametrize("flag", ["mean", "std"])
def test_normalisation_that_is_given_is_that_of_every_channel(flag, tmp_path):
    path = write_archive(tmp_path / "cifar.tar.gz", binary_files())
    usual = presets.load(Config(preset="cifar10", data=path))
    for given, expected in (((0.5,), (0.5,) * 3), ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3))):
        flags: dict[str, Any] = {flag: given}
        dataset = presets.load(Config(preset="cifar10", data=path, **flags))
        told = usual.to_json() | {flag: [*expected]}
        assert dataset.to_json() == told


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("digits", "--mean (=(0.1, 0.2)) must be one number of --preset digits"),
        (
            "cifar10",
            "--mean (=(0.1, 0.2)) must be one number, or 3, one for each channel of "
            "--preset cifar10",
        ),
    ],
)
def test_normalisation_of_other_channels_is_refused(preset, words, tmp_path):
    path = write_archive(tmp_path / "cifar.tar.gz", binary_files())
    data = None if preset == "digits" else path
    config = Config(preset=preset, data=data, mean=(0.1, 0.2))
    assert refusal(lambda: presets.load(config)) == words


# Fashion-MNIST

SPLITS = {"train": 6, "t10k": 4}


@pytest.fixture
def clothes(tmp_path) -> Path:
    """A directory with the four files, two of them compressed."""
    write_clothes(tmp_path, SPLITS)
    return tmp_path


def test_idx_files_are_read_plain_and_compressed(clothes):
    dataset = presets.load(Config(preset="fashion", data=clothes))
    for source, (split, count) in zip(
        (dataset.train, dataset.test), SPLITS.items(), strict=True
    ):
        content = (clothes / f"{split}-images-idx3-ubyte").read_bytes()
        images, unreadable = source.gather(np.arange(count))
        assert images.tobytes() == content[16:]
        assert images.shape == (count, *dataset.image_shape)
        assert unreadable == {}
        assert source.labels.tolist() == list(range(count))


TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        (TRAIN_IMAGES, None, r"does not exist"),
        (TRAIN_IMAGES, lambda content: content[:-1], r"4719 bytes .* says 4720"),
        (TRAIN_IMAGES, lambda content: content + b"?", r"4721 bytes .* says 4720"),
        (TRAIN_IMAGES, lambda content: content[:7], r"is damaged"),
        (TRAIN_IMAGES, lambda content: b"", r"is no idx file"),
        (TRAIN_IMAGES, lambda content: b"PNG" + content, r"is no idx file"),
        (TRAIN_LABELS, lambda content: content[:-9], r"cannot be read"),
        (TRAIN_LABELS, lambda content: b"no gzip", r"cannot be read"),
        (
            TRAIN_LABELS,
            lambda content: gzip.compress(idx(np.arange(5))),
            r"\(6, 28, 28\) and 5 labels",
        ),
        (
            TRAIN_LABELS,
            lambda content: gzip.compress(idx(np.arange(5, 11))),
            r"labels go up to 10",
        ),
    ],
)
def test_damaged_idx_file_is_refused_with_its_name(clothes, name, change, fault):
    path = clothes / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    message = refusal(lambda: fashion.load(clothes))
    assert re.search(fault, message)
    assert str(clothes) in message
    assert "--data must be the folder of the four idx files" in message


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "FOLDER", tmp_path)
    message = refusal(lambda: presets.load(Config(preset="fashion")))
    assert "`apt-get install dataset-fashion-mnist`" in message


# CIFAR-10

BATCHES = (*cifar10.TRAIN, *cifar10.TEST)


def cifar_planes(name: str) -> tuple[np.ndarray, list[int]]:
    """Returns two images as the original has them, plane after plane, and labels."""
    start = BATCHES.index(name)
    planes = np.arange(2 * cifar10.PIXELS).reshape(2, -1) % 251 + start
    return planes.astype(np.uint8), [start, 9 - start]


def binary_files() -> dict[str, bytes]:
    files = {}
    for name in BATCHES:
        planes, labels = cifar_planes(name)
        records = np.hstack([np.array(labels, np.uint8)[:, None], planes])
        files[f"{name}.bin"] = records.tobytes()
    return files


def python_files() -> dict[str, bytes]:
    """Returns pickles in the words of the old NumPy that wrote the original."""
    files = {}
    for name in BATCHES:
        planes, labels = cifar_planes(name)
        values = {b"batch_label": name.encode(), b"labels": labels, b"data": planes}
        content = pickle.dumps(values, protocol=3)
        files[name] = content.replace(b"numpy._core.", b"numpy.core.")
    return files


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    kind: Any = f"w:{path.suffix[1:]}"
    with tarfile.open(path, kind) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("files", [binary_files, python_files])
@pytest.mark.parametrize("is_packed", [True, False])
def test_every_form_of_cifar10_has_the_same_images(files, is_packed, tmp_path):
    if is_packed:
        path = write_archive(tmp_path / "cifar.tar.gz", files())
    else:
        path = tmp_path
        for name, content in files().items():
            (path / name).write_bytes(content)
    dataset = presets.load(Config(preset="cifar10", data=path))
    assert (len(dataset.train), len(dataset.test)) == (10, 2)
    for source, names in ((dataset.train, cifar10.TRAIN), (dataset.test, cifar10.TEST)):
        for index in range(len(source)):
            planes, labels = cifar_planes(names[index // 2])
            image = source.image(index)
            assert image.shape == dataset.image_shape == (32, 32, 3)
            assert image.transpose(2, 0, 1).tobytes() == planes[index % 2].tobytes()
            assert source.labels[index] == labels[index % 2]


@pytest.mark.parametrize(
    "content", [b"", b"\0" * cifar10.PIXELS, b"\x0a" + b"\0" * cifar10.PIXELS]
)
def test_damaged_binary_file_is_named(content, tmp_path):
    files = binary_files() | {"data_batch_3.bin": content}
    path = write_archive(tmp_path / "cifar.tar.gz", files)
    message = refusal(lambda: cifar10.load(path))
    assert str(path) in message
    assert "data_batch_3 in it is damaged" in message


def test_damaged_pickle_is_named(tmp_path):
    files = python_files()
    files["test_batch"] = files["test_batch"][:-100]
    path = write_archive(tmp_path / "cifar.tar.gz", files)
    assert "test_batch in it is damaged" in refusal(lambda: cifar10.load(path))


PLANES = np.zeros((2, cifar10.PIXELS), np.uint8)


def nested(depth: int) -> list:
    """Returns a list that is small in a pickle and enormous as an array."""
    value: list = [0] * 10
    for _ in range(depth):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("data", "labels", "words"),
    [
        (PLANES, [1, 10], "labels[1]: expected int <= 9"),
        (PLANES, [-1, 1], "labels[0]: expected int >= 0"),
        (PLANES, [1, True], "labels[1]: expected int, got bool"),
        (PLANES, [1, 1.0], "labels[1]: expected int, got float"),
        (PLANES, [1, 10**30], "labels[1]: expected int <= 9"),
        (PLANES, [[1], [2]], "labels[0]: expected int, got array"),
        (PLANES, nested(12), "labels[0]: expected int, got array"),
        (PLANES, None, "labels: expected array, got null"),
        (PLANES, "ab", "labels: expected array, got str"),
        (PLANES, np.array([3, 11], np.uint8), "labels[1] (=11) must be less than 10"),
        (PLANES, [1], "labels are of shape (1,), but there are 2 images"),
        (PLANES[:0], [], "it has no images"),
        (PLANES[:, :9], [1, 2], "data is uint8 (2, 9), but must be an array uint8"),
        (PLANES[0], [1], "data is uint8 (3072,)"),
        (PLANES.T, [1, 2], "data is uint8 (3072, 2)"),
        (PLANES.tolist(), [1, 2], "data is a list"),
        (None, [1, 2], "data is a NoneType"),
        (PLANES.astype(np.float32), [1, 2], "an array of f4, not of bytes"),
    ],
)
def test_content_of_a_pickle_is_held_against_what_it_must_be(
    data, labels, words, tmp_path
):
    for name, content in python_files().items():
        (tmp_path / name).write_bytes(content)
    content = pickle.dumps({b"data": data, b"labels": labels}, protocol=4)
    (tmp_path / "data_batch_2").write_bytes(content)
    message = refusal(lambda: cifar10.load(tmp_path))
    assert f"{tmp_path}): data_batch_2 in it is damaged or not of CIFAR-10" in message
    assert words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0" * cifar10.PIXELS, "it has 3072 bytes, but must have 3073 for each"),
        (b"\x0a" + b"\0" * cifar10.PIXELS, "labels[0] (=10) must be less than 10"),
        (b"", "it has no images"),
    ],
)
def test_content_of_records_is_held_against_what_it_must_be(content, words, tmp_path):
    files = binary_files() | {"data_batch_3.bin": content}
    path = write_archive(tmp_path / "cifar.tar.gz", files)
    assert words in refusal(lambda: cifar10.load(path))


def test_missing_batch_is_named(tmp_path):
    files = binary_files()
    del files["data_batch_4.bin"]
    path = write_archive(tmp_path / "cifar.tar.gz", files)
    assert "has no data_batch_4" in refusal(lambda: cifar10.load(path))


def test_pickle_of_bytes_for_an_array_is_named(tmp_path):
    content = pickle.dumps({b"data": b"abc", b"labels": [0]}, protocol=2)
    files = python_files() | {"test_batch": content}
    path = write_archive(tmp_path / "cifar.tar.gz", files)
    assert "test_batch in it is damaged" in refusal(lambda: cifar10.load(path))


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_cut_archive_is_refused(kind, share, tmp_path):
    path = write_archive(tmp_path / f"cifar.tar.{kind}", binary_files())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert f"{path} cannot be read as a tar archive" in refusal(
        lambda: cifar10.load(path)
    )


def test_damaged_archive_is_refused(tmp_path):
    path = write_archive(tmp_path / "cifar.tar.xz", binary_files())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert f"{path} cannot be read as a tar archive" in refusal(
        lambda: cifar10.load(path)
    )


def test_missing_archive_is_refused(tmp_path):
    path = tmp_path / "none.tar.gz"
    assert f"{path} cannot be read" in refusal(lambda: cifar10.load(path))


def test_file_too_large_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "LARGEST", 1000)
    path = write_archive(tmp_path / "cifar.tar.gz", binary_files())
    assert "must have at most 1000" in refusal(lambda: cifar10.load(path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../outside.bin", tarfile.REGTYPE),
        ("a/../../outside.bin", tarfile.REGTYPE),
        ("/outside.bin", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("link", tarfile.LNKTYPE),
        ("device", tarfile.CHRTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ],
)
def test_archive_that_reaches_out_of_its_folder_is_refused(name, kind, tmp_path):
    path = tmp_path / "inside" / "cifar.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "/etc/passwd"
        archive.addfile(member)
    message = refusal(lambda: cifar10.load(path))
    assert repr(name) in message
    assert "not to be trusted" in message
    assert [*tmp_path.rglob("*")] == [path.parent, path]


class Attack:
    """A pickle that runs a command when it is read by a trusting reader."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickle_that_runs_something_is_refused_and_runs_nothing(tmp_path):
    made = tmp_path / "made"
    content = pickle.dumps({b"data": Attack(made), b"labels": [0]})
    with pytest.raises(ValueError, match="which is no array"):
        read_array_pickle(content)
    assert not made.exists()
    pickle.loads(content)
    assert made.exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"data": np.arange(3.0)}, "an array of f8"),
        ({"data": np.array([None])}, "an array of O8"),
        ([1, 2], "holds a list"),
    ],
)
def test_pickle_of_something_else_is_refused(value, words):
    with pytest.raises(ValueError, match=words):
        read_array_pickle(pickle.dumps(value, protocol=4))
