"""The help: by subject, with choices and defaults, and with the commands."""

import importlib.util
import re

import pytest

from train.__main__ import main
from train.flags.checks import flag_of
from train.flags.config import Config
from train.flags.help import COMMANDS, SUBJECTS, first_sentence


def help_of(*argv: str, capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert not stop.value.code
    return capsys.readouterr().out


def boxes(printed: str) -> dict[str, str]:
    """Returns the text in each box, by its title, without line breaks."""
    parts = re.split(r"^ (\S.*?) +\n -+ \n", printed, flags=re.MULTILINE)
    texts = [" ".join(part.split()) for part in parts]
    return dict(zip(texts[1::2], texts[2::2], strict=True))


@pytest.mark.parametrize("flag", ["--help", "--help-verbose"])
def test_flags_are_told_by_subject(flag, capsys, monkeypatch):
    told = boxes(help_of(flag, capsys=capsys, monkeypatch=monkeypatch))
    flags = {
        flag_of(name)
        for title, kind in SUBJECTS.items()
        for name in kind.__dataclass_fields__
        if re.search(rf"(^|\s){flag_of(name)}[ ,]", told[f"{title} options"])
    }
    assert flags == {*map(flag_of, Config.__dataclass_fields__)}


def test_choices_and_defaults_are_told(capsys, monkeypatch):
    told = boxes(help_of("-h", capsys=capsys, monkeypatch=monkeypatch))
    assert (
        "--optimizer {adamw,sgd,lamb} adamw, sgd (with momentum) or lamb. (default: "
        "adamw)"
    ) in told["recipe options"]
    assert "--flip FLOAT" in told["augmentation options"]
    assert "from left to right. (default: of --preset)" in told["augmentation options"]
    assert "None" not in str(told)
    assert "(required)" not in str(told)


def test_questions_are_told(capsys, monkeypatch):
    told = boxes(help_of("-h", capsys=capsys, monkeypatch=monkeypatch))["options"]
    for flag in ("-h, --help", "-H, --help-verbose", "--version", "--list-models"):
        assert f"{flag} " in told


def test_verbose_help_tells_what_follows_the_first_sentence(capsys, monkeypatch):
    first = "The alpha of cutmix's Beta distribution; 0 is none."
    rest = "With both, each batch has one of the two."
    brief = boxes(help_of("--help", capsys=capsys, monkeypatch=monkeypatch))
    full = boxes(help_of("-H", capsys=capsys, monkeypatch=monkeypatch))
    title = "augmentation options"
    assert f"{first} (default:" in brief[title]
    assert f"{first} {rest} (default:" in full[title]


def test_commands_are_told_in_a_line_each(capsys, monkeypatch):
    printed = help_of("--help", capsys=capsys, monkeypatch=monkeypatch)
    assert f"[{{{','.join(COMMANDS)}}}]" in printed.splitlines()[0]
    told = re.findall(r"^ +• (\w+) +(\S.*\.) *$", printed, flags=re.MULTILINE)
    assert dict(told) == COMMANDS
    assert all(importlib.util.find_spec(f"train.commands.{name}") for name in COMMANDS)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Keep 0.5 of it. More is slower.", "Keep 0.5 of it."),
        ("A crop (a random one). It is scaled.", "A crop (a random one)."),
        ("The data. digits: of scikit-learn.", "The data."),
        ("One of Chen et al. and others.", "One of Chen et al. and others."),
    ],
)
def test_first_sentence_ends_with_its_full_stop(text, first):
    assert first_sentence(text) == first
