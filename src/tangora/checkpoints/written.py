"""Read the tensors of a written checkpoint with stock safetensors, independent of the code that wrote them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

__all__ = ["bits_of", "rows_of", "tensors_in"]


def tensors_in(folder: Path) -> dict[str, Path]:
    """Return the file of every tensor of a checkpoint."""
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    return files


def rows_of(path: Path, name: str, start: int, stop: int) -> Tensor:
    """Read rows of a tensor; the file is opened only for them, so that nothing stays mapped."""
    with safe_open(path, framework="pt") as file:
        part = file.get_slice(name)
        rows: Tensor = part[start:stop] if part.get_shape() else file.get_tensor(name).reshape(1)
        return rows.clone()


def bits_of(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, to compare also NaN and the signs of zeros."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
