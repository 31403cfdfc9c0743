"""Names of folders, sites and tokens are data: no markup, no escape sequence and no length of theirs has an effect."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

import toys
from folders import CONFIG, family, save
from tangora.cli import app
from tangora.cli.bars import Bars
from tangora.cli.exits import end, print_traceback, quiet_libraries
from tangora.cli.terminal import console, say, show
from tangora.errors import ArgumentError
from tangora.report.wide import Column, Wide
from tangora.support.printable import LONGEST, printable

NAMES = [
    "[red]a[/red]",
    "[/INST]",
    "[v1]",
    ":smile: $x$ <b>&amp;",
    "clear\x1b[2Jscreen",
    "title\x1b]0;mine\x07",
    "csi\x9b31m",
    "back\x08\x08\rover",
    "turned\u202etxt.exe",
    "two\nerror: lines",
]
HARMFUL = [chr(code) for code in (*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2028)]


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def harmless(text: str, name: str) -> None:
    """The name stands there as it is, but for what a terminal would obey, which is spelled out."""
    assert not any(mark in text for mark in HARMFUL)
    assert printable(name) in "".join(text.split("\n"))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param.replace("/", "∕")  # no folder has a slash in its name


def test_fuse_merge_and_inspect(tmp_path, name):
    toys.lora(1).save(tmp_path / name)
    toys.lora(2).save(tmp_path / "other")
    base = save(tmp_path / "base", toys.toy().state_dict(), config={})
    for command in (
        (
            "fuse",
            tmp_path / name,
            tmp_path / "other",
            "--weights=1,2",
            "--no-verify",
            "--out",
            tmp_path / f"{name} fused",
        ),
        (
            "merge",
            tmp_path / name,
            tmp_path / "other",
            "--weights=1,2",
            "--base",
            base,
            "--out",
            tmp_path / f"{name} full",
        ),
        ("inspect", tmp_path / name),
        ("inspect", tmp_path / name, tmp_path / f"{name} nowhere"),
    ):
        done = run(*command)
        assert done.exit_code in (0, 2), done.output
        harmless(done.output, name)


def test_sites_of_a_table_and_json(tmp_path):
    adapter = toys.lora(1)
    site = next(iter(adapter.updates))
    for name in ("csi\x9b31m", "x\x1b[2J", "[/b]"):
        folder = tmp_path / f"a{NAMES.index(name) if name in NAMES else len(name)}"
        replace(adapter, updates={name: adapter.updates[site]}).with_details(initial=None).save(folder)
        harmless(run("inspect", "--sites", folder).output, name)
        done = run("inspect", "--json", folder)
        assert not any(mark in done.stdout for mark in HARMFUL)
        assert json.loads(done.stdout)["folders"][0]["sites"][0]["name"] == name


def test_notes_on_tokens(tmp_path, name):
    base, folders, weights, _ = family(tmp_path, 1)
    save(base, weights, config=CONFIG)
    for folder, tokens in ((base, ["a"]), (folders[0], ["a", name])):
        content = {"model": {"vocab": {token: index for index, token in enumerate(tokens)}}}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    done = run("merge", base, *folders, "-w", "1", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    harmless(done.output, name)


def test_errors_tracebacks_logs_and_bars(name, capsys):
    def fail():
        raise ArgumentError("no such thing", got=name, where=name)

    with pytest.raises(SystemExit):
        end(fail)
    assert not any(mark in capsys.readouterr().err for mark in HARMFUL)
    print_traceback(ValueError(name))
    assert not any(mark in capsys.readouterr().err for mark in HARMFUL)
    drawn = io.StringIO()
    with Bars(Console(file=drawn, force_terminal=True, width=200, color_system=None)) as bars:
        bars.begin(name, 3)
        bars.advance(detail=name)
        bars.note(f"a note: {name}")
        bars.end()
    shown = drawn.getvalue()
    assert f"a note: {printable(name)}" in shown
    assert name not in shown or printable(name) == name


def test_a_log_line_with_an_escape_sequence(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    quiet_libraries(verbose=True)
    logging.getLogger("mine").warning("clear\x1b[2J")
    assert "clear\\x1b[2J" in capsys.readouterr().err


def test_tables(capsys, name):
    shown = Wide(name, Column(name, [name], numbers=False), [Column(name, [name], most=90)])
    printer = console(width=200)
    printer.file = io.StringIO()
    printer.print(shown)
    assert not any(mark in printer.file.getvalue() for mark in HARMFUL)


def test_lengths(capsys):
    show("x" * 10**6)
    say("y" * 10**6)
    error = ArgumentError("too long", got="z" * 10**6)
    captured = capsys.readouterr()
    assert max(map(len, (captured.out, captured.err))) < LONGEST + 100
    assert f"{10**6 - LONGEST} more" in captured.out
    assert len(str(error)) < 600
    assert len(error.got) == 10**6
