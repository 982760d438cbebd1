"""JSON that a hand has edited is refused in words that find the place."""

import os
from typing import Annotated, Any, TypedDict

import pytest
from msgspec import Meta

from train.storage.read_json import Unreadable, parse, read_file


class Shape(TypedDict, total=False):
    sides: list[Annotated[int, Meta(ge=1, le=9)]]
    scale: float
    name: str | None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"sides": [3', "it is no JSON: .*, line 1 column 13"),
        (b'{\n"scale": 1,\n}', "it is no JSON: .*, line [23] column 1"),
        (b'{"name": "\xe4"}', r"byte 10 \(=0xe4\) is no UTF-8"),
        (b"\xff\xfe{\0}\0", r"byte 0 \(=0xff\) is no UTF-8"),
        (b'\xef\xbb\xbf{"scale": 1}', "BOM"),
        (b'{"scale": NaN}', "NaN in it is no finite number"),
        (b'{"scale": -Infinity}', "-Infinity in it is no finite number"),
        (b'{"scale": 1e999}', "1e999 in it is no finite number"),
        (b'{"sides": [1' + b"0" * 5000 + b"]}", "a number in it has 5001 digits"),
        (b'{"sides": [1' + b"0" * 30 + b"]}", r"sides\[0\] \(=1000.*\): .* <= 9"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"scale": 1, "scale": 2}', "'scale' stands in it twice"),
        (b'{"new": [{"a": 1, "a": 1}]}', "'a' stands in it twice"),
        (b'{"name": "a\\u0000b"}', "'name' has a zero character"),
        (b"[]", "expected `object`, got `array`"),
        (b"null", "expected `object`, got `null`"),
        (b'{"sides": [3, 0]}', r"sides\[1\] \(=0\): expected `int` >= 1"),
        (b'{"sides": [3, true]}', r"sides\[1\] \(=True\): expected `int`, got `bool`"),
        (b'{"sides": {"0": 3}}', "sides: expected `array`, got `object`"),
        (b'{"scale": "1.0"}', r"scale \(='1.0'\): expected `float`, got `str`"),
        (b'{"scale": null}', r"scale \(=None\): expected `float`, got `null`"),
        (b'{"name": 3}', r"name \(=3\): expected `str \| null`, got `int`"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(content, words):
    with pytest.raises(Unreadable, match=words) as refusal:
        parse(content, Shape)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


def test_missing_field_is_named():
    with pytest.raises(Unreadable, match="missing required field `step`"):
        parse(b"{}", TypedDict("Row", {"step": int}))


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b'{"sides": [1, 9], "scale": 2}', {"sides": [1, 9], "scale": 2}),
        (b'{"name": null, "later": [1e300]}', {"name": None, "later": [1e300]}),
        ('{"name": "größe\\ud800"}'.encode(), {"name": "größe\ud800"}),
    ],
)
def test_what_is_right_is_returned_and_so_is_what_is_unknown(content, values):
    assert parse(content, Shape) == values


def test_file_that_never_ends_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(Unreadable, match="no regular file"):
            read_file(tmp_path / name)


def test_kinds_are_those_of_msgspec():
    kind: Any = dict[str, Annotated[str, Meta(pattern="^[0-9a-f]+$")]]
    assert parse(b'{"a": "0f"}', kind) == {"a": "0f"}
    with pytest.raises(Unreadable, match="matching regex"):
        parse(b'{"a": "xyz"}', kind)
