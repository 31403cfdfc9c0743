"""Files with the adapter's name in the names of their tensors, as a model's own state dict has it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import tangora
from tangora.adapters.adapter import load
from tangora.errors import AdapterError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.layer, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 2)


@pytest.fixture
def saved(tmp_path):
    """A folder of stock peft, and the same tensors by their names in the model."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["words", "layer"], modules_to_save=["head"], lora_bias=False)
    model = get_peft_model(Net(), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "plain")
    named = {k: v.clone() for k, v in model.state_dict().items() if "lora_" in k or "modules_to_save" in k}
    assert any(".lora_A.default.weight" in key for key in named)
    model.save_pretrained(tmp_path / "named")
    save_file(named, tmp_path / "named" / "adapter_model.safetensors")
    return tmp_path


def test_they_are_read_like_those_of_save_pretrained(saved):
    plain, named = load(saved / "plain"), load(saved / "named")
    assert named.fingerprint == plain.fingerprint
    assert named.whole.keys() == plain.whole.keys() == {"head.weight", "head.bias"}
    fused = tangora.fuse([saved / "plain", saved / "named"], weights=0.5)
    assert all(torch.allclose(u.dense(), plain.updates[s].dense()) for s, u in fused.updates.items())


def test_two_adapters_in_one_file_are_refused(saved):
    path = saved / "named" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors |= {k.replace(".default.", ".other."): v.clone() for k, v in tensors.items() if "lora_A" in k}
    save_file(tensors, path)
    with pytest.raises(AdapterError, match="two tensors have one name"):
        load(saved / "named")
