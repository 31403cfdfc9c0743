"""Methods that tell outputs from inputs get updates as ``[out, in]``, however the base stores the weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

import tangora


@pytest.fixture(scope="session")
def turned(tmp_path_factory):
    """A GPT-2, and two adapters of its tokens' embedding (``[vocabulary, width]``) and of a ``Conv1D``."""
    folder = tmp_path_factory.mktemp("turned")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=8)
        GPT2LMHeadModel(config).save_pretrained(folder / "base")
        for name in ("a", "b"):
            model = GPT2LMHeadModel.from_pretrained(folder / "base")
            settings = LoraConfig(r=2, lora_alpha=2, target_modules=["wpe", "c_attn"], fan_in_fan_out=True)
            adapted = get_peft_model(model, settings)
            for key, value in adapted.named_parameters():
                if "lora_" in key:
                    torch.nn.init.normal_(value.data)
            adapted.save_pretrained(folder / name, save_embedding_layers=False)
    return folder


@pytest.mark.parametrize("method", ["do_merging", "pico", "robust_merge", "wudi"])
def test_a_merge_adds_what_the_fused_adapter_has(turned, method, tmp_path):
    pair = [turned / "a", turned / "b"]
    fused = tangora.fuse(pair, method=method, weights=[0.5, 1.0])
    tangora.fuse_checkpoints(turned / "base", pair, tmp_path / "merged", method, [0.5, 1.0])
    before, after = (load_file(f / "model.safetensors") for f in (turned / "base", tmp_path / "merged"))
    assert len(fused.task_vector) == 2
    for site, update in fused.task_vector.items():
        name = next(key for key in before if key.endswith(site.removeprefix("transformer.") + ".weight"))
        change = (after[name].double() - before[name].double()).numpy()
        # float32 rounds base + update at 2⁻²⁴ of entries below 16
        np.testing.assert_allclose(change.T, update.dense().double().numpy(), atol=16 * 2**-24, rtol=1e-4)
