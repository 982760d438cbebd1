"""What is below a folder: pictures in the order of torchvision, and all else, said."""

import os
from pathlib import Path

import pytest

from train.data.walk import (
    LEADS_BACK,
    LEADS_NOWHERE,
    NAMED,
    NO_FILE,
    NO_PICTURE,
    find_pictures,
    say_left_out,
)
from train.errors import TrainError


def create(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names_of(root: Path, paths: list[Path]) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


def pictures_of(root: Path) -> list[str]:
    return names_of(root, find_pictures(root).pictures)


def left_out_of(root: Path) -> dict[str, list[str]]:
    left_out = find_pictures(root).left_out
    return {reason: names_of(root, paths) for reason, paths in left_out.items()}


def test_pictures_come_by_folder_and_name_as_torchvision_has_them(tmp_path):
    create(
        tmp_path, "b.png", "a/z.jpg", "a/b/1.png", "a/b/10.png", "a-b/x.gif", "B.PNG"
    )
    create(tmp_path, "a/b/2.png", "c.WebP", "z/y/x/w.Tiff")
    # As torchvision's make_dataset does.
    walk = sorted(os.walk(tmp_path, followlinks=True))
    expected = [Path(root) / name for root, _, names in walk for name in sorted(names)]
    assert pictures_of(tmp_path) == names_of(tmp_path, expected)


def test_what_is_hidden_is_not_looked_at(tmp_path):
    create(tmp_path, "a.png", ".b.png", ".thumbnails/a.png", "._a.png")
    assert pictures_of(tmp_path) == ["a.png"]
    assert left_out_of(tmp_path) == {}


def test_links_to_files_and_folders_are_followed(tmp_path):
    create(tmp_path, "elsewhere/deep/a.png", "elsewhere/b.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "folder").symlink_to("../elsewhere")
    (root / "file.png").symlink_to("../elsewhere/b.png")
    found = ["file.png", "folder/b.png", "folder/deep/a.png"]
    assert pictures_of(root) == found


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "/"])
def test_links_back_are_not_followed_but_said(target, tmp_path):
    create(tmp_path, "split/class/a.png", "split/other/b.png", "split/class/sub/c.png")
    root = tmp_path / "split" / "class"
    (root / "sub" / "back").symlink_to(target)
    assert pictures_of(root) == ["a.png", "sub/c.png"]
    assert left_out_of(root) == {LEADS_BACK: ["sub/back"]}


def test_folders_that_link_to_each_other_are_read_once_below_each(tmp_path):
    create(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "to").symlink_to("../b")
    (tmp_path / "b" / "to").symlink_to("../a")
    assert pictures_of(tmp_path / "a") == ["1.png", "to/2.png"]


def test_folder_that_is_a_link_back_has_no_pictures(tmp_path):
    create(tmp_path, "train/dog/a.png")
    (tmp_path / "train" / "cat").symlink_to("..")
    assert find_pictures(tmp_path / "train" / "cat").pictures == []


def test_what_is_no_picture_is_left_out_by_why(tmp_path):
    create(tmp_path, "a.png", "b.txt", "sub/c", "d.png.bak", "png")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe.png")
    assert {
        reason: sorted(names) for reason, names in left_out_of(tmp_path).items()
    } == {
        NO_PICTURE: ["b.txt", "d.png.bak", "png", "sub/c"],
        LEADS_NOWHERE: ["link", "loop"],
        NO_FILE: ["pipe.png"],
    }


def test_broken_link_that_ends_like_a_picture_is_one(tmp_path):
    (tmp_path / "a.PNG").symlink_to("nowhere")
    assert pictures_of(tmp_path) == ["a.PNG"]
    assert left_out_of(tmp_path) == {}


@pytest.mark.parametrize("name", ["none", "file.png"])
def test_folder_that_cannot_be_read_is_named(name, tmp_path):
    create(tmp_path, "file.png")
    with pytest.raises(TrainError, match=f"{tmp_path / name} cannot be read"):
        find_pictures(tmp_path / name)


def test_first_names_are_said_and_how_many_there_are(tmp_path, capsys):
    paths = [tmp_path / f"{letter}.txt" for letter in "hgfedcba"]
    say_left_out(tmp_path, {NO_PICTURE: paths})
    message = capsys.readouterr().err
    assert f"{tmp_path}: 8 file(s) left out, {NO_PICTURE}: " in message
    assert message.endswith(": a.txt, b.txt, c.txt, ...\n")
    assert NAMED == 3


def test_names_do_not_steer_the_terminal(tmp_path, capsys):
    say_left_out(tmp_path, {NO_PICTURE: [tmp_path / "a\x1b[2J\u202e\n"]})
    assert capsys.readouterr().err.endswith(r": a\x1b[2J\u202e\n" + "\n")
