"""`tangora fuse --auto`: what is recommended for adapters alone, and for adapters with rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

import tangora
import toys
from tangora.cli import app, auto
from tangora.cli.polish import PolishOptions
from tangora.config.settings import FinetuneConfig, LoraSettings, TrainingSettings
from tangora.errors import ArgumentError
from tangora.modes.finetuning import finetune


@pytest.fixture(scope="module")
def experts(text_base, text_task, tmp_path_factory) -> list[Path]:
    home, made = tmp_path_factory.mktemp("experts"), []
    training = TrainingSettings(steps=4, batch_size=8, checkpoint_every=None, learning_rate=1e-2)
    for seed, name in enumerate(("one", "two")):
        config = FinetuneConfig(
            mode="lora", lora=LoraSettings(r=2, target_modules=["query"]), training=training, seed=seed
        )
        finetune(text_base, replace(text_task, name=name), config, out=home / name)
        made.append(home / name)
    return made


@pytest.fixture
def rows(text_data, tmp_path) -> list[str]:
    file = tmp_path / "bare.parquet"
    parquet.write_table(parquet.read_table(text_data / "train.parquet").select(["text"]).slice(0, 12), file)
    return [f"--data=one={file}", f"--data=two={file}"]


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_adapters_alone_are_fused_as_recommended(experts, tmp_path):
    done = run("fuse", *experts, "--auto", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "chosen by --auto" in " ".join(done.output.split())
    asked = tangora.fuse(experts, auto.METHOD, auto.WEIGHT)
    made = tangora.load(tmp_path / "out")
    assert made.metadata.fused.method == auto.METHOD
    assert made.updates.keys() == asked.updates.keys()
    for site, update in made.updates.items():
        assert update.dense().allclose(asked.updates[site].dense(), atol=1e-6)


def test_adapters_that_generate_are_fused_as_recommended_for_them(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        toys.lora(seed).save(folder)

    def typed(*types):
        for folder, kind in zip(folders, types, strict=True):
            file = folder / "adapter_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "task_type": kind}))
        done = run("fuse", *folders, "--auto", "--json", "--out", tmp_path / "-".join(map(str, types)))
        assert done.exit_code == 0, done.output
        document = json.loads(done.stdout)
        return document["method"], document["weights"][0]

    assert typed("CAUSAL_LM", "CAUSAL_LM") == auto.GENERATIVE
    assert typed("SEQ_2_SEQ_LM", "SEQ_2_SEQ_LM") == auto.GENERATIVE
    assert typed("CAUSAL_LM", None) == (auto.METHOD, auto.WEIGHT)
    assert typed("FEATURE_EXTRACTION", "FEATURE_EXTRACTION") == (auto.METHOD, auto.WEIGHT)


def test_with_rows_they_are_polished_at_twice_their_rank(experts, rows, tmp_path, monkeypatch):
    monkeypatch.setitem(auto.POLISH, "steps", 2)
    done = run("fuse", *experts, "--auto", *rows, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["settings"]["rank"] == 4
    assert document["settings"]["steps"] == 2
    assert document["settings"]["temperature"] == auto.POLISH["temperature"]
    assert document["rows"] == {"one": 12, "two": 12}
    done = run("fuse", *experts, "--auto", *rows, "--rank", 3, "--dry-run", "--out", tmp_path / "dry", "--json")
    assert json.loads(done.stdout)["settings"]["rank"] == 3
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "ties"), "--auto chooses method, weights and parameters"),
        (("--weights", "0.2"), "--auto chooses method, weights and parameters"),
        (("--set", "density=0.2"), "--auto chooses method, weights and parameters"),
    ],
)
def test_what_auto_chooses_is_not_given(experts, tmp_path, arguments, said):
    done = run("fuse", *experts, "--auto", *arguments, "--out", tmp_path / "out")
    assert isinstance(done.exception, ArgumentError)
    assert said in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dtype", "bfloat16"),
        ("--uniform",),
        ("--no-verify",),
        ("--rank", "auto"),
        ("--full",),
        ("--device", "cuda"),
        ("--shard-size", "1GB"),
        ("--threads", "2"),
    ],
)
def test_what_a_polish_does_not_have(experts, rows, tmp_path, arguments):
    done = run("fuse", *experts, "--auto", *rows, *arguments, "--out", tmp_path / "out")
    assert isinstance(done.exception, ArgumentError)
    assert arguments[0] in str(done.exception)


def test_of_one_adapter_nothing_is_chosen(experts, tmp_path):
    done = run("fuse", experts[0], "--auto", "--out", tmp_path / "out")
    assert isinstance(done.exception, ArgumentError)
    assert "there is nothing to choose" in str(done.exception)


def test_the_base_may_be_named(experts, rows, tiny_bert, tmp_path):
    arguments = ("--auto", *rows, "--base", tiny_bert, "--dry-run", "--json", "--out", tmp_path / "out")
    done = run("fuse", *experts, *arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["dry_run"]


def test_without_rows_there_is_nothing_to_plan(experts, tmp_path):
    done = run("fuse", *experts, "--auto", "--dry-run", "--out", tmp_path / "out")
    assert isinstance(done.exception, ArgumentError)
    assert "leave --dry-run out" in str(done.exception).lower()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "r"), [("OFT", 0), ("VERA", 256)])
def test_what_other_kinds_call_r_is_no_rank(experts, rows, tmp_path, kind, r):
    """OFT's r counts blocks, and 0 would be no rank at all; VeRA's is 256, for two vectors that are trained."""
    copies = []
    for expert in experts:
        shutil.copytree(expert, copy := tmp_path / kind / expert.name)
        file = copy / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "peft_type": kind, "r": r}))
        copies.append(copy)
    planned = ("--auto", *rows, "--dry-run", "--json", "--out", tmp_path / "out")
    done = run("fuse", *copies, *planned)
    assert json.loads(done.stdout)["settings"]["rank"] == PolishOptions.rank
    done = run("fuse", copies[0], experts[1], *planned)
    assert json.loads(done.stdout)["settings"]["rank"] == 4


def test_single_files_are_not_told_to_give_rows(tmp_path):
    import torch
    from safetensors.torch import save_file

    files = []
    for seed in (0, 1):
        draw = torch.Generator().manual_seed(seed)
        site = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
        tensors = {
            f"{site}.lora_down.weight": torch.randn(2, 8, generator=draw),
            f"{site}.lora_up.weight": torch.randn(8, 2, generator=draw),
            f"{site}.alpha": torch.tensor(2.0),
        }
        save_file(tensors, file := tmp_path / f"{seed}.safetensors")
        files.append(file)
    done = run("fuse", *files, "--auto", "--out", tmp_path / "out.safetensors")
    assert done.exit_code == 0, done.output
    assert "chosen by --auto" in done.output
    assert "--data" not in done.output
