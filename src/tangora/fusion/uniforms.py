"""Random numbers that depend only on seed, tensor, adapter and position, so that order and chunking change nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["CHUNK", "drawn", "uniforms"]

CHUNK = 2**20
"""The number of entries in one draw."""


def uniforms(seed: int, name: str, fingerprint: str, part: int, count: int) -> Float[Tensor, " count"]:
    """Draw numbers in [0, 1) for the entries from ``part * CHUNK`` of a tensor, at most `CHUNK` of them.

    Args:
        seed: the fusion's seed.
        name: the tensor's name.
        fingerprint: of the adapter or checkpoint.
        part: the index of the chunk in the tensor.
        count: the number of entries.
    """
    import torch  # deferred: torch takes a second, and linear methods do without it

    from tangora.adapters.initial import seed_of  # deferred: imports torch

    suffix = () if part == 0 else (part,)
    generator = torch.Generator().manual_seed(seed_of("uniforms", seed, name, fingerprint, *suffix))
    return torch.rand(count, generator=generator)


def drawn(seed: int, name: str, fingerprints: Sequence[str], shape: Sequence[int]) -> Float[Tensor, " tasks *param"]:
    """Draw `uniforms` for all entries of a tensor, for every adapter."""
    import torch  # deferred: torch takes a second, and linear methods do without it

    parts = range(max(1, math.ceil((count := math.prod(shape)) / CHUNK)))
    rows = [[uniforms(seed, name, f, part, min(CHUNK, count - part * CHUNK)) for part in parts] for f in fingerprints]
    return torch.stack([torch.cat(row).reshape(tuple(shape)) for row in rows])
