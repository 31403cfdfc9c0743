"""Folders of mlx-lm: read with its scale, which is not divided by the rank, and written for mlx-lm."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tangora
from tangora.adapters.adapter import Adapter, load
from tangora.adapters.contract import format_of
from tangora.cli import commands as cli
from tangora.errors import AdapterError
from tangora.updates.task_vector import LowRank

SITES = {"model.layers.0.self_attn.q_proj": (6, 8), "model.layers.1.mlp.down_proj": (8, 12)}


def mlx(folder, seed, rank=3, scale=20.0, **changes):
    """Write a folder as mlx-lm does; return site -> scale · (lora_a lora_b)ᵀ in float64."""
    generator, tensors, added = torch.Generator().manual_seed(seed), {}, {}
    for site, (rows, columns) in SITES.items():
        a, b = torch.randn(columns, rank, generator=generator), torch.randn(rank, rows, generator=generator)
        tensors |= {f"{site}.lora_a": a, f"{site}.lora_b": b}
        added[site] = scale * (a.double() @ b.double()).T
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.down_proj"]}
    config = {"fine_tune_type": "lora", "model": "mlx-community/Qwen3-0.6B-4bit", "num_layers": 16} | changes
    (folder / "adapter_config.json").write_text(json.dumps({"lora_parameters": parameters} | config))
    return added


def close(updates, expected):
    assert updates.keys() == expected.keys()
    for site, value in expected.items():
        torch.testing.assert_close(updates[site].dense().double(), value, rtol=0, atol=float(value.abs().max()) * 1e-6)


def test_two_are_fused_into_a_peft_adapter_and_back_into_one_of_mlx(tmp_path, capsys):
    one, two = mlx(tmp_path / "a", 1), mlx(tmp_path / "b", 2, rank=2, scale=10.0)
    assert format_of(tmp_path / "a").name == "mlx"
    close(load(tmp_path / "a").updates, one)
    expected = {site: 0.5 * one[site] - 0.25 * two[site] for site in one}
    arguments = ["fuse", str(tmp_path / "a"), str(tmp_path / "b"), "--weights", "0.5,-0.25", "--out"]
    cli.app([*arguments, str(tmp_path / "peft")], standalone_mode=False)
    assert "stock peft loads 2 sites" in capsys.readouterr().out
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    close(load(tmp_path / "peft").updates, expected)
    cli.app([*arguments, str(tmp_path / "mlx"), "--format", "mlx"], standalone_mode=False)
    assert "the file, read again, has 2 sites" in capsys.readouterr().out
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    assert config["num_layers"] == -1
    assert config["lora_parameters"]["keys"] == ["mlp.down_proj", "self_attn.q_proj"]
    held, scale = load_file(tmp_path / "mlx" / "adapters.safetensors"), config["lora_parameters"]["scale"]
    for site, value in expected.items():  # as mlx-lm computes it: x + scale · (x a) b
        a, b = held[f"{site}.lora_a"].double(), held[f"{site}.lora_b"].double()
        assert a.shape[1] == b.shape[0] == config["lora_parameters"]["rank"] == 5
        torch.testing.assert_close(scale * (a @ b).T, value, rtol=0, atol=float(value.abs().max()) * 1e-6)


def test_ranks_and_scales_that_differ_become_one(tmp_path):
    updates = {
        "model.layers.0.a": LowRank(torch.randn(3, 1), torch.randn(1, 4), 0.5),
        "model.layers.0.b": LowRank(torch.randn(3, 2), torch.randn(2, 4), 0.3),
    }
    Adapter(updates).save(tmp_path / "a", format="mlx")
    close(load(tmp_path / "a").updates, {site: update.to(torch.float64).dense() for site, update in updates.items()})
    assert not (tmp_path / "a" / "adapter_model.safetensors").exists()


def test_an_embedding_is_transposed(tmp_path):
    added = mlx(tmp_path / "a", 1)
    tensors = load_file(tmp_path / "a" / "adapters.safetensors")
    tensors |= {"model.embed_tokens.lora_a": torch.randn(20, 3), "model.embed_tokens.lora_b": torch.randn(3, 8)}
    save_file(tensors, tmp_path / "a" / "adapters.safetensors")
    adapter = load(tmp_path / "a")
    assert adapter.embeddings == {"model.embed_tokens"}
    update = adapter.updates["model.embed_tokens"]
    assert update.shape == (8, 20)
    torch.testing.assert_close(
        update.dense().T, 20.0 * tensors["model.embed_tokens.lora_a"] @ tensors["model.embed_tokens.lora_b"]
    )
    tangora.fuse([adapter], weights=[0.5]).save(tmp_path / "b")  # and peft stores it as an embedding
    assert any("lora_embedding_A" in key for key in load_file(tmp_path / "b" / "adapter_model.safetensors"))
    assert added


BAD = {
    "another type": ({"fine_tune_type": "dora"}, {}, "fine_tune_type must be lora"),
    "experts": ({}, {"lora_a": torch.ones(2, 3, 8), "lora_b": torch.ones(2, 6, 3)}, "the factors of experts"),
    "no half": ({}, {"lora_a": torch.ones(8, 3)}, "lora_b is missing"),
    "no parameters": ({"lora_parameters": None}, {}, "lora_parameters are missing"),
    "no scale": ({"lora_parameters": {"rank": 3}}, {}, "scale must be a finite number"),
    "other tensors": ({}, {"m": torch.ones(3)}, "a tensor that is no factor"),
    "ranks": ({"lora_parameters": {"rank": 4, "scale": 1.0}}, {}, "the shapes do not fit"),
    "with alpha": ({"lora_parameters": {"rank": 3, "scale": 1.0, "alpha": 16}}, {}, "lora_parameters has alpha"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_what_cannot_be_read_exactly_is_refused(case, tmp_path):
    changes, more, message = BAD[case]
    mlx(tmp_path / "a", 1, **changes)
    if more:
        tensors = load_file(tmp_path / "a" / "adapters.safetensors")
        save_file(tensors | {f"layer.{k}": v for k, v in more.items()}, tmp_path / "a" / "adapters.safetensors")
    with pytest.raises(AdapterError, match=message):
        load(tmp_path / "a")
