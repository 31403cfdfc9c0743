"""The blocks of docs/other-adapters.md run, in order, in a folder like the reader's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import torch
from safetensors.torch import load_file

import kinds
from tangora.adapters.formats.tuners.known import KNOWN, REFUSED
from tangora.cli import commands as cli

PAGE = (Path(__file__).parents[3] / "docs" / "other-adapters.md").read_text(encoding="utf-8")


def test_the_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kinds.model_of("llama").save_pretrained("base")
    folders = [Path("loha"), Path("lora")]
    kinds.write(folders[0], "LOHA", kinds.model_of("llama"), target_modules=["q_proj", "down_proj"], r=2)
    kinds.write(folders[1], "LORA", kinds.model_of("llama"), 2, target_modules=["q_proj", "v_proj"], r=2)
    (console,), (code,) = (
        re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) for language in ("console", "python")
    )
    for line in console.splitlines():
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "tangora"
        cli.app(arguments, standalone_mode=False)
    names: dict = {}
    exec(code, names)
    shown = capsys.readouterr().out
    assert "a LoHa adapter" in shown
    assert "relative error of rank 4" in shown

    before = dict(kinds.model_of("llama").double().named_parameters())
    parts = [kinds.merged(folder, kinds.model_of("llama")) for folder in folders]
    wanted = {n: w + 0.7 * (parts[0][n] - w) + 0.3 * (parts[1][n] - w) for n, w in before.items()}
    for name, tensor in load_file("merged/model.safetensors").items():
        torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-6, atol=1e-6)
    for name, weight in kinds.merged(Path("fused"), kinds.model_of("llama")).items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-5, atol=1e-5)


def test_the_page_lists_the_kinds():
    table = PAGE.partition("| kinds | |")[2].partition("\n\n")[0]
    for title in (
        *(tuner.title for tuner in KNOWN.values()),
        *(title for kind, (title, _) in REFUSED.items() if kind != "BONE"),
    ):
        assert title in table, title
