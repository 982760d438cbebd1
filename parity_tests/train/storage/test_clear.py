"""What a run leaves is removed with all that belongs to it, and nothing else."""

import pytest

from train.storage.clear import clear_run
from train.storage.export_files import EXPORT, FIGURES, MODEL, STABLEHLO
from train.storage.run_files import CHECKPOINTS, CONFIG, SUMMARY, TWIN


def write(path, *names):
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_text("{}")


def left(path) -> set[str]:
    return {str(each.relative_to(path)) for each in path.rglob("*") if each.is_file()}


def test_an_export_and_a_twin_go_with_their_run(tmp_path):
    for run in (tmp_path, tmp_path / TWIN):
        write(run / CHECKPOINTS / "20", "state")
        write(run / EXPORT, MODEL, FIGURES, STABLEHLO, "README.md")
        (run / CONFIG).write_text("{}")
        (run / SUMMARY).write_text("{}")
    clear_run(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_files_of_others_beside_them_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path / TWIN, CONFIG, "notes.txt")
    write(tmp_path / EXPORT, MODEL, STABLEHLO, "notes.txt")
    clear_run(tmp_path)
    assert left(tmp_path) == {"notes.txt", f"{TWIN}/notes.txt", f"{EXPORT}/notes.txt"}


@pytest.mark.parametrize("folder", [EXPORT, TWIN])
def test_a_folder_that_is_neither_stays_as_it_is(folder, tmp_path):
    write(tmp_path / folder, "README.md", SUMMARY)
    clear_run(tmp_path)
    assert left(tmp_path) == {f"{folder}/README.md", f"{folder}/{SUMMARY}"}


@pytest.mark.parametrize(
    ("folder", "name"), [(CHECKPOINTS, "20"), (EXPORT, MODEL), (TWIN, CONFIG)]
)
def test_a_folder_on_another_disk_is_emptied_and_its_link_stays(folder, name, tmp_path):
    write(tmp_path / "disk", name)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / folder).symlink_to(tmp_path / "disk")
    clear_run(tmp_path / "run")
    assert (tmp_path / "run" / folder).is_symlink()
    assert left(tmp_path / "disk") == set()
