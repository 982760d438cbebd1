"""A directory is there as a whole or not at all, in both packages."""

import os

import pytest

from dynconv_jax.weights import directories
from dynconv_torch.weights import directories as torch_directories

new_directory = pytest.mark.parametrize(
    "new_directory", [directories.new_directory, torch_directories.new_directory]
)


def files_below(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def fill(place, text):
    (place / "inner").mkdir()
    (place / "inner" / "note.txt").write_text(text)


@new_directory
def test_directory_is_not_there_before_it_is_whole(new_directory, tmp_path):
    with new_directory(tmp_path / "notes") as place:
        fill(place, "whole")
        assert not (tmp_path / "notes").exists()
    assert files_below(tmp_path) == {"notes/inner/note.txt": "whole"}
    assert os.listdir(tmp_path) == ["notes"]


@new_directory
def test_old_directory_gives_way_with_all_that_is_in_it(new_directory, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "old.txt").write_text("old")
    with new_directory(tmp_path / "notes") as place:
        fill(place, "new")
    assert files_below(tmp_path) == {"notes/inner/note.txt": "new"}
    assert os.listdir(tmp_path) == ["notes"]


@new_directory
def test_failure_while_it_is_filled_leaves_the_old_one(new_directory, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "old.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "notes") as place:
        fill(place, "new")
        raise KeyboardInterrupt
    assert files_below(tmp_path) == {"notes/old.txt": "old"}
    assert os.listdir(tmp_path) == ["notes"]


@new_directory
def test_failure_to_rename_puts_the_old_one_back(new_directory, tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "old.txt").write_text("old")
    replace = os.replace

    def fail(source, target):
        if os.path.basename(source) == "new":
            raise OSError("no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"), new_directory(tmp_path / "notes") as place:
        fill(place, "new")
    assert files_below(tmp_path) == {"notes/old.txt": "old"}


@new_directory
def test_link_stays_one(new_directory, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with new_directory(tmp_path / "link") as place:
        fill(place, "new")
    assert (tmp_path / "link").is_symlink()
    assert files_below(tmp_path / "target") == {"inner/note.txt": "new"}


@new_directory
def test_missing_parent_is_refused(new_directory, tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="`path` .*none' does not exist; create"),
        new_directory(tmp_path / "none" / "notes"),
    ):
        pass
    assert os.listdir(tmp_path) == []


@new_directory
def test_file_in_its_place_is_refused(new_directory, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with (
        pytest.raises(NotADirectoryError, match="`path` .* is a file"),
        new_directory(tmp_path / "notes"),
    ):
        pass
    assert files_below(tmp_path) == {"notes": "mine"}


@new_directory
def test_permissions_are_those_of_any_new_directory(new_directory, tmp_path):
    with new_directory(tmp_path / "notes"):
        pass
    (tmp_path / "other").mkdir()
    assert (tmp_path / "notes").stat().st_mode == (tmp_path / "other").stat().st_mode
