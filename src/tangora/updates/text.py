"""Updates as text: the digests that make up an adapter's fingerprint, and shapes for a ``repr``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["half_digest", "joined", "number_digest", "sizes", "tensor_digest"]

_FEW = 256


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 (hex) of a tensor's numbers in float32, whatever the dtype they are stored in.

    If all of them are bfloat16 numbers, only their upper halves are hashed: that takes half the time, and is what the
    file holds.
    """
    numbers = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    bits = numbers.reshape(-1).view(np.uint32)
    # the first few decide for all other numbers: no pass over the whole
    if not (bits[:_FEW] & 0xFFFF).any() and not (bits & 0xFFFF).any():
        return half_digest((bits >> 16).astype(np.uint16).view(np.uint8))
    return hashlib.sha256(bits.data).hexdigest()


@lru_cache
def number_digest(number: float) -> str:
    """Return the `tensor_digest` of one number; an adapter has the same scaling at most of its sites."""
    return tensor_digest(torch.tensor([number]))


def half_digest(upper: np.ndarray[Any, Any]) -> str:
    """Return the `tensor_digest` of bfloat16 numbers, from their bytes."""
    return hashlib.sha256(upper.data).hexdigest()


def joined(*parts: object) -> str:
    """Return the parts of a digest as one text, with a separator that no name contains."""
    return "\x1f".join(map(str, parts))


def sizes(shape: Sequence[int]) -> str:
    """Return a shape as a ``repr`` shows it.

    >>> sizes((768, 3072))
    '768x3072'
    """
    return "x".join(map(str, shape)) or "()"
