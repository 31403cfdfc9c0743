"""The blocks of docs/tune.md run, in order, in a folder like the reader's."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import yaml

import tangora
from loras import peft_lora
from tangora.config.mode import ModeConfig
from workshop import done

PAGE = (Path(__file__).parents[2] / "docs" / "tune.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^\$ (tangora .*)$", PAGE, re.MULTILINE)]


def test_the_journey_from_three_adapters_to_one(journey, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(journey, tmp_path / "folder")
    monkeypatch.chdir(folder)
    peft_lora(folder / "llama", folder / "plain" / "one", seed=5, name="elsewhere")
    preview, fuse, both = (done(*command).output for command in COMMANDS)
    assert re.search(r"sums +40 +20 +20", preview)
    assert "what the fused adapter keeps" in fuse
    assert "search: grid (one λ for all: a task has 20 choosing rows, fewer than 32)" in fuse
    assert tangora.load("fused").metadata.fused.selection["search"] == "grid"
    assert "search: grid (it was asked for)" in both
    assert {path.name for path in folder.iterdir()} >= {"fused", "both"}
    assert not list(folder.glob(".*")), "nothing is left of the work"
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/tune.md", "exec"), {})
    assert "grid" in capsys.readouterr().out
    assert (folder / "tuned" / "adapter_model.safetensors").is_file()


def test_the_mode_of_the_page_is_valid():
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    mode = ModeConfig(**yaml.safe_load(text)["modes"]["mine"])
    assert set(mode.experts) == {"sums", "caps"}
