"""The page of promises names tests that exist, and bounds that are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tangora import errors
from tangora.storage import header
from tangora.support import json_text, printable, yaml
from tangora.tasks import arrays, images

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/promises.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 30
    for path, name in named:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not name or f"\ndef {name}(" in text, (path, name)


def test_every_command_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in re.findall(r"`make (\w+)`", PAGE))


def test_the_figures_of_kills_are_the_measured_ones():
    measured = json.loads((ROOT / "benchmarks/results/kills.json").read_text(encoding="utf-8"))
    trials = [one[kind] for one in measured["commands"].values() for kind in ("kills", "kills_by_clock", "two_at_once")]
    pairs = sum(one["two_at_once"]["trials"] for one in measured["commands"].values())
    failed = sum(trial["failed"] for trial in trials)
    text = f"{measured['kills']} kills of {len(measured['commands'])} commands and {pairs} pairs: {failed} failed"
    assert text in PAGE


def test_the_bounds_are_those_of_the_code():
    table = PAGE.split("## Bounds")[1].replace(",", "")
    numbers = {int(number) for number in re.findall(r"\b\d+\b", table)}
    ours = {json_text.DEEPEST, yaml._LARGEST, yaml._MOST, header._MOST, header._DIMENSIONS, arrays._LONGEST}
    ours |= {images._MOST_PIXELS, images._NARROWEST, errors._MOST, errors._LONGEST, printable.LONGEST}
    ours.add(header._LONGEST // 10**6)
    assert numbers == ours
    assert arrays.SHARE == 0.5
