"""Heads kept apart beside an adapter, one file a task: ``heads/<task>.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tangora.errors import AdapterError
from tangora.storage.tensors import finite
from tangora.support.files import inside, read_safetensors, write_safetensors

__all__ = ["FOLDER", "read_heads", "write_heads"]

FOLDER = "heads"


def read_heads(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Task -> parameters, from ``heads/`` in an adapter's folder."""
    home = folder / FOLDER
    if not home.is_dir():
        return {}
    if home.resolve() != folder.resolve() / FOLDER:
        raise AdapterError("a link that leads out of the folder", where=home, fix="copy the folder in its place")
    heads = {}
    for path in sorted(home.glob("*.safetensors")):
        tensors = read_safetensors(inside(home, path.name))
        heads[path.name.removesuffix(".safetensors")] = {n: finite(n, t, path) for n, t in tensors.items()}
    return heads


def write_heads(folder: Path, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
    """``heads/<task>.safetensors``: tensors under the base's names, for ``load_state_dict(..., strict=False)``."""
    if heads:
        (folder / FOLDER).mkdir(exist_ok=True)
    for task, tensors in heads.items():
        write_safetensors(folder / FOLDER / f"{task}.safetensors", tensors)
