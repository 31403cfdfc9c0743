"""YAML 1.2: what is read as what, what is written so that every reader agrees, and what is refused."""

from __future__ import annotations

import pytest
import yaml

from tangora.support.yaml import dump, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("[yes, on, off, y, N]", ["yes", "on", "off", "y", "N"]),
        ("[true, False, ~, null]", [True, False, None, None]),
        ("[1e-4, 5.e3, .5, 1E5, e4, 2e, .inf]", [1e-4, 5e3, 0.5, 1e5, "e4", "2e", float("inf")]),
        ("[010, 0o14, 0x1F, '12']", [10, 12, 31, "12"]),
        ("12:30", "12:30"),
        ("%YAML 1.1\n---\n[no, 010]", [False, 8]),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("", None),
    ],
)
def test_scalars_of_yaml_1_2(text, value):
    assert parse(text) == value


def bomb() -> str:
    """A few hundred characters that stand for ten to the power of nine values."""
    lines = ["a: &a [1,1,1,1,1,1,1,1,1,1]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "while parsing"),
        ("a: 1\na: 2", 'duplicate key "a"'),
        ("x: !!python/object/apply:os.system [y]", "could not determine a constructor"),
        ("a: \0", "special characters"),
        ("x" * 250_001, "more than 250,000 characters"),
        ("[" * 500, "too deep"),
        ("&a [*a]", "more than 100,000 values"),
        (bomb(), "more than 100,000 values"),
    ],
    ids=["cut", "twice", "code", "zero", "long", "deep", "itself", "bomb"],
)
def test_what_is_refused_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


VALUES = {
    "texts": [
        "no",
        "Yes",
        "1e3",
        "0o14",
        "2020-01-01",
        "a: b",
        "# x",
        "é",
        "",
        "~",
        "null",
        "x\ny",
        " lead",
        "a" * 300,
    ],
    "numbers": [1, 1e-5, 1e20, float("inf"), True, None],
    "nested": {"b": [{"c": []}], "a": {}},
}


def test_what_is_written_is_read_again():
    text = dump(VALUES)
    assert parse(text) == VALUES
    assert list(parse(text)) == list(VALUES)


def test_older_readers_see_the_same_texts():
    texts = ["no", "Yes", "on", "OFF", "a: b", "", "null", "plain"]
    assert yaml.safe_load(dump(texts)) == texts
