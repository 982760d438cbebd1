"""Flags from a file: as if they were typed before the others, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from parity_tests.tools.runs import write_run
from train.__main__ import main
from train.errors import TrainError
from train.flags.config import Config, parse
from train.storage.config_file import with_file
from train.storage.run_files import CONFIG

DEFAULT_NUMERICS = True

RECIPE = """
preset = "folder"
data = "pictures"
epochs = 3
learning-rate = 1
nesterov = true
optimizer = "sgd"
flip = 0.25
conv_options = ["bias=True", "groups=2"]
"""
TOLD: dict[str, Any] = dict(
    preset="folder",
    data=Path("pictures"),
    epochs=3,
    learning_rate=1.0,
    nesterov=True,
    optimizer="sgd",
    flip=0.25,
    conv_options=("bias=True", "groups=2"),
)


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def config_of(*argv: str) -> Config:
    return parse(with_file(argv))


@pytest.mark.parametrize("form", [["--config={}"], ["--config", "{}"]])
def test_flags_of_the_file_stand_for_those_that_are_not_typed(form, recipe):
    argv = [each.format(recipe) for each in form]
    assert config_of(*argv) == Config(**TOLD, config=recipe)


def test_flags_that_are_typed_win(recipe):
    typed = ["--flip=0.5", "--no-nesterov", "--conv-options", "groups=4"]
    expected = TOLD | {"flip": 0.5, "nesterov": False, "conv_options": ("groups=4",)}
    config = config_of(*typed, f"--config={recipe}")
    assert config == Config(**expected, config=recipe)


def test_length_that_is_typed_wins_however_it_is_told(recipe):
    config = config_of(f"--config={recipe}", "--steps=9")
    assert (config.steps, config.epochs) == (9, None)


def test_command_line_without_a_file_is_left_alone():
    assert with_file(["--seed", "1", "--flip=0.5"]) == ["--seed", "1", "--flip=0.5"]
    assert with_file([]) == []  # the first command of the README


@pytest.mark.parametrize("place", ["", CONFIG])
def test_flags_of_a_run_are_taken_but_for_its_place(place, tmp_path):
    run = tmp_path / "run"
    before = write_run(run, overwrite=True, seed=7, ema_decay=0.5, warmup_steps=3)
    config = config_of(f"--config={run / place}")
    place_of_its_own = {"out": None, "overwrite": False, "config": str(run / place)}
    assert config.to_json() == before.to_json() | place_of_its_own


def test_steps_of_a_run_of_epochs_follow_from_the_images_again(tmp_path):
    flags = Config(epochs=3, batch_size=4).for_images(12).to_json() | {"run_id": "a"}
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(flags))
    config = config_of(f"--config={path}")
    assert (config.steps, config.epochs) == (None, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("lr = 0.1", "'lr' cannot be in it: '--lr' is no flag of this program; did you "
         "mean --learning-rate?"),
        ("batch_siz = 3", "did you mean --batch-size?"),
        ('steps = "many"', "steps (='many'): expected `int | null`, got `str`"),
        ("steps = 1.5", "steps (=1.5): expected `int | null`, got `float`"),
        ("optimizer = 3", "optimizer (=3): expected `str`, got `int`"),
        ('optimizer = "adam"', "optimizer (='adam'): invalid enum value 'adam'"),
        ("data = 3", "data (=3): expected `str`, got `int`"),
        ("[model]\nname = 3", "model (={'name': 3}): expected `str`"),
        ("steps = 1\nepochs = 2", "epochs (=2) must be left out with steps (=1)"),
        ("batch_size = 4\nbatch-size = 5", "'batch-size' stands in it twice"),
        ("steps = ", "cannot be read: Invalid value (at "),
        ("\udcff", "cannot be read: it is no UTF-8"),
    ],
)  # fmt: skip
def test_what_is_no_flag_is_refused_with_file_and_key(content, words, tmp_path, capsys):
    path = tmp_path / "recipe.toml"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main([f"--config={path}", f"--out={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"train: error: --config (={path})")
    assert words in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.toml", "cannot be read: it does not exist"),
        ("recipe.yaml", r"must be a \.toml, a \.json or the directory of a run"),
        ("broken.json", "cannot be read: it is no JSON"),
    ],
)
def test_file_that_cannot_be_read_is_refused(name, words, tmp_path):
    for there in ("recipe.yaml", "broken.json"):
        (tmp_path / there).write_text("{")
    with pytest.raises(TrainError, match=words):
        with_file([f"--config={tmp_path / name}"])


def test_flag_without_a_file_is_refused(capsys):
    assert main(["--config"]) == 2
    assert "--config needs a value" in capsys.readouterr().err
