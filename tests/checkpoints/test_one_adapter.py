"""``tangora merge ADAPTER --base BASE``: one adapter into its base, beside stock peft's merge in float64.

peft adds s·B A in float64 here, Tangora in float32 with one rounding of the sum, to numbers under 4: 1e-6 is above
that, and far below the updates of about 0.1.
"""

from __future__ import annotations

import json
import shlex
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import zoo
from workshop import done

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TOKENS = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2}
KINDS = {
    "a classifier with a trained head": (
        "BertForSequenceClassification",
        {**SMALL, "vocab_size": 40, "num_labels": 3},
        {"target_modules": ["query", "dense"], "task_type": "SEQ_CLS", "exclude_modules": ["pooler.dense"]},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, **TOKENS},
        {"target_modules": ["c_attn", "c_proj"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True, "use_rslora": True},
    ),
    "llama": (
        "LlamaForCausalLM",
        {**SMALL, **TOKENS, "num_key_value_heads": 1},
        {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "rank_pattern": {"q_proj": 5}},
    ),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_is_what_peft_merges(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    name, settings, lora = KINDS[kind]
    of = getattr(transformers, name)
    torch.manual_seed(0)
    of(of.config_class(**settings)).save_pretrained("base")
    zoo.write(tmp_path / "adapter", 1, of.from_pretrained("base"), **lora)
    printed = done(*shlex.split("merge adapter --base base --out merged")).output
    assert "weights: 1 (a single adapter is merged whole)" in printed
    assert "verified in" in printed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wide = of.from_pretrained("base", dtype=torch.float64)
        theirs = peft.PeftModel.from_pretrained(wide, tmp_path / "adapter").merge_and_unload().eval()
    before, ours = load_file("base/model.safetensors"), of.from_pretrained("merged").eval()
    changed = 0
    for parameter, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[parameter].double(), value.double(), rtol=0, atol=1e-6)
        changed += parameter in before and not torch.equal(before[parameter].double(), value.double())
    assert changed >= 4
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits.double(), theirs(ids).logits.double(), rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "merged/config.json").read_text())["architectures"] == [name]
