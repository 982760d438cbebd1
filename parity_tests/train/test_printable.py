"""Names that a terminal would obey are shown to it instead."""

import pytest

from train.printable import printable


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),  # the escape of terminals with eight bits
        ("two\nlines\r\ttab", r"two\nlines\r\ttab"),
        ("\x00\x7f\x85", r"\x00\x7f\x85"),
        ("gpj.\u202egnp", r"gpj.\u202egnp"),
        ("\u2066\u2069\u200f\u061c", r"\u2066\u2069\u200f\u061c"),
        ("\u2028\u2029\ufeff\u00ad", r"\u2028\u2029\ufeff\xad"),
        ("\udcff.png", r"\udcff.png"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text", ["Größe", "猫 犬", "नमस्ते", "שלום", "👩\u200d🔬", r"a\nb", "it's", ""]
)
def test_what_is_seen_stays(text):
    assert printable(text) == text
