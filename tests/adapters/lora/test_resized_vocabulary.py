"""Embeddings that peft saves along with an adapter: of a resized vocabulary, or below an adapted embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import zoo
from tangora.adapters.adapter import load
from tangora.errors import FusionError
from tangora.fusion.fusion import fuse
from tangora.modes.loading import load_model

IDS = torch.tensor([[1, 5, 32, 3, 33]])
SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1}
PHI = {**SIZE, "pad_token_id": 0, "partial_rotary_factor": 0.5}
MODELS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llama": ("LlamaForCausalLM", SIZE, ["q_proj"]),
    "tied": ("LlamaForCausalLM", {**SIZE, "tie_word_embeddings": True}, ["q_proj"]),
    "gpt2": ("GPT2LMHeadModel", GPT2, ["c_attn"]),
    "bias in the head": ("PhiForCausalLM", PHI, ["q_proj"]),
    "gpt-neox": ("GPTNeoXForCausalLM", SIZE, ["query_key_value"]),
    "bert": ("BertForMaskedLM", SIZE, ["query"]),
}
ADAPTED = {"llama": ["embed_tokens", "lm_head"], "bias in the head": ["embed_tokens", "lm_head"]}


def base_of(name: str, folder: Path) -> Path:
    if not (folder / "base").exists():
        torch.manual_seed(0)
        kind = getattr(transformers, MODELS[name][0])
        kind(kind.config_class(**MODELS[name][1])).save_pretrained(folder / "base")
    return folder / "base"


def resized(name: str, folder: Path, seed: int, rows: int = 34) -> Any:
    """The base with two new tokens, whose rows are drawn by the seed."""
    model = getattr(transformers, MODELS[name][0]).from_pretrained(base_of(name, folder)).eval()
    torch.manual_seed(seed)
    model.resize_token_embeddings(rows, mean_resizing=False)
    if rows != 32:
        with torch.no_grad():  # gpt2's are drawn too small to matter
            model.get_input_embeddings().weight[32:] = torch.randn(rows - 32, 16)
    return model


def adapter(name: str, folder: Path, out: str, seed: int, new: int = 1, rows: int = 34, **settings: Any) -> Path:
    settings = {"target_modules": [*MODELS[name][2], *ADAPTED.get(name, [])], **settings}
    return zoo.write(folder / out, seed, resized(name, folder, new, rows), **settings)


def answers(folder: Path, model: Any) -> torch.Tensor:
    with torch.no_grad():
        return zoo.through_peft(folder, model)(IDS).logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_new_rows_are_kept(tmp_path, name, weight):
    source = adapter(name, tmp_path, "in", 1)
    fused = fuse([source], weights=weight)
    fused.save(tmp_path / "out")
    fused.verify()
    halves = load(source)
    before, after = (load_file(f / "adapter_model.safetensors") for f in (source, tmp_path / "out"))
    saved = [key for key in before if "lora_" not in key]
    assert saved
    assert all(torch.equal(before[key], after[key]) for key in saved)
    assert load(tmp_path / "out").whole.keys() == halves.whole.keys()
    if weight == 1.0:
        wanted = answers(source, resized(name, tmp_path, 2))
        torch.testing.assert_close(answers(tmp_path / "out", resized(name, tmp_path, 3)), wanted)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_load_model_resizes_the_base(tmp_path, name):
    source = adapter(name, tmp_path, "in", 1, base_model_name_or_path=str(base_of(name, tmp_path)))
    with torch.no_grad():
        found = load_model(source, base_of(name, tmp_path))(IDS).logits
    torch.testing.assert_close(found.double(), answers(source, resized(name, tmp_path, 2)), rtol=1e-4, atol=1e-5)


def test_parents_that_agree_keep_their_rows(tmp_path):
    pair = [adapter("llama", tmp_path, str(seed), seed) for seed in (1, 2)]
    plain = adapter("llama", tmp_path, "plain", 3, rows=32, target_modules=["v_proj"])
    assert not load(plain).whole
    fused = fuse([*pair, plain], weights=[1.0, 0.0, 0.0])
    fused.save(tmp_path / "out")
    wanted = answers(pair[0], resized("llama", tmp_path, 2))
    torch.testing.assert_close(answers(tmp_path / "out", resized("llama", tmp_path, 3)), wanted)


def test_parents_that_differ_are_refused(tmp_path):
    one, other = (adapter("llama", tmp_path, str(new), 1, new) for new in (1, 2))
    with pytest.raises(FusionError, match=r"embeddings of tokens whole.*rows, differ.*--base"):
        fuse([one, other])
    longer = adapter("llama", tmp_path, "longer", 1, rows=35, target_modules=["q_proj"], modules_to_save=["lm_head"])
    shorter = adapter("llama", tmp_path, "shorter", 1, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(FusionError, match=r"rows, differ.*35.*34"):
        fuse([longer, shorter])


def test_a_trained_embedding_of_one_parent_is_not_that_of_all(tmp_path):
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    trained = adapter("llama", tmp_path, "trained", 1, rows=32, **settings)
    plain = adapter("llama", tmp_path, "plain", 2, rows=32, target_modules=["q_proj"])
    with pytest.raises(FusionError, match="differ"):
        fuse([trained, plain])
    fused = fuse([trained, plain], weights=[0.5, 1.0], base=base_of("llama", tmp_path))
    base = load_file(base_of("llama", tmp_path) / "model.safetensors")["lm_head.weight"]
    torch.testing.assert_close(fused.whole["lm_head.weight"], (base + load(trained).whole["lm_head.weight"]) / 2)


def test_a_residual_weight_is_not_a_saved_one(tmp_path):
    settings = {"init_lora_weights": "pissa", "target_modules": ["lm_head", "q_proj"]}
    source = adapter("llama", tmp_path, "in", 1, rows=32, **settings)
    base = base_of("llama", tmp_path)
    assert not fuse([source], weights=1.0, base=base).whole
    assert peft.PeftConfig.from_pretrained(source).init_lora_weights == "pissa"
