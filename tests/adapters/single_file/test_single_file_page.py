"""The blocks of the page on LoRAs in one file run, on two files of kohya's names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import torch
from layouts import SDXL, delta, kohya
from safetensors.torch import load_file

from tangora.cli import commands as cli

PAGE = (Path(__file__).parents[3] / "docs" / "single-file-loras.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_the_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, two = (kohya(tmp_path / f"{name}.safetensors", SDXL, i) for i, name in enumerate(("style", "character")))
    assert len(LINES) == 3
    for line in LINES:
        dollar, command, *arguments = shlex.split(line)
        assert (dollar, command) == ("$", "tangora")
        cli.app(arguments, standalone_mode=False)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    assert "Stable Diffusion XL [0.8, 0.6]" in capsys.readouterr().out
    both, again = load_file("both.safetensors"), load_file("again.safetensors")
    assert both.keys() == again.keys()
    for name, (site, _, _) in SDXL.items():
        assert all(torch.equal(both[f"{name}.{end}"], again[f"{name}.{end}"]) for end in ("lora_up.weight", "alpha"))
        a, b = (both[f"{name}.lora_{part}.weight"] for part in ("down", "up"))
        found = delta(a, b, float(both[f"{name}.alpha"]) / len(a))
        expected = 0.8 * one[site] + 0.6 * two[site]
        assert float((found - expected).norm()) <= 16 * 2.0**-24 * float(expected.norm())


def test_the_page_names_the_formats_that_there_are():
    from tangora.support.seams import FORMATS

    named = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert named == {"comfy", "diffusers", "kohya", "mlx", "peft"} <= set(FORMATS)
