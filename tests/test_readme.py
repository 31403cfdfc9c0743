"""What the README shows runs: its Python blocks, its shell lines, and the generated table of methods."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def adapters(tmp_path, monkeypatch, tiny_llama, sum_data):
    """The folder in which a reader of the README would be: three adapters of one base, a decoder, and two tasks."""
    for name, folder in {"decoder": tiny_llama, "sums": sum_data, "slots": sum_data}.items():
        (tmp_path / name).symlink_to(folder)
    for seed, name in enumerate(("sst2", "trec6", "snips")):
        torch.manual_seed(seed)
        base = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["0", "2"]))
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / "adapters" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_something_to_run():
    assert len(blocks("python")) >= 2
    assert len(blocks("sh")) >= 1


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(adapters, code):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=adapters)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()])
def test_shell_lines_run(adapters, line):
    command, *arguments = shlex.split(line, comments=True)
    assert command == "tangora"
    done = subprocess.run([sys.executable, "-m", "tangora", *arguments], capture_output=True, text=True, cwd=adapters)
    assert done.returncode == 0, done.stderr


def test_the_table_of_methods_is_the_registrys():
    from tangora.methods import table

    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- methods: .*? -->\n(.*?)<!-- /methods -->", page, re.DOTALL)
    assert found, "the markers are there"
    assert found.group(1).strip() == table().strip(), "write it again: python -m tangora.methods docs/methods.md"


def test_links_inside_the_repository_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_map_names_files_that_exist():
    listing = re.search(r"```\nsrc/tangora/\n(.*?)```", README, re.DOTALL)
    assert listing
    names = re.findall(r"([a-z_]+(?:\.py|/))", listing.group(1))
    for name in names:
        assert (ROOT / "src" / "tangora" / name).exists(), name


@pytest.mark.parametrize("document", [README, *[p.read_text() for p in (ROOT / "docs").glob("*.md")]])
def test_recipes_that_are_named_exist(document):
    from tangora.config.recipe import bundled_recipes

    for name in re.findall(r"tangora (?:run|finetune) ([a-z0-9-]+)(?![\w./-])", document):
        assert name in bundled_recipes(), name
