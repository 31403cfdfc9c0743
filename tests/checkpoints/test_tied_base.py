"""Adapters onto a base whose head is its embedding: what is written computes what peft computes."""

from __future__ import annotations

import json
import warnings

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

import zoo
from folders import read
from tangora.checkpoints import fuse_checkpoints
from tangora.errors import FusionError
from tangora.inspection.folders import inspect
from tangora.inspection.fusable import fusable

IDS = torch.tensor([[1, 2, 3, 4]])
SHAPE = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
CAUSAL = {"task_type": "CAUSAL_LM"}
# A forward pass in float32 rounds some hundred times by 6e-8 of numbers up to 14; adapters move logits by 0.2 to 14.
ROUNDING = {"rtol": 0.0, "atol": 1e-4}


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=13, tie_word_embeddings=True, **SHAPE)).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=13, n_embd=8, n_layer=1, n_head=2, n_positions=8)).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def in_peft(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits(peft.PeftModel.from_pretrained(model, folder).eval())


BOTH = ["embed_tokens", "lm_head"]
SETTINGS = [
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"target_modules": ["lm_head"]},
    {"target_modules": BOTH},
    {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    {"target_modules": ["lm_head"], "ensure_weight_tying": True},
    {"target_modules": BOTH, "ensure_weight_tying": True},
    {"target_modules": ["embed_tokens"], "use_dora": True},
    {"target_modules": ["lm_head"], "use_dora": True},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_it_computes_what_peft_computes(tmp_path, settings):
    llama().save_pretrained(tmp_path / "base")
    folder = zoo.write(tmp_path / "a", 1, llama(), **CAUSAL, **settings)
    merged = fuse_checkpoints(tmp_path / "base", [folder], tmp_path / "out", weights=1.0, same_base=True)
    expected = in_peft(llama(), folder)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected, **ROUNDING)
    assert (expected - logits(llama())).abs().max() > 0.1
    assert merged.notes == [
        "input embedding and output head are no longer tied, since adapters change them differently: "
        "0.0 MB more than the base"
    ]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert merged.size == 4 * sum(p.numel() for p in llama().parameters()) + 4 * 13 * 8


def test_several_adapters_of_either_end(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    folders = [
        zoo.write(tmp_path / f"a{i}", i, llama(), **CAUSAL, target_modules=[target])
        for i, target in enumerate(["embed_tokens", "lm_head"])
    ]
    fuse_checkpoints(tmp_path / "base", folders, tmp_path / "out", weights=[0.5, -0.25], same_base=True)
    base = llama().model.embed_tokens.weight.detach()
    parts = [in_one(folder) for folder in folders]
    found = read(tmp_path / "out")
    torch.testing.assert_close(found["model.embed_tokens.weight"], base + 0.5 * parts[0])
    torch.testing.assert_close(found["lm_head.weight"], base - 0.25 * parts[1])
    assert "full" in fusable([inspect(f) for f in [tmp_path / "base", *folders]]).spaces


def in_one(folder):
    from tangora.adapters.adapter import load

    ((site, update),) = load(folder).updates.items()
    return update.dense().T if site.endswith("embed_tokens") else update.dense()


def test_gpt2_without_the_prefix_of_its_names(tmp_path):
    gpt2().save_pretrained(tmp_path / "base")
    settings = {"target_modules": ["wte", "c_attn"], "fan_in_fan_out": True}
    folder = zoo.write(tmp_path / "a", 1, gpt2(), **CAUSAL, **settings)
    fuse_checkpoints(tmp_path / "base", [folder], tmp_path / "out", weights=1.0, same_base=True)
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    torch.testing.assert_close(found, in_peft(gpt2(), folder), **ROUNDING)


def test_ends_that_no_adapter_changes_stay_one(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    folder = zoo.write(tmp_path / "a", 1, llama(), **CAUSAL, target_modules=["q_proj"])
    merged = fuse_checkpoints(tmp_path / "base", [folder], tmp_path / "out", same_base=True)
    assert (merged.notes, merged.tensors) == ([], len(read(tmp_path / "base")))
    assert read(tmp_path / "out").keys() == read(tmp_path / "base").keys()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_model_without_a_head_has_one_end(tmp_path, kind):
    small = {"vocab_size": 13, **SHAPE}
    model = (
        BertModel(BertConfig(**small)) if kind == "bert" else LlamaModel(LlamaConfig(**small, tie_word_embeddings=True))
    )
    model.save_pretrained(tmp_path / "base")
    before = read(tmp_path / "base")
    name = "word_embeddings" if kind == "bert" else "embed_tokens"
    folder = zoo.write(tmp_path / "a", 1, model, target_modules=[name])
    merged = fuse_checkpoints(tmp_path / "base", [folder], tmp_path / "out", weights=1.0, same_base=True)
    assert (merged.notes, merged.tensors) == ([], len(before))
    changed = [n for n, t in read(tmp_path / "out").items() if not torch.equal(t, before[n])]
    assert [name in n for n in changed] == [True]


def test_a_head_of_unknown_name_is_refused(tmp_path):
    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=13, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    t5.save_pretrained(tmp_path / "base")
    folder = zoo.write(tmp_path / "a", 1, t5, target_modules=["shared"])
    with pytest.raises(FusionError, match="shared by the input embedding and the output head"):
        fuse_checkpoints(tmp_path / "base", [folder], tmp_path / "out", same_base=True)
    assert not (tmp_path / "out").exists()
