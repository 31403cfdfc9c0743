"""LoRA on `torch.nn.MultiheadAttention`, which peft adapts as two layers, one inside the wrapper of the other."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from folders import save
from tangora.adapters.adapter import load
from tangora.checkpoints import fuse_checkpoints
from tangora.errors import FusionError
from tangora.fusion.fusion import fuse
from tangora.fusion.verification import verify


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = {"model_type": "mine"}
        self.attn = nn.MultiheadAttention(8, 2)
        self.blocks = nn.ModuleList([nn.MultiheadAttention(8, 4, bias=False), nn.Linear(8, 8)])

    def forward(self, x):
        x = self.attn(x, x, x)[0]
        return self.blocks[1](self.blocks[0](x, x, x)[0])


def write(folder, seed):
    wrapped = peft.get_peft_model(Model(), peft.LoraConfig(r=2, target_modules=["attn", "0", "1"]))
    draw = torch.Generator().manual_seed(seed)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload().state_dict()


@pytest.mark.parametrize("count", [1, 2])
def test_stock_peft_loads_the_sum(tmp_path, count):
    changes = [write(tmp_path / f"a{i}", i) for i in range(count)]
    fused = fuse([tmp_path / f"a{i}" for i in range(count)], weights=1.0)
    fused.save(tmp_path / "out")
    assert verify(load(tmp_path / "out"), tmp_path / "out").sites == 5
    loaded = peft.PeftModel.from_pretrained(Model(), tmp_path / "out").merge_and_unload().state_dict()
    for name, start in Model().state_dict().items():
        torch.testing.assert_close(loaded[name] - start, sum(c[name] - start for c in changes), rtol=0, atol=1e-6)


def test_onto_its_base_is_refused(tmp_path):
    """In a forward pass, peft 0.21 adds the update of the output projection twice; its file does not say so."""
    base = save(tmp_path / "base", dict(Model().state_dict()), config={"model_type": "mine"})
    write(tmp_path / "a", 1)
    with pytest.raises(FusionError, match=r"MultiheadAttention: peft 0\.21 adds"):
        fuse_checkpoints(base, [tmp_path / "a"], tmp_path / "out", weights=1.0)
