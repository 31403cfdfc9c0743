"""Sums that methods share, computed in blocks of rows so that the stack is not copied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from torch import Tensor

    Array: TypeAlias = "np.ndarray[Any, Any]"

__all__ = ["elected_mean", "elected_sum", "in_blocks", "weighted_sum", "widened"]

# Entries of a task in a block: its temporaries stay in the cache, and torch does not split so few among threads,
# which costs ten times what it gains on a busy machine.
_BLOCK = 2**15


def widened(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in the dtype of sums: float32 for half precision, otherwise its own."""
    import torch  # deferred: torch takes a second, and linear methods do without it

    if tensor.dtype in (torch.float32, torch.float64):  # the usual case, without type promotion
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def in_blocks(
    function: Callable[..., Float[Tensor, "*rows"]],
    deltas: Float[Tensor, " tasks *param"],
    weights: Float[Tensor, "tasks *#param"],
    *stacked: Float[Tensor, " tasks *param"],
) -> Float[Tensor, "*param"]:
    """Return ``function(deltas, weights, *stacked)``, applied to blocks of rows; it must work entry by entry.

    The temporaries are as large as a block, not as the model.
    """
    import torch  # deferred: torch takes a second, and linear methods do without it

    if deltas.ndim == 1:
        return function(deltas, weights, *stacked).to(deltas.dtype)
    result = torch.empty(deltas.shape[1:], dtype=deltas.dtype, device=deltas.device)
    size = _BLOCK if torch.get_num_threads() > 1 else 2 * _BLOCK
    step = max(1, size // max(1, math.prod(deltas.shape[2:])))
    # Weights broadcast from the right, so they may lack the rows' dimension, or have one entry for it.
    varies = weights.ndim == deltas.ndim and weights.shape[1] > 1
    for start in range(0, deltas.shape[1], step):
        rows = slice(start, start + step)
        block = weights[:, rows] if varies else weights
        result[rows] = function(deltas[:, rows], block, *(s[:, rows] for s in stacked))
    return result


def weighted_sum(
    deltas: Iterable[Float[Tensor, "*param"]], weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """Return ``Σₜ wₜ·νₜ``, in float32 or better."""
    # Not addcmul: it may fuse the multiplication in full vectors but not in their tail, and then a chunk would
    # differ from the whole in the last bit.
    terms = (wide * weights[t].to(wide.dtype) for t, wide in enumerate(map(widened, deltas)))
    total = next(terms)
    for term in terms:
        total = total + term
    return total


def elected_mean(
    sparse: Sequence[Float[Tensor, "*param"]], weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """Apply TIES after its trim: elect a sign per entry, then average the entries that have it.

    ``γ = sgn(Σₜ ν̂ₜ)``, ``A = {t : sgn(ν̂ₜ) = γ ≠ 0}``, result ``Σ_{t ∈ A} wₜ·ν̂ₜ / |A|`` (arXiv:2306.01708,
    algorithm 1, with the weights inside the mean). ``sparse`` are the ν̂ₜ, in float32 or better.
    """
    return _elected(sparse, weights, mean=True)


def elected_sum(
    sparse: Sequence[Float[Tensor, "*param"]], weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """Return `elected_mean` without its division: ``Σ_{t ∈ A} wₜ·ν̂ₜ``."""
    return _elected(sparse, weights, mean=False)


def _elected(sparse: Sequence[Tensor], weights: Tensor, mean: bool) -> Tensor:
    if any(t.device.type != "cpu" or t.requires_grad for t in (*sparse, weights)):
        return _elected_by_torch(sparse, weights, mean)
    import torch  # deferred: torch takes a second, and linear methods do without it

    return torch.from_numpy(_elected_by_numpy([t.numpy() for t in sparse], weights.numpy(), mean))


def _elected_by_torch(sparse: Sequence[Tensor], weights: Tensor, mean: bool) -> Tensor:
    import torch  # deferred: torch takes a second, and linear methods do without it

    ballot = sparse[0].double()
    for delta in sparse[1:]:
        # In float64 a sum of float32 entries is exact for all but extreme ranges: whether it is zero, and so
        # the election, does not depend on the order of the tasks.
        ballot = ballot + delta
    sign = ballot.sign().to(sparse[0].dtype)
    # An entry times the elected sign is its magnitude if the two agree, and negative or zero otherwise.
    agreeing = [(delta * sign).relu() for delta in sparse]
    total = sign * weighted_sum(agreeing, weights)
    return total / torch.stack([entries.sign() for entries in agreeing]).sum(0).clamp(min=1) if mean else total


def _elected_by_numpy(sparse: Sequence[Array], weights: Array, mean: bool) -> Array:
    """Compute the same, bit for bit: on a CPU, NumPy compares in a fraction of the time, and here in place."""
    import numpy as np  # deferred: only sums of files need it

    ballot = sparse[0].astype(np.float64)
    for delta in sparse[1:]:
        ballot += delta
    sign = np.subtract((ballot > 0).view(np.int8), (ballot < 0).view(np.int8)).astype(sparse[0].dtype)
    total, zero = np.zeros_like(sign), np.zeros_like(sign)  # np.maximum with a scalar takes five times as long
    count = np.zeros(sign.shape, np.uint8 if len(sparse) < 256 else np.uint32)
    row = np.empty_like(sign)
    for delta, weight in zip(sparse, weights.astype(sign.dtype, copy=False), strict=True):
        np.maximum(np.multiply(delta, sign, out=row), zero, out=row)
        count += np.greater(row, zero).view(np.uint8)
        if weight.size > 1 or weight != 1:
            row *= weight
        total += row
    total *= sign
    if mean:
        count += np.equal(count, 0).view(np.uint8)
        total /= count.astype(sign.dtype)
    return total
