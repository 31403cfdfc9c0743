"""Read rows of a stored tensor, and check that a loaded one is finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import FileError
from tangora.storage.files import InputFiles
from tangora.storage.header import FLOATS, ITEMSIZE, Stored

__all__ = ["finite", "read_rows"]


def read_rows(stored: Stored, start: int, stop: int) -> Float[Tensor, "rows width"]:
    """Read rows of a tensor on disk in float32 (float64 stays), flattened after the first dimension."""
    if stored.dtype not in FLOATS:
        fix = "give a base in bfloat16, float16 or float32"
        raise FileError("weights must be floating-point", got=stored.dtype, where=stored.name, fix=fix)
    width = stored.entries // max(1, stored.shape[0] if stored.shape else 1)
    size = ITEMSIZE[stored.dtype] * width
    raw = torch.empty((stop - start) * size, dtype=torch.uint8)
    view: Any = raw.numpy()
    files = InputFiles()
    try:
        files.read(stored, start * size, memoryview(view))
    finally:
        files.close()
    tensor = raw.view(getattr(torch, FLOATS[stored.dtype])).reshape(stop - start, width)
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def finite(name: str, tensor: Tensor, path: Path) -> Tensor:
    """Return ``tensor`` in float32 (float64 stays); refuse it if an entry is NaN or infinite."""
    if not tensor.is_floating_point():
        raise FileError("weights must be floating-point", got=str(tensor.dtype), where=f"{name} in {path}")
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    if not math.isfinite(float(tensor.sum())) and not bool(torch.isfinite(tensor).all()):  # a sum may be too large
        bad = "NaN" if bool(tensor.isnan().any()) else "infinity"
        fix = "the training diverged or the file is damaged: train or copy it again"
        raise FileError(f"a weight is {bad}", where=f"{name} in {path}", fix=fix)
    return tensor
