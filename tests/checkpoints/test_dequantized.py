"""Quantized bases: recognized by name, dequantized as bitsandbytes does it, with the loss stated."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import folders
import tangora
from tangora.adapters.adapter import Adapter
from tangora.adapters.metadata import BaseInfo, Metadata
from tangora.checkpoints.dequantized import dequantize
from tangora.errors import FileError, FusionError
from tangora.storage.quantization import twin_of
from tangora.updates.update import LowRank
from workshop import done

SITE = "model.layers.0.mlp.up_proj"
OTHER = "model.layers.0.mlp.down_proj"


def base(folder: Path, name: str = "base", dtype: torch.dtype = torch.bfloat16) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint whose two layers have 64 times as many entries as a block."""
    shapes = {**folders.SHAPES, f"{SITE}.weight": (96, 64), f"{OTHER}.weight": (64, 96)}
    weights = folders.tensors(dtype=dtype, shapes=shapes)
    return folders.save(folder / name, weights), weights


def quantized(folder: Path, weights: dict[str, torch.Tensor], settings: dict, parts: dict[str, dict]) -> Path:
    stored = {name: value for name, value in weights.items() if name not in {f"{site}.weight" for site in parts}}
    for site, tensors in parts.items():
        stored |= {f"{site}.{name}": tensor for name, tensor in tensors.items()}
    config = {**folders.CONFIG, "quantization_config": {"quant_method": "bitsandbytes", **settings}}
    return folders.save(folder / "small", stored, config=config)


def four(weight: torch.Tensor, kind: str, nested: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """By bitsandbytes: the tensors that transformers saves, and the values that its layers compute with."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    settings = {"quant_type": kind, "compress_statistics": nested}
    packed, state = functional.quantize_4bit(weight.float(), blocksize=64, **settings)
    tensors = {"weight": packed, **{f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}}
    # Of one row: bitsandbytes' kernels for AVX-512 take the scales of other blocks if rows do not end with a block.
    row = functional.dequantize_4bit(*functional.quantize_4bit(weight.float().view(1, -1), blocksize=64, **settings))
    return tensors, row.view(weight.shape).float()


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("kind", ["fp4", "nf4"])
def test_four_bits_are_what_bitsandbytes_makes_of_them(tmp_path, kind, nested):
    _, weights = base(tmp_path)
    made = {site: four(weights[f"{site}.weight"], kind, nested) for site in (SITE, OTHER)}
    small = quantized(tmp_path, weights, {"load_in_4bit": True}, {site: t for site, (t, _) in made.items()})
    (tmp_path / "out").mkdir()
    loss = dequantize(small, tmp_path / "out")
    found = folders.read(tmp_path / "out")
    assert found.keys() == weights.keys()
    square = lost = 0.0
    for name, value in found.items():
        expected = made[name.removesuffix(".weight")][1] if name.removesuffix(".weight") in made else weights[name]
        assert value.dtype == torch.bfloat16
        # A product of two float32 numbers is rounded alike, but a sum with a fused multiplication may not be.
        torch.testing.assert_close(value.float(), expected.to(torch.bfloat16).float(), rtol=2**-7, atol=0)
        if name.removesuffix(".weight") in made:
            square += float(expected.double().square().sum())
            lost += float((expected.double() - weights[name].double()).square().sum())
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    assert loss.layers == 2
    # Normal numbers are not uniform within a step, least of all in the outer ones: an estimate.
    assert loss.quantization == pytest.approx((lost / square) ** 0.5, rel=0.25)
    assert 2**-11 < loss.rounding < 2**-8  # bfloat16


def eight(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scales = weight.float().abs().amax(1)
    codes = (weight.float() / scales[:, None] * 127).round().to(torch.int8)
    return {"weight": codes, "SCB": scales, "weight_format": torch.zeros((), dtype=torch.uint8)}


def test_eight_bits(tmp_path):
    _, weights = base(tmp_path)
    made = {site: eight(weights[f"{site}.weight"]) for site in (SITE, OTHER)}
    small = quantized(tmp_path, weights, {"load_in_8bit": True}, made)
    (tmp_path / "out").mkdir()
    loss = dequantize(small, tmp_path / "out")
    found = folders.read(tmp_path / "out")
    square = lost = 0.0
    for site, tensors in made.items():
        value = tensors["weight"].float() * (tensors["SCB"] / 127)[:, None]
        torch.testing.assert_close(found[f"{site}.weight"], value.to(torch.bfloat16), rtol=0, atol=0)
        square += float(value.double().square().sum())
        lost += float((value.double() - weights[f"{site}.weight"].double()).square().sum())
    # Means of 12,000 squares of nearly uniform numbers.
    assert loss.quantization == pytest.approx((lost / square) ** 0.5, rel=0.05)
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    theirs = functional.int8_vectorwise_dequant(made[SITE]["weight"], made[SITE]["SCB"])
    torch.testing.assert_close(found[f"{SITE}.weight"].float(), theirs.to(torch.bfloat16).float(), rtol=2**-7, atol=0)


def test_the_example_of_the_page(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "large-models.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\$ tangora (merge .*--dequantize.*)$", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    _, weights = base(tmp_path)
    made = {site: four(weights[f"{site}.weight"], "nf4", nested=True) for site in (SITE, OTHER)}
    small = quantized(tmp_path, weights, {"load_in_4bit": True}, {site: t for site, (t, _) in made.items()})
    small.rename("base-4bit")
    adapter(tmp_path / "adapter", "base-4bit")
    printed = done(*line.split()).output
    assert re.search(r"base-4bit was dequantized: 2 weights; .*estimated.*; rounding them to bfloat16 changes", printed)
    found, update = folders.read(tmp_path / "merged"), tangora.load("adapter").updates[SITE].dense()
    value = made[SITE][1].to(torch.bfloat16).float()
    # The value may be rounded otherwise, as above; the update is as large as the values.
    last = 2**-7 * float(value.abs().max())
    torch.testing.assert_close(found[f"{SITE}.weight"].float(), value + update, rtol=2**-7, atol=last)


def adapter(folder: Path, model: str | None) -> Path:
    g = torch.Generator().manual_seed(1)
    update = LowRank(torch.randn(96, 2, generator=g), torch.randn(2, 64, generator=g))
    Adapter({SITE: update}, Metadata(base=BaseInfo(model=model))).save(folder)
    return folder


def test_a_merge_into_a_quantized_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, weights = base(tmp_path)
    quantized(tmp_path, weights, {"load_in_8bit": True}, {SITE: eight(weights[f"{SITE}.weight"])})
    adapter(tmp_path / "a", "small")
    with pytest.raises(FileError, match=r"is quantized.*full precision.*--dequantize"):
        tangora.fuse_checkpoints("small", ["a"], "out")
    printed = done("merge", "a", "--base", "small", "--dequantize", "--out", "out").output
    assert "small was dequantized: 1 weights" in printed
    assert "quantization itself lost about 0.0" in printed
    (tmp_path / "full").mkdir()
    dequantize(tmp_path / "small", tmp_path / "full")
    tangora.fuse_checkpoints("full", ["a"], "expected", weights=1.0)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "expected/model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base", "expected", "full", "out", "small"]


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has imported torch")
def test_a_merge_that_is_killed_leaves_nothing_behind_once_it_is_given_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, weights = base(tmp_path)
    quantized(tmp_path, weights, {"load_in_8bit": True}, {SITE: eight(weights[f"{SITE}.weight"])})
    adapter(tmp_path / "a", "small")
    line = ["merge", "a", "--base", "small", "--dequantize", "--out", "out"]
    before = sorted(path.name for path in tmp_path.iterdir())
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(tangora.checkpoints, "fuse_checkpoints", lambda *_, **__: os.kill(os.getpid(), 9))
        done(*line)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    left = [path for path in tmp_path.iterdir() if path.name not in before]
    assert len(left) == 1
    assert list(left[0].rglob("*.safetensors"))  # the base in full precision
    done(*line)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "out"])
    record = (tmp_path / "out/tangora_fusion.json").read_text()
    assert ".tmp-" not in record
    assert json.loads(record)["base"]["name"] == "small"


def test_what_is_not_dequantized(tmp_path):
    folder, weights = base(tmp_path)
    (tmp_path / "out").mkdir()

    def refused(words: str, checkpoint: Path) -> None:
        with pytest.raises(FileError, match=words):
            dequantize(checkpoint, tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())

    refused("is not quantized", folder)
    gptq = {"quant_method": "gptq", "bits": 4}
    packed = {"qweight": torch.zeros(4, 6, dtype=torch.int32)}
    refused("only the 4 and 8 bits of bitsandbytes", quantized(tmp_path / "g", weights, gptq, {SITE: packed}))
    tiled = {**eight(weights[f"{SITE}.weight"]), "weight_format": torch.ones((), dtype=torch.uint8)}
    refused("not stored by rows", quantized(tmp_path / "t", weights, {"load_in_8bit": True}, {SITE: tiled}))
    whole = eight(weights[f"{SITE}.weight"])
    spoilt = quantized(tmp_path / "s", weights, {"load_in_8bit": True}, {SITE: whole})
    tensors = load_file(spoilt / "model.safetensors")
    del tensors[f"{SITE}.weight"]
    save_file(tensors, spoilt / "model.safetensors", metadata={"format": "pt"})
    refused("a quantized weight is missing", spoilt)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("org/Llama-2-7B-GPTQ", "org/Llama-2-7B"),
        ("org/Mistral-7B-v0.1-AWQ", "org/Mistral-7B-v0.1"),
        ("org/model-4bit-128g", "org/model"),
        ("unsloth/Qwen2.5-7B-unsloth-bnb-4bit", "unsloth/Qwen2.5-7B"),
        ("unsloth/llama-3-8b-bnb-4bit", "unsloth/llama-3-8b"),
        *((name, None) for name in ("gpt2", "google/flan-t5-base", "org/fp16-model", "meta-llama/Llama-3.1-8B")),
    ],
)
def test_names_of_quantized_models(name, twin):
    assert twin_of(name) == twin


def test_an_adapter_of_a_quantized_model_is_merged_into_its_twin(tmp_path):
    folder, _ = base(tmp_path, "llama-3-8b")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_name_or_path": "unsloth/llama-3-8b"}))
    made = adapter(tmp_path / "a", "unsloth/llama-3-8b-bnb-4bit")
    merged = tangora.fuse_checkpoints(folder, [made], tmp_path / "out", weights=1.0)
    assert any("trained beside the quantized weights of unsloth/llama-3-8b-bnb-4bit" in note for note in merged.notes)
    other = adapter(tmp_path / "b", "org/other-GPTQ")
    with pytest.raises(FusionError, match=r"is quantized, by its name.*Give org/other in full precision"):
        tangora.fuse_checkpoints(folder, [other], tmp_path / "none")
