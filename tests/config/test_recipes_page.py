"""The blocks of docs/recipes.md: commands print what the page says, recipes are valid, or faulty as it says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from tangora.cli.commands import main
from tangora.config.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
WRONG = re.search(r"`wrong\.yaml`:\n\n```yaml\n(.*?)```", PAGE, re.DOTALL)


def commands():
    """Each line of a console with what the page prints below it."""
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        for part in block.split("$ ")[1:]:
            line, _, printed = part.partition("\n")
            yield line, printed


def test_there_is_something_to_run():
    assert len(list(commands())) >= 4
    assert WRONG


@pytest.mark.parametrize(("line", "printed"), list(commands()))
def test_commands_print_what_the_page_says(line, printed, tmp_path, monkeypatch, capsys):
    assert WRONG
    (tmp_path / "wrong.yaml").write_text(WRONG.group(1))
    mail = [f"letter {n},{('refund', 'delivery', 'thanks')[n % 3]}" for n in range(30)]
    (tmp_path / "mail.csv").write_text("\n".join(["review,verdict", *mail]))
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert end.value.code == (2 if "wrong.yaml" in line else 0)
    shown = err if end.value.code else out
    said = printed.removesuffix("...\n")
    assert shown.startswith(said) if said != printed else shown == said


def test_the_task_of_one_file_is_valid(tmp_path):
    block = re.search(r"## One file.*?```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert block
    raw = {"name": "mail", "base": {"family": "text-classification", "model": "bert"}, **yaml.safe_load(block.group(1))}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
    task = load_recipe(tmp_path / "r.yaml").tasks[0]
    assert (task.source.sep, task.source.encoding, task.test_fraction) == (";", "cp1252", 0.2)
