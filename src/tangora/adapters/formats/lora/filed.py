"""Plain LoRA updates that stay in their file: the factors of a site are read when they are asked for.

So fusing a hundred adapters takes the memory of one site of each. What is read is checked, and remembered only by its
digest, with which the adapter's fingerprint needs no second reading. Adapters that share their A₀ share one tensor of
it: bytes that equal those read just before are neither widened, checked nor digested again.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tangora.adapters.formats.lora.layers import updates_of
from tangora.adapters.formats.lora.names import sorted_out
from tangora.storage.files import Files
from tangora.storage.floats import widen
from tangora.storage.header import FLOATS, Stored, read_header
from tangora.updates.task_vector import LowRank

__all__ = ["Filed", "number_digest", "read_filed", "tensor_digest"]


class _Read(NamedTuple):
    """An A, its bytes, its digest, and its version then: a tensor that was written to is not given again."""

    dtype: str
    raw: np.ndarray[Any, Any]
    tensor: Tensor
    digest: str
    version: int

    def is_of(self, stored: Stored, raw: np.ndarray[Any, Any]) -> bool:
        """Whether this is what the bytes hold."""
        kept = (self.dtype, tuple(self.tensor.shape), self.tensor._version)
        if kept != (stored.dtype, stored.shape, self.version):
            return False
        words = np.uint64 if raw.size % 8 == 0 else np.uint8
        return np.array_equal(self.raw.view(words), raw.view(words))


class _Before(threading.local):
    read: _Read | None = None


_before = _Before()


class Filed(LowRank):
    """``scaling * b @ a`` of two tensors on disk, in float32 (float64 stays).

    Args:
        b, a: where they are.
        scaling: see `LowRank`.
    """

    def __init__(self, b: Stored, a: Stored, scaling: float) -> None:
        told = {"scaling": scaling, "stored": (b, a), "known": {}}
        for name, value in told.items():
            object.__setattr__(self, name, value)

    stored: tuple[Stored, Stored]
    known: dict[Stored, str]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(out, in)``."""
        return (self.stored[0].shape[0], self.stored[1].shape[1])

    @property
    def rank(self) -> int:
        """Width of the factors."""
        return self.stored[1].shape[0]

    @property
    def b(self) -> Tensor:
        """``[out, r]``, read now."""
        return self._read(self.stored[0])

    @property
    def a(self) -> Tensor:
        """``[r, in]``, read now."""
        return self._read(self.stored[1], shared=True)

    def digests(self) -> list[str]:
        """Those of b and a, see `tensor_digest`; read only where they have not been."""
        for stored in self.stored:
            if stored not in self.known:
                self._read(stored, shared=stored is self.stored[1])
        return [self.known[stored] for stored in self.stored]

    def _read(self, stored: Stored, shared: bool = False) -> Tensor:
        from tangora.storage.tensors import finite

        raw, files = np.empty(stored.size, np.uint8), Files()
        try:
            files.read(stored, 0, raw.data)
        finally:
            files.close()
        if shared and (before := _before.read) and before.is_of(stored, raw):
            self.known[stored] = before.digest
            return before.tensor
        numbers = np.empty(stored.shape, np.float64 if stored.dtype == "F64" else np.float32)
        widen(raw, stored.dtype, numbers.reshape(-1))
        tensor = torch.from_numpy(numbers)
        if not math.isfinite(numbers.sum()):
            finite(stored.name, tensor, stored.path)
        if stored not in self.known:
            self.known[stored] = _half(raw) if stored.dtype == "BF16" else tensor_digest(tensor)
        if shared:
            _before.read = _Read(stored.dtype, raw, tensor, self.known[stored], tensor._version)
        return tensor


def read_filed(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, LowRank], frozenset[str]] | None:
    """The updates of a file and which are embeddings, from its header; None where it holds more than plain factors.

    Raises:
        AdapterError: the file is damaged, or its tensors do not fit the configuration.
    """
    header = read_header(path)
    named = sorted_out(header, config, path)
    pairs = named.factors
    plain = all(pair.keys() == {"A", "B"} and all(len(s.shape) == 2 for s in pair.values()) for pair in pairs.values())
    if not plain or not pairs or named.whole or len({site for site, _ in pairs}) < len(pairs):
        return None
    if config.get("target_parameters") or any(s.dtype not in FLOATS for s in header.values()):
        return None
    updates: dict[str, LowRank] = {}
    for (site, kind), pair in sorted(pairs.items()):
        shapes = {part: torch.empty(stored.shape, device="meta") for part, stored in pair.items()}
        (update,) = updates_of(site, kind, shapes, config, path).values()
        assert isinstance(update, LowRank)
        updates[site] = Filed(pair["B"], pair["A"], update.scaling)
    return updates, frozenset(site for site, kind in pairs if kind == "lora_embedding")


def tensor_digest(tensor: Tensor) -> str:
    """Sha-256 (hex) of a tensor's numbers in float32, whatever the dtype they were stored in.

    Where all of them are bfloat16's, of their upper halves alone: half the time, and what the file holds.
    """
    numbers = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    bits = numbers.reshape(-1).view(np.uint32)
    if not np.bitwise_and(bits, 0xFFFF).any():
        return _half((bits >> 16).astype(np.uint16).view(np.uint8))
    return hashlib.sha256(bits.data).hexdigest()


@lru_cache
def number_digest(number: float) -> str:
    """`tensor_digest` of one number, of which adapters have the same at all of their sites."""
    return tensor_digest(torch.tensor([number]))


def _half(upper: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(upper.data).hexdigest()
