"""A seal says what a folder is, and what must be in it."""

import json
from pathlib import Path

import pytest

from train.storage.seal import SEAL, Sealed, find_damage, seal

IS = Sealed(20, "one")


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "data").write_bytes(b"all of it")
    (tmp_path / "part" / "more").write_bytes(b"and more")
    seal(tmp_path, IS)
    return tmp_path


def edit(folder: Path, change) -> None:
    values = json.loads((folder / SEAL).read_text())
    (folder / SEAL).write_text(json.dumps(change(values)))


def test_whole_folder_has_no_damage_however_often_it_is_sealed(folder):
    assert find_damage(folder, IS) is None
    seal(folder, IS)
    assert find_damage(folder, IS) is None


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Sealed(40, "one"), "is not of that step, but of step 20"),
        (Sealed(20, "other"), "is of another run"),
        (Sealed(20), "is of another run"),
    ],
)
def test_seal_of_another_step_or_run_is_not_believed(folder, wanted, words):
    assert words in (find_damage(folder, wanted) or "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda seal: {}, "missing required field"),
        (lambda seal: [], "got `array`"),
        (lambda seal: seal["files"], "missing required field"),
        (lambda seal: seal | {"files": {}}, "names no file"),
        (lambda seal: seal | {"files": []}, "files: expected `object`"),
        (lambda seal: seal | {"files": {"data": 3}}, "expected `str`"),
        (lambda seal: seal | {"files": {"data": "x"}}, "matching regex"),
        (lambda seal: seal | {"step": "20"}, "step (='20'): expected `int`"),
        (lambda seal: seal | {"step": 20.5}, "step (=20.5): expected `int`"),
        (lambda seal: seal | {"run": 3}, "run (=3)"),
        (lambda seal: {**seal, "files": {"/dev/zero": "0" * 64}}, "outside of it"),
        (lambda seal: {**seal, "files": {"../x": "0" * 64}}, "outside of it"),
        (lambda seal: {**seal, "files": {"part": "0" * 64}}, "lacks the file part"),
        (
            lambda seal: {**seal, "files": {"data": seal["files"]["data"]}},
            "does not name, part/more",
        ),
    ],
)
def test_seal_that_was_edited_is_none(folder, change, words):
    edit(folder, change)
    assert words in (find_damage(folder, IS) or "")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b'{"a": NaN}'])
def test_seal_that_cannot_be_read_is_none(folder, content):
    (folder / SEAL).write_bytes(content)
    assert "a seal that cannot be read" in (find_damage(folder, IS) or "")


def test_seal_of_an_earlier_version_is_read_for_a_run_of_that_version_only(folder):
    edit(folder, lambda seal: seal["files"])
    assert find_damage(folder, Sealed(20)) is None
    assert find_damage(folder, IS) is not None
    (folder / "data").write_bytes(b"all of")
    assert "cut or changed, data" in (find_damage(folder, Sealed(20)) or "")


@pytest.mark.parametrize("content", [{}, {"data": 3}, {"data": "0"}])
def test_empty_or_edited_seal_of_an_earlier_version_is_none(folder, content):
    edit(folder, lambda _: content)
    assert find_damage(folder, Sealed(20)) is not None
