"""Plain LoRA updates that stay in their file: the factors of a site are read when they are needed.

So fusing a hundred adapters takes the memory of one site of each. What is read is checked, and only its digest is kept,
so that computing the adapter's fingerprint reads nothing twice. Adapters that share their A₀ share one tensor of it:
bytes that equal those read just before are not widened, checked or hashed again.
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
from tangora.adapters.formats.lora.names import sort_tensors
from tangora.storage.files import InputFiles
from tangora.storage.floats import widen
from tangora.storage.header import FLOATS, Stored, read_header
from tangora.storage.tensors import finite
from tangora.updates.text import half_digest, joined, number_digest, sizes, tensor_digest
from tangora.updates.update import LowRank, Update

__all__ = ["LazyLowRank", "read_lazily"]


class _CachedFactor(NamedTuple):
    """An A, its bytes, its digest, and its version when it was read: a tensor that was modified is not reused."""

    dtype: str
    raw: np.ndarray[Any, Any]
    tensor: Tensor
    digest: str
    version: int

    def equals(self, stored: Stored, raw: np.ndarray[Any, Any]) -> bool:
        """Return whether the bytes are those of this factor."""
        kept = (self.dtype, tuple(self.tensor.shape), self.tensor._version)
        if kept != (stored.dtype, stored.shape, self.version):
            return False
        unit = np.uint64 if raw.size % 8 == 0 else np.uint8
        return np.array_equal(self.raw.view(unit), raw.view(unit))


class _LastRead(threading.local):
    factor: _CachedFactor | None = None


_last = _LastRead()


@dataclass(frozen=True, eq=False, repr=False)
class LazyLowRank(Update):
    """An update ``scaling * b @ a`` of two tensors on disk, in float32 (float64 stays).

    It is its own `Factors`: every access to b or a reads the file, so access each once.

    Args:
        stored_b, stored_a: the stored factors.
        scaling: see `LowRank`.
    """

    stored_b: Stored
    stored_a: Stored
    scaling: float
    _digests: dict[Stored, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        name = self.stored_a.path.name
        return f"LazyLowRank({sizes(self.shape)}, rank {self.rank}, scaling {self.scaling:g}, in {name})"

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

    def factors(self) -> LazyLowRank:
        """Return itself; nothing is read yet."""
        return self

    def dense(self) -> Tensor:
        """Return the matrix; its factors are read now."""
        return self._loaded().dense()

    def scaled(self, number: float) -> LowRank:
        """Return ``number`` times the update, read into memory, so that it no longer depends on the file."""
        return self._loaded().scaled(number)

    def to(self, target: torch.dtype | torch.device | str) -> LowRank:
        """Return the factors in a dtype, or on a device, read now."""
        return self._loaded().to(target)

    def digest(self) -> str:
        """Return what `LowRank.digest` would; a factor is read only if it has not been read before."""
        for stored in (self.stored_b, self.stored_a):
            if stored not in self._digests:
                self._read(stored, shared=stored is self.stored_a)
        digests = (self._digests[stored] for stored in (self.stored_b, self.stored_a))
        return joined(self.shape, self.rank, *digests, number_digest(self.scaling))

    def _loaded(self) -> LowRank:
        return LowRank(self.b, self.a, self.scaling)

    def _read(self, stored: Stored, shared: bool = False) -> Tensor:
        raw, files = np.empty(stored.size, np.uint8), InputFiles()
        try:
            files.read(stored, 0, raw.data)
        finally:
            files.close()
        if shared and (last := _last.factor) and last.equals(stored, raw):
            self._digests[stored] = last.digest
            return last.tensor
        numbers = np.empty(stored.shape, np.float64 if stored.dtype == "F64" else np.float32)
        widen(raw, stored.dtype, numbers.reshape(-1))
        tensor = torch.from_numpy(numbers)
        if not math.isfinite(numbers.sum()):
            finite(stored.name, tensor, stored.path)
        if stored not in self._digests:
            self._digests[stored] = half_digest(raw) if stored.dtype == "BF16" else tensor_digest(tensor)
        if shared:
            _last.factor = _CachedFactor(stored.dtype, raw, tensor, self._digests[stored], tensor._version)
        return tensor


def read_lazily(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Update], frozenset[str]] | None:
    """Return a file's updates and the embeddings among them, from its header; None if it has more than plain factors.

    Raises:
        AdapterError: the file is damaged, or its tensors do not fit the configuration.
    """
    header = read_header(path)
    named = sort_tensors(header, config, path)
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
        assert factors is not None  # all factors are plain, as checked above
        updates[site] = LazyLowRank(pair["B"], pair["A"], factors.scaling)
    return updates, frozenset(site for site, kind in pairs if kind == "lora_embedding")
