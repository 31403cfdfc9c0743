"""Read and write an adapter's per-task files: trained heads, and what prediction needs.

heads/<task>.safetensors   parameters of one task: a trained head, or ``modules_to_save``
heads/<task>.json          how to turn rows into inputs, and outputs into answers: see `HeadRecord`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from tangora.errors import AdapterError, FileError
from tangora.storage.tensors import finite
from tangora.support.files import inside, read_json, read_safetensors, write_json, write_safetensors
from tangora.support.validation import validate
from tangora.updates.text import tensor_digest

__all__ = ["FOLDER", "HeadRecord", "heads_digest", "read_heads", "read_records", "write_heads", "write_records"]

FOLDER = "heads"


class HeadRecord(BaseModel):
    """What prediction with an adapter needs besides the base model and the tensors.

    Attributes:
        family: the name of the `tangora.tasks.contract.Family` that reads the other attributes.
        labels: class names in the order of the logits.
        base: settings of the base, such as pooling and the maximum length.
        task: settings of the task, such as templates, prompt and metric.
        readout: settings that the family adds: a scale, the normalization of images.

    >>> HeadRecord(family="text-zero-shot", labels=["ham", "spam"]).labels
    ['ham', 'spam']
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(default=1, ge=1, le=1)
    family: str
    labels: list[str]
    base: dict[str, Any] = Field(default_factory=dict)
    task: dict[str, Any] = Field(default_factory=dict)
    readout: dict[str, Any] = Field(default_factory=dict)


def read_heads(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return task -> parameters, from ``heads/`` in an adapter's folder.

    Raises:
        FileError: a file is corrupt, lies outside the folder, or contains a number that is not finite.
    """
    heads = {}
    for path in _files(folder, ".safetensors"):
        tensors = read_safetensors(path)
        heads[path.name.removesuffix(".safetensors")] = {n: finite(n, t, path) for n, t in tensors.items()}
    return heads


def read_records(folder: Path) -> dict[str, HeadRecord]:
    """Return task -> what prediction needs, from ``heads/`` in an adapter's folder.

    Raises:
        AdapterError: a file is not a record, or of a newer format.
    """
    return {
        path.name.removesuffix(".json"): validate(HeadRecord, read_json(path), str(path), AdapterError)
        for path in _files(folder, ".json")
    }


def _files(folder: Path, suffix: str) -> list[Path]:
    home = folder / FOLDER
    if not home.is_dir():
        return []
    if home.resolve() != folder.resolve() / FOLDER:
        raise FileError("a link that leads out of the folder", where=home, fix="copy the folder in its place")
    return [inside(home, path.name) for path in sorted(home.glob(f"*{suffix}"))]


def write_heads(folder: Path, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write ``heads/<task>.safetensors``, with the readout's names, or the base's names for ``modules_to_save``."""
    for task, tensors in heads.items():
        (folder / FOLDER).mkdir(exist_ok=True)
        write_safetensors(folder / FOLDER / f"{task}.safetensors", tensors)


def write_records(folder: Path, records: Mapping[str, HeadRecord]) -> None:
    """Write ``heads/<task>.json``."""
    for task, record in records.items():
        (folder / FOLDER).mkdir(exist_ok=True)
        write_json(folder / FOLDER / f"{task}.json", record.model_dump(mode="json"))


def heads_digest(heads: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return the sha-256 (hex) of tasks, names and values; an empty string if there are none."""
    if not heads:
        return ""
    prints = {task: {name: tensor_digest(t) for name, t in named.items()} for task, named in heads.items()}
    return hashlib.sha256(json.dumps(prints, sort_keys=True).encode()).hexdigest()
