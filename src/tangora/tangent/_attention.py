"""The rule of attention: the primal stays fused, since the fused kernels have no forward derivative.

    Ȯ = P V̇ + (P ∘ Ṡ) V − rowsum(P ∘ Ṡ) ∘ O,     Ṡ = scale · (Q̇ Kᵀ + Q K̇ᵀ) + Ṁ,     P = softmax(scale · Q Kᵀ + M)

with the mask M, which has a tangent if it contains a learned bias. With dropout, P and P ∘ Ṡ are masked before the
products with V̇ and V. Otherwise the tangent is computed for a block of queries at a time: the memory for P is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tangora.tangent._numbers import dual, parts, plus

__all__ = ["attention"]

BLOCK = 2**24
"""Entries of P that are computed at a time: 64 MiB in float32."""

Pair: TypeAlias = tuple[Any, Tensor | None]
"""Primal and tangent."""


def attention(
    query: Float[Tensor, "*batch l d"],
    key: Float[Tensor, "*batch m d"],
    value: Float[Tensor, "*batch m v"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Do what `torch.nn.functional.scaled_dot_product_attention` does, in dual numbers."""
    q, k, v, mask = parts(query), parts(key), parts(value), parts(attn_mask)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    groups = query.shape[-3] // key.shape[-3] if enable_gqa else 1
    if dropout_p > 0:
        return _with_dropout(q, _repeated(k, groups), _repeated(v, groups), mask, dropout_p, is_causal, factor)
    primal = F.scaled_dot_product_attention(
        q[0], k[0], v[0], mask[0], 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    with torch.no_grad():
        k, v, tangents = _repeated(k, groups), _repeated(v, groups), []
        for rows in _blocks(query, key):
            some, at = _rows(q, rows), _rows(mask, rows)
            p = _probabilities(some[0], k[0], at[0], rows.start if is_causal else None, factor)
            tangents.append(_pushed(p, _scores(some, k, at[1], factor), v, primal[..., rows, :]))
    return dual(primal, tangents[0] if len(tangents) == 1 else torch.cat(tangents, -2))


def _with_dropout(q: Pair, k: Pair, v: Pair, mask: Pair, share: float, causal: bool, factor: float) -> Tensor:
    """Compute the primal from P, since the tangent needs its dropout, which a fused kernel does not return."""
    p = _probabilities(q[0], k[0], mask[0], 0 if causal else None, factor)
    kept = F.dropout(torch.ones_like(p), share)
    primal = (p * kept) @ v[0]
    with torch.no_grad():
        tangent = _pushed(p, _scores(q, k, mask[1], factor), v, primal, kept)
    return dual(primal, tangent)


def _pushed(p: Tensor, scores: Tensor | None, v: Pair, output: Tensor, kept: Tensor | None = None) -> Tensor:
    """Return Ȯ from P and Ṡ."""
    tangent = None if v[1] is None else (p if kept is None else p * kept) @ v[1]
    if scores is None:
        return torch.zeros_like(output) if tangent is None else tangent
    weighted = scores * p
    mean = weighted.sum(-1, keepdim=True)
    return plus(tangent, (weighted if kept is None else weighted * kept) @ v[0]) - mean * output


def _scores(q: Pair, k: Pair, mask: Tensor | None, factor: float) -> Tensor | None:
    """Return Ṡ."""
    scores = None if q[1] is None else (q[1] * factor) @ k[0].transpose(-2, -1)
    if k[1] is not None:
        scores = plus(scores, (q[0] * factor) @ k[1].transpose(-2, -1))
    return scores if mask is None else plus(scores, mask)


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, first: int | None, factor: float) -> Tensor:
    """Return P; ``first`` is the position of the first query if attention is causal, else None."""
    scores = (q * factor) @ k.transpose(-2, -1)
    if first is not None:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(first)
        scores.masked_fill_(~causal, -math.inf)
    if mask is not None and mask.dtype == torch.bool:
        scores.masked_fill_(~mask, -math.inf)
    elif mask is not None:
        scores.add_(mask)
    return scores.softmax(-1).nan_to_num(0.0)  # a row that attends to nothing gets zeros, as in the fused kernels


def _blocks(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Return ranges of queries."""
    length, heads = query.shape[-2], math.prod(query.shape[:-2])
    step = max(1, BLOCK // max(1, heads * key.shape[-2]))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _rows(pair: Pair, rows: slice) -> Pair:
    """Return the part for some queries; a mask may be None, or have one row for all of them."""
    primal, tangent = (t if t is None or t.ndim < 2 or t.shape[-2] == 1 else t[..., rows, :] for t in pair)
    return primal, tangent


def _repeated(pair: Pair, groups: int) -> Pair:
    """Return keys or values for every head of their group."""
    primal, tangent = (t if t is None or groups == 1 else t.repeat_interleave(groups, -3) for t in pair)
    return primal, tangent
