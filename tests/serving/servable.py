"""Tiny language models and adapters of stock peft, in folders, as a user of `tangora export` has them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

SHAPE = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "head_dim": 4}
SHAPE |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2 = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "vocab_size": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {
    "gemma": ("Gemma", {**SHAPE, "tie_word_embeddings": True}, ["q_proj", "v_proj", "down_proj"]),
    "gpt2": ("GPT2", GPT2, ["c_attn", "c_fc", "c_proj"]),
    "llama": ("Llama", {**SHAPE, "tie_word_embeddings": False}, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]),
    "phi3": ("Phi3", {**SHAPE, "tie_word_embeddings": False}, ["qkv_proj", "gate_up_proj"]),
    "qwen2": ("Qwen2", {**SHAPE, "tie_word_embeddings": False}, ["q_proj", "k_proj", "up_proj"]),
}
IDS = torch.tensor([[3, 9, 17, 20, 5]])


def base_of(kind: str, folder: Path) -> Path:
    """A model with random weights in a folder."""
    name, settings, _ = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    return folder


def adapter_of(kind: str, base: Path, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """An adapter as stock peft saves it; by default of mixed ranks and alphas, with rank-stabilized scaling."""
    targets = settings.pop("target_modules", KINDS[kind][2])
    plain = {"r": 4, "lora_alpha": 6, "use_rslora": True}
    plain |= {"rank_pattern": {targets[0]: 2}, "alpha_pattern": {targets[-1]: 3.0}}
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **{**plain, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        model.save_pretrained(folder)
    return folder


def logits(base: Path, adapter: Path | None) -> torch.Tensor:
    """What stock peft computes, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).double()
        with torch.no_grad():
            return model.eval()(IDS).logits
