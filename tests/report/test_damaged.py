"""Damaged files of a run: reports say what is wrong in one line; no exception of another library escapes."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from synthetic import TASKS, make_run

from tangora.errors import TangoraError
from tangora.report.data import read_run
from tangora.report.html import page
from tangora.report.summary import Summary
from tangora.report.tables import terminal_tables

VALUES = [5, -1, "x", "", [1], [[]], {}, {"x": 1}, None, True, 1e308, "\ud800", float("nan")]


def nodes(value, path=()):
    """The paths of all values in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from nodes(inner, (*path, key))


def changed(value, path, new):
    """The document with another value at a path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("damaged") / "run", TASKS[:2])


def read(folder):
    """Everything of a report but its drawings."""
    try:
        summary = Summary(read_run(folder))
        terminal_tables(summary)
        page(summary, [])
    except TangoraError:
        return False
    return True


def test_every_json_file_with_any_value_changed(whole):
    draw, read_whole = random.Random(0), 0
    files = [p for p in [*sorted(whole.rglob("*.json")), whole / "recipe.yaml"] if p.parent.name in ("run", "analysis")]
    files += sorted(whole.rglob("training.json"))[:1]
    assert len(files) > 6
    for path in files:
        text = path.read_text()
        document = json.loads(text)
        for where in draw.sample(every := list(nodes(document)), min(len(every), 14)):
            path.write_text(json.dumps(changed(document, where, draw.choice(VALUES))))
            read_whole += read(whole)
        path.write_text(text)
    assert read(whole)
    assert read_whole > 0


@pytest.mark.parametrize("name", ["scores.csv", "candidates.csv"])
def test_every_table_with_any_cell_changed(whole, name):
    draw, path = random.Random(1), whole / name
    text = path.read_text()
    lines = text.splitlines()
    for _ in range(40):
        at = draw.randrange(len(lines))
        cells = lines[at].split(",")
        cells[draw.randrange(len(cells))] = draw.choice(["", "x", "1e999", "[]", "{", '"', "nan", "-1", "5" * 5000])
        path.write_text("\n".join([*lines[:at], ",".join(cells), *lines[at + 1 :]]))
        read(whole)
    path.write_text(text)
    assert read(whole)


def test_a_name_that_leads_elsewhere_is_no_folder(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "tangora.json").write_text("{")
    path = run / "analysis" / "signs.json"
    document = json.loads(path.read_text())
    document["entries"][0]["mode"] = "../.."
    path.write_text(json.dumps(document))
    shutil.rmtree(run / "adapters")
    assert read(run)
