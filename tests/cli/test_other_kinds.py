"""Commands with a recipe read adapters of kinds that need their base: it is the recipe's."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import BertModel
from typer.testing import CliRunner

import tangora
from tangora.cli import app
from tangora.errors import ModelError
from workshop import done


@pytest.fixture(scope="module")
def loha(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoHa of the recipe's base, which does not name it."""
    config = peft.LoHaConfig(r=2, alpha=4, target_modules=["query"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(BertModel.from_pretrained(workshop / "encoder"), config)
        for name, parameter in model.named_parameters():
            if "hada" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    model.peft_config["default"].base_model_name_or_path = None
    folder = tmp_path_factory.mktemp("loha") / "expert"
    model.save_pretrained(folder)
    return folder


def test_statistics(loha: Path, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    out = tmp_path / "s.safetensors"
    more = ["--also", loha, "--kind", "gram", "--rows", 4, "--out", out]
    done("statistics", "recipe.yaml", loha, "--task", "one", *more)
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["adapter"] == tangora.load(loha, "encoder").fingerprint
    assert record["rows"] == 4


def test_distill_refuses_it_for_what_it_is(loha: Path, workshop: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(workshop)
    arguments = ["distill", "recipe.yaml", str(loha), "--rows", "4", "--out", str(tmp_path / "student")]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, ModelError)
    assert "tangent" in str(error)
