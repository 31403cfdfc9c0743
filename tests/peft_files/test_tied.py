"""An embedding and an output head that share their weight, adapted as one or as two."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import zoo
from tangora.adapter import load
from tangora.errors import AdapterError
from tangora.fuse import fuse

IDS = torch.tensor([[1, 2, 3, 4]])
# A forward pass in float32 rounds some hundred times by 6e-8 of numbers up to 10; adapters move logits by 1 or more.
ROUNDING = 1e-4


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=13, tie_word_embeddings=True, **shape)).eval()


def logits(folder) -> torch.Tensor:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(llama(), folder).eval()(IDS).logits


@pytest.mark.parametrize("tied", [True, False])
def test_both_ends_of_a_tied_weight(tmp_path, tied):
    settings = {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "ensure_weight_tying": tied}
    folder = zoo.write(tmp_path / "a", 1, llama(), task_type="CAUSAL_LM", **settings)
    fuse([folder], weights=1.0).save(tmp_path / "out")
    before = logits(folder)
    assert (logits(tmp_path / "out") - before).abs().max() < ROUNDING
    assert (llama()(IDS).logits - before).abs().max() > 0.1


def test_one_end_of_a_tied_weight(tmp_path):
    """Only the embedding is adapted: the head keeps the weight that they shared."""
    folder = zoo.write(tmp_path / "a", 1, llama(), task_type="CAUSAL_LM", target_modules=["embed_tokens"])
    fuse([folder], weights=1.0).save(tmp_path / "out")
    assert (logits(tmp_path / "out") - logits(folder)).abs().max() < ROUNDING


def test_a_tie_that_the_file_does_not_keep(tmp_path):
    """peft gives both layers the factors of one: which, the order of loading decides."""
    settings = {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    folder = zoo.write(tmp_path / "a", 1, llama(), task_type="CAUSAL_LM", **settings)
    load(folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.lora_A.weight"] += 1.0
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"ensure_weight_tying: .*lm_head"):
        load(folder)
