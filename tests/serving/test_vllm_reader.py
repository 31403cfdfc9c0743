"""vLLM's own reader of LoRA checkpoints on exported folders, where vLLM is installed."""

from __future__ import annotations

import pytest
from servable import adapter_of

import tangora

lora_model = pytest.importorskip("vllm.lora.lora_model", exc_type=ImportError)

from vllm.config.lora import LoRAConfig  # noqa: E402
from vllm.lora.peft_helper import PEFTHelper  # noqa: E402

from tangora.serving.targets.vllm import RANKS, max_lora_rank  # noqa: E402

MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"}
SAME = 100 * 2**-24


@pytest.fixture(autouse=True)
def _unpinned(monkeypatch):
    """Memory is pinned for an accelerator, which may be missing."""
    monkeypatch.setattr(lora_model, "PIN_MEMORY", False)


def read(folder, rank, modules=MODULES):
    helper = PEFTHelper.from_local_dir(str(folder), max_position_embeddings=None)
    helper.validate_legal(LoRAConfig(max_lora_rank=rank))
    return lora_model.LoRAModel.from_local_checkpoint(str(folder), modules, helper, device="cpu", model_vocab_size=24)


@pytest.mark.parametrize("kind", ["gemma", "llama", "phi3", "qwen2"])
def test_vllm_reads_the_adapters_updates(kind, bases, adapters, tmp_path):
    exported = tangora.export(adapters[kind], "vllm", tmp_path / "out", base=bases[kind])
    loaded = read(tmp_path / "out", max_lora_rank(exported.rank))
    source = tangora.load(adapters[kind])
    assert loaded.loras.keys() == source.updates.keys()
    for site, update in source.updates.items():
        lora, factors = loaded.loras[site], update.factors()
        delta = lora.scaling * lora.lora_b.double() @ lora.lora_a.double()
        expected = factors.scaling * factors.b.double() @ factors.a.double()
        assert float((delta - expected).norm()) <= SAME * float(expected.norm()), site
        assert lora.lora_a.shape[0] == exported.rank


def test_vllm_reads_embeddings_and_the_output_layer(bases, tmp_path):
    adapter = adapter_of("llama", bases["llama"], tmp_path / "a", target_modules=["embed_tokens", "lm_head", "q_proj"])
    tangora.export(adapter, "vllm", tmp_path / "out", base=bases["llama"])
    loaded = read(tmp_path / "out", 8, MODULES | {"embed_tokens", "lm_head"})
    lora, factors = loaded.loras["model.embed_tokens"], tangora.load(adapter).updates["model.embed_tokens"].factors()
    delta = lora.scaling * lora.lora_b.double() @ lora.lora_a.double()
    expected = factors.scaling * factors.b.double() @ factors.a.double()
    assert float((delta - expected).norm()) <= SAME * float(expected.norm())


def test_the_ranks_are_vllms():
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == RANKS
    with pytest.raises(ValueError, match="Input should be"):
        LoRAConfig(max_lora_rank=24)


def test_a_larger_rank_is_vllms_own_refusal(bases, adapters, tmp_path):
    tangora.export(adapters["llama"], "vllm", tmp_path / "out", base=bases["llama"])
    with pytest.raises(ValueError, match="greater than max_lora_rank"):
        read(tmp_path / "out", 1)
