"""One network with every kind of layer that peft adapts, and adapters of it by stock peft in every convention.

What peft makes of a file is computed in float64, so that it is what the file says, on any processor. What Tangora
writes is then off by the roundings to float32 of the numbers in its own file: of a factor, 6e-8 of it. Sums here are
of at most 30 products, all of them under 30 together, and the logits do not magnify a relative error a hundredfold:
1e-5 is far above rounding, and far below the 1e-2 that leaving anything out makes.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [4, 5, 10, 0, 1, 1, 2, 9]])


class Experts(nn.Module):
    """Parameters without layers of their own, as mixtures of experts have them: unlike widths, either way round."""

    def __init__(self, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        first, second = (3, 6, 10), (3, 5, 6)
        turn = (lambda s: s) if is_transposed else (lambda s: (s[0], s[2], s[1]))
        self.gate_up = nn.Parameter(torch.randn(turn(first)) * 0.3)
        self.down = nn.Parameter(torch.randn(turn(second)) * 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up, down = self.gate_up, self.down
        if not self.is_transposed:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        gate, up = torch.einsum("bi,eio->ebo", x, up).chunk(2, -1)
        return torch.einsum("ebo,eoj->bj", torch.sigmoid(gate) * up, down)


class Zoo(nn.Module):
    """An embedding, convolutions of one, two and three dimensions, Linear, Conv1D, experts, a norm, and a head."""

    def __init__(self, is_transposed: bool = True) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"model_type": "zoo"}
        self.embed = nn.Embedding(11, 6)
        self.line = nn.Conv1d(6, 4, 3, padding=1)
        self.plane = nn.Conv2d(1, 2, (3, 2), stride=(2, 1))
        self.point = nn.Conv2d(2, 3, 1)
        self.space = nn.Conv3d(1, 2, 2)
        self.up = nn.Linear(6, 10)
        self.turned = Conv1D(6, 10)
        self.square = Conv1D(6, 6)
        for layer in (self.turned, self.square):
            nn.init.normal_(layer.weight, std=0.4)
        self.norm = nn.LayerNorm(6)
        self.experts = Experts(is_transposed)
        self.head = nn.Linear(6, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        e = self.embed(ids)
        line = torch.tanh(self.line(e.transpose(1, 2)))
        plane = torch.tanh(self.point(torch.tanh(self.plane(line[:, None]))))
        space = self.space(e.reshape(len(e), 1, 2, 4, 6))
        x = e.mean(1) + plane.sum((2, 3)).repeat(1, 2) + space.sum((2, 3, 4)).repeat(1, 3)
        x = self.norm(x + self.square(self.turned(torch.tanh(self.up(x)))))
        return self.head(x + self.experts(x))


def zoo(is_transposed: bool = True) -> Zoo:
    torch.manual_seed(0)
    return Zoo(is_transposed).eval()


def write(folder: Path, seed: int = 1, model: nn.Module | None = None, **settings: Any) -> Path:
    """An adapter of random factors, norms, biases and heads, written by stock peft; the base is left as it was."""
    settings = {"r": 3, "lora_alpha": 6, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model or zoo(), peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name or (parameter.requires_grad and name.endswith("bias")):
            noise = torch.randn(parameter.shape, generator=generator) * 0.4
            parameter.data.add_(parameter.data * noise if "magnitude" in name else noise)  # in place: some are shared
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(folder)
    return folder


def cast(folder: Path, dtype: torch.dtype) -> Path:
    path = folder / "adapter_model.safetensors"
    save_file({k: v.to(dtype) for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    return folder


def through_peft(folder: Path, model: nn.Module | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft warns of missing keys and of patterns that match nothing
        for harmless in (".*fan_in_fan_out.*", ".*[Mm]erging.*", ".*tie_word_embeddings.*", ".*tied.*"):
            warnings.filterwarnings("ignore", harmless)
        warnings.simplefilter("ignore", FutureWarning)
        return peft.PeftModel.from_pretrained(model or zoo(), folder).eval().double()


def logits(folder: Path, model: nn.Module | None = None) -> torch.Tensor:
    with torch.no_grad():
        return through_peft(folder, model)(IDS)


def parameters(folder: Path, model: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """Every parameter of the base with the adapter merged by stock peft."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = through_peft(folder, model).merge_and_unload()
    return {name: p.detach().clone() for name, p in merged.named_parameters()}


def differences(folder: Path, model: nn.Module | None = None, base: nn.Module | None = None) -> dict[str, torch.Tensor]:
    before = dict((base or zoo()).named_parameters())
    return {name: p - before[name] for name, p in parameters(folder, model).items()}


def save_base(folder: Path, dtype: torch.dtype = torch.float32, model: nn.Module | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "zoo"}')
    state = {name: tensor.to(dtype) for name, tensor in (model or zoo()).state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
