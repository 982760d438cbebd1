"""The command line as a whole: what it says is one line, whatever it was given."""

import json
import shutil

import pytest

from parity_tests.tools.runs import write_run, write_trained
from train.__main__ import main
from train.storage.run_files import CONFIG, DOMAIN, METRICS, SUMMARY

DEFAULT_NUMERICS = True

ODD = "a\x1b[2J\nb\u202ec\udcff"
SHOWN = r"a\x1b[2J\nb\u202ec\udcff"


@pytest.mark.parametrize(
    "argv",
    [
        ["compare", f"/nowhere/{ODD}"],
        ["compare", f"/nowhere/{ODD}", f"/nowhere/{ODD}"],
        ["evaluate", f"/nowhere/{ODD}"],
        ["predict", f"/nowhere/{ODD}", "image.png"],
        [f"--out=/dev/null/{ODD}", "--steps=3"],
        ["--preset=folder", f"--data=/nowhere/{ODD}"],
        [f"--coordinator={ODD}"],
        [f"--model={ODD}"],
    ],
)
def test_names_that_a_terminal_would_obey_are_shown_in_one_line(argv, capsys):
    assert main(argv) != 0
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert SHOWN in message or SHOWN.replace("\\", "\\\\") in message
    assert "\x1b" not in message


def test_runs_of_odd_names_are_compared(tmp_path, capsys):
    names = ["$x$", "_hidden", ":cat:", "[red]", "猫", r"$\frac{", ODD]
    for seed, name in enumerate(names):
        write_run(tmp_path / name, seed=seed)
    picture = tmp_path / "curves.png"
    argv = [str(tmp_path / name) for name in names]
    assert main(["compare", *argv, f"--out={picture}"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for name in names[:-1] + [SHOWN]:
        assert name in captured.out
    assert picture.exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    write_trained(path, conv="static")
    return path


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("compare", name) for name in (CONFIG, METRICS, SUMMARY)),
        *(("evaluate", name) for name in (CONFIG, METRICS, DOMAIN)),
        *(("predict", name) for name in (CONFIG, METRICS, DOMAIN)),
        *(("train", name) for name in (CONFIG, SUMMARY)),
    ],
)
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"step": NaN}', b"\xff", b'[{"step": 1}]']
)
def test_file_that_a_hand_has_edited_is_refused(
    command, name, content, trained, tmp_path, capsys
):
    run = shutil.copytree(trained, tmp_path / "run")
    flags = json.loads((run / CONFIG).read_text())
    (run / name).write_bytes(content + b"\n")
    argv = {
        "compare": ["compare", str(run), f"--out={tmp_path / 'curves.png'}"],
        "evaluate": ["evaluate", str(run)],
        "predict": ["predict", str(run), "image.png"],
        "train": [
            *(f"--out={run}", f"--steps={flags['steps']}", "--conv=static"),
            *("--model-options", "width_mult=0.25"),
        ],
    }
    assert main(argv[command]) == 2
    message = capsys.readouterr().err
    assert name in message
    assert message.count("\n") == 1
