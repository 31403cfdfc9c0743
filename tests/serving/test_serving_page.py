"""The blocks of docs/serving.md run as far as they need no server; the commands that it shows are printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from servable import adapter_of
from typer.testing import CliRunner

from tangora.cli import app
from tangora.serving.exporting import TARGETS
from tangora.serving.gguf_names import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
pytestmark = pytest.mark.skipif(not TEXT, reason="not in a checkout")


def test_the_blocks_run_in_their_order(bases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "decoder").symlink_to(bases["llama"])
    for seed, name in enumerate(("sst2", "trec6", "snips")):
        adapter_of("llama", bases["llama"], tmp_path / "adapters" / name, seed)
    printed = ""
    for language, code in re.findall(r"```(sh|python|console)\n(.*?)```", TEXT, re.DOTALL):
        if language == "python":
            exec(compile(code, str(PAGE), "exec"), {})
            continue
        for line in code.splitlines():
            words = shlex.split(line)
            if language == "console":
                shown = line.removeprefix("$ ").replace("/home/me", str(tmp_path))
                assert shown in printed, f"not printed: {shown}"
            elif words[0] == "tangora":
                done = CliRunner().invoke(app, words[1:], env={"COLUMNS": "1000"})
                assert done.exit_code == 0, (line, done.output, done.exception)
                printed = done.output
            else:
                assert line == "pip install 'tangora[gguf]'"


def test_it_names_all_targets_and_kinds():
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == set(TARGETS)
    listed = TEXT.split("architectures for")[1].split(". For")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(KINDS)
