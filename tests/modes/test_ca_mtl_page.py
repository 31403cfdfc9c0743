"""The blocks of docs/systems/ca-mtl.md run in a folder like the reader's, and its keys are those of the mode."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import tiny
from tangora.config.mode import ModeConfig
from tangora.support.seams import MODES

PAGE = (Path(__file__).parents[2] / "docs/systems/ca-mtl.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path, monkeypatch, tiny_bert, capsys):
    tiny.desk(tmp_path)
    (tmp_path / "bert").symlink_to(tiny_bert)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/systems/ca-mtl.md", "exec"), {})
    assert re.search(r"topic [\d.]+", capsys.readouterr().out)
    assert (tmp_path / "ca-mtl/stars/modules.safetensors").is_file()


def test_the_recipe_is_valid():
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    for mode in yaml.safe_load(text)["modes"].values():
        MODES.get("ca-mtl").settings(
            **{
                k: v
                for k, v in ModeConfig(**mode).model_dump().items()
                if k not in ("train", "lora", "experts", "same_base")
            }
        )


def test_every_key_is_described():
    for key in set(MODES.get("ca-mtl").settings.model_fields) - {"training"}:
        assert f"`{key}`" in PAGE, key
