"""Plain LoRA updates that stay in their file: the factors of a site are read when they are asked for.

So fusing a hundred adapters takes the memory of one site of each. What is read is checked, and remembered only by its
digest, with which the adapter's fingerprint needs no second reading. Adapters that share their A₀ share one tensor of
it: bytes that equal those read just before are neither widened, checked nor digested again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from tangora.storage.tensors import finite
from tangora.updates.text import half_digest, joined, number_digest, sizes, tensor_digest
from tangora.updates.update import LowRank, Update

__all__ = ["Filed", "read_filed"]


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


@dataclass(frozen=True, eq=False, repr=False)
class Filed(Update):
    """``scaling * b @ a`` of two tensors on disk, in float32 (float64 stays).

    It is its own `Factors`: b and a are read whenever they are taken, so take each once.

    Args:
        stored_b, stored_a: where they are.
        scaling: see `LowRank`.
    """

    stored_b: Stored
    stored_a: Stored
    scaling: float
    _digests: dict[Stored, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        name = self.stored_a.path.name
        return f"Filed({sizes(self.shape)}, rank {self.rank}, scaling {self.scaling:g}, in {name})"

    @property
    def shape(self) -> tuple[int, ...]:
        """``(out, in)``."""
        return (self.stored_b.shape[0], self.stored_a.shape[1])

    @property
    def rank(self) -> int:
        """Width of the factors."""
        return self.stored_a.shape[0]

    @property
    def b(self) -> Tensor:
        """``[out, r]``, read now."""
        return self._read(self.stored_b)

    @property
    def a(self) -> Tensor:
        """``[r, in]``, read now."""
        return self._read(self.stored_a, shared=True)

    def factors(self) -> Filed:
        """Return itself; nothing is read yet."""
        return self

    def dense(self) -> Tensor:
        """Return the matrix, of factors that are read now."""
        return self._loaded().dense()

    def scaled(self, number: float) -> LowRank:
        """Return ``number`` times the update, read into memory: what is made of a file does not depend on it."""
        return self._loaded().scaled(number)

    def to(self, target: torch.dtype | torch.device | str) -> LowRank:
        """Return the factors in a dtype, or on a device, read now."""
        return self._loaded().to(target)

    def digest(self) -> str:
        """Return what `LowRank.digest` would; a factor is read only if it has not been before."""
        for stored in (self.stored_b, self.stored_a):
            if stored not in self._digests:
                self._read(stored, shared=stored is self.stored_a)
        known = (self._digests[stored] for stored in (self.stored_b, self.stored_a))
        return joined(self.shape, self.rank, *known, number_digest(self.scaling))

    def _loaded(self) -> LowRank:
        return LowRank(self.b, self.a, self.scaling)

    def _read(self, stored: Stored, shared: bool = False) -> Tensor:
        raw, files = np.empty(stored.size, np.uint8), Files()
        try:
            files.read(stored, 0, raw.data)
        finally:
            files.close()
        if shared and (before := _before.read) and before.is_of(stored, raw):
            self._digests[stored] = before.digest
            return before.tensor
        numbers = np.empty(stored.shape, np.float64 if stored.dtype == "F64" else np.float32)
        widen(raw, stored.dtype, numbers.reshape(-1))
        tensor = torch.from_numpy(numbers)
        if not math.isfinite(numbers.sum()):
            finite(stored.name, tensor, stored.path)
        if stored not in self._digests:
            self._digests[stored] = half_digest(raw) if stored.dtype == "BF16" else tensor_digest(tensor)
        if shared:
            _before.read = _Read(stored.dtype, raw, tensor, self._digests[stored], tensor._version)
        return tensor


def read_filed(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Update], frozenset[str]] | None:
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
    updates: dict[str, Update] = {}
    for (site, kind), pair in sorted(pairs.items()):
        shapes = {part: torch.empty(stored.shape, device="meta") for part, stored in pair.items()}
        (update,) = updates_of(site, kind, shapes, config, path).values()
        factors = update.factors()
        assert factors is not None  # of plain factors, as was seen above
        updates[site] = Filed(pair["B"], pair["A"], factors.scaling)
    return updates, frozenset(site for site, kind in pairs if kind == "lora_embedding")
