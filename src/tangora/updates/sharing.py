"""Sums of low-rank products that keep the rank where products share a factor.

Σ cₜ Bₜ Aₜ = [c₁B₁ | c₂B₂ | …] [A₁ ; A₂ ; …]     the ranks add up
Σ cₜ Bₜ A  = (Σ cₜ Bₜ) A                          one rank: adapters that were trained from one frozen A₀
Σ cₜ B Aₜ  = B (Σ cₜ Aₜ)                          the same for embeddings, which train A
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Factors", "Pair", "Term", "products", "stacked"]


class Factors(Protocol):
    """The factors of an update ``scaling * b @ a``. Taking ``b`` or ``a`` may read a file; the rest never does."""

    @property
    def b(self) -> Float[Tensor, "out r"]:
        """``[out, r]``."""

    @property
    def a(self) -> Float[Tensor, "r in"]:
        """``[r, in]``."""

    @property
    def scaling(self) -> float:
        """Multiplies the product: alpha / r for LoRA, alpha / sqrt(r) for rsLoRA, times any coefficient."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(out, in)``."""

    @property
    def rank(self) -> int:
        """Width of the factors, an upper bound of the matrix rank."""


Pair: TypeAlias = tuple[Tensor, Tensor]
"""The factors of one product: b ``[out, r]`` and a ``[r, in]``."""

Term: TypeAlias = tuple[float, Pair]
"""The coefficient of one product, and its factors."""

_B, _A = 0, 1
_OF_NUMPY = (torch.float32, torch.float16, torch.float64)
_Key: TypeAlias = tuple[Hashable, ...]


def products(terms: Sequence[tuple[Factors, float]]) -> tuple[list[Pair], float]:
    """Return pairs ``b, a`` and a scaling s with ``s Σ b a = Σ cₜ · updateₜ``, as few as shared factors allow.

    Factors in files are read one term after the other, and a shared one is kept once.
    """
    scalings = {factors.scaling for factors, _ in terms}
    common = scalings.pop() if len(scalings) == 1 else 1.0  # outside, so that factors stay as they are if they can
    each = ((c if common == f.scaling else c * f.scaling, (f.b, f.a)) for f, c in terms)
    return [_sum(group) for group in _groups(each)], common


def stacked(pairs: Sequence[Pair]) -> Pair:
    """Return ``[b₁ | b₂ | …]`` and ``[a₁ ; a₂ ; …]``."""
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([b for b, _ in pairs], 1), torch.cat([a for _, a in pairs], 0)


def _groups(terms: Iterable[Term]) -> list[list[Term]]:
    """Group the terms that share their ``a``, or else their ``b``; a shared factor becomes one object.

    Comparing every term with every group would read hundreds of adapters' factors hundreds of times. Different
    factors usually differ in their first row, so groups are looked up by it, and only a hit is compared in full.
    """
    groups: list[list[Term]] = []
    # A group of one term could still share either factor. With its second term it is settled which one, because a
    # third term must share that one too: then the sum of the other factors is all that is left to form.
    shared: dict[int, int] = {}
    # For each factor: first row -> the groups whose first term has it. Two tables, since a term may join by either.
    by_row: tuple[dict[_Key, list[int]], ...] = ({}, {})
    for factor, pair in terms:
        last = len(groups) - 1
        # The usual case, adapters of one run: their reader returns one object for equal bytes of A, so that
        # identity is enough, and not even the first row is read.
        if groups and groups[last][0][1][_A] is pair[_A] and shared.setdefault(last, _A) == _A:
            groups[last].append((factor, pair))
            continue
        # `a` before `b`: a sum over a shared A₀ is what fine-tuning from one start makes, and must win a tie.
        keys = {part: _first_row(pair[part]) for part in (_A, _B)}
        for part, key in keys.items():
            candidates = (g for g in by_row[part].get(key, ()) if shared.get(g, part) == part)
            match = next((g for g in candidates if _equal(groups[g][0][1][part], pair[part])), None)
            if match is not None:
                shared[match], first = part, groups[match][0][1]
                # The group's own object replaces the equal one, which frees it and lets `_sum` compare identities.
                groups[match].append((factor, (first[_B], pair[_A]) if part == _B else (pair[_B], first[_A])))
                break
        else:
            for part, key in keys.items():
                by_row[part].setdefault(key, []).append(len(groups))
            groups.append([(factor, pair)])
    return groups


def _sum(group: list[Term]) -> Pair:
    b, a = group[0][1]
    if all(pair[_A] is a for _, pair in group):
        return _weighted([(c, pair[_B]) for c, pair in group]), a
    return b, _weighted([(c, pair[_A]) for c, pair in group])


def _weighted(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Return ``Σ cₜ xₜ``: a new tensor only if something is computed, multiplied and added in two steps."""
    factor, first = terms[0]
    total = first * factor if factor != 1.0 else first
    if len(terms) > 1:
        # Not in place: `first` may be an adapter's own tensor. Not `add(alpha=...)`, which may fuse the two steps and
        # then rounds otherwise than the stream that writes checkpoints.
        total = total + terms[1][1] * terms[1][0]
    for factor, other in terms[2:]:
        total += other * factor
    return total


def _first_row(factor: Tensor) -> _Key:
    if factor.device.type == "cpu" and factor.dtype in _OF_NUMPY:  # three times as fast as below
        return factor.shape, factor.dtype, factor.detach().numpy()[:1].tobytes()
    # not `contiguous`, which leaves a column of one entry its strides
    row = factor.detach()[:1].clone(memory_format=torch.contiguous_format)
    return factor.shape, factor.dtype, row.view(torch.uint8).cpu().numpy().tobytes()


def _equal(x: Tensor, y: Tensor) -> bool:
    return x is y or torch.equal(x, y)
