"""The change of one site's weight, low-rank or whole, and its algebra.

A low-rank update stays low-rank: sums stack factors, norms and inner products go through the small
``r x r`` products; truncation too (`tangora.updates.truncation`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import FusionError
from tangora.updates.truncation import truncate_factors, truncate_matrix, whole_svd

__all__ = ["Dense", "LowRank", "Update", "combine"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """An update ``scaling * b @ a`` that is never formed unless `dense` is called.

    Args:
        b: ``[out, r]``.
        a: ``[r, in]``.
        scaling: alpha / r for LoRA, alpha / sqrt(r) for rsLoRA, times any coefficient.

    Raises:
        FusionError: the factors do not fit.

    >>> import torch
    >>> update = LowRank(torch.ones(3, 1), torch.ones(1, 2), scaling=2.0)
    >>> (update + update).shape, update.norm()
    ((3, 2), 4.898979485566356)
    """

    b: Float[Tensor, "out r"]
    a: Float[Tensor, "r in"]
    scaling: float = 1.0

    def __post_init__(self) -> None:
        if self.b.ndim != 2 or self.a.ndim != 2 or self.b.shape[1] != self.a.shape[0]:
            got = f"b {tuple(self.b.shape)}, a {tuple(self.a.shape)}"
            raise FusionError("factors must be b [out, r] and a [r, in] of one rank", got=got)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(out, in)``."""
        return (self.b.shape[0], self.a.shape[1])

    @property
    def rank(self) -> int:
        """Width of the factors, an upper bound of the matrix rank."""
        return self.a.shape[0]

    def dense(self) -> Float[Tensor, "out in"]:
        """The matrix itself."""
        product = self.b @ self.a
        return product if self.scaling == 1.0 else product.mul_(self.scaling)

    def __add__(self, other: Update) -> Update:
        return combine([self, other], [1.0, 1.0])

    def __sub__(self, other: Update) -> Update:
        return combine([self, other], [1.0, -1.0])

    def __mul__(self, number: float) -> LowRank:
        return LowRank(self.b, self.a, self.scaling * float(number))

    __rmul__ = __mul__

    def __truediv__(self, number: float) -> LowRank:
        return self * (1.0 / float(number))

    def __neg__(self) -> LowRank:
        return self * -1.0

    def dot(self, other: Update) -> float:
        """Frobenius inner product, accumulated in float64 over ``r x r`` (or ``r x in``) products."""
        _same_shape([self, other])
        b, a = self.b.double(), self.a.double()
        if isinstance(other, Dense):
            product = ((b.T @ other.weight.double()) * a).sum()
            return self.scaling * float(product)
        product = ((b.T @ other.b.double()) * (a @ other.a.double().T)).sum()
        return self.scaling * other.scaling * float(product)

    def norm(self) -> float:
        """Frobenius norm."""
        return math.sqrt(max(self.dot(self), 0.0))

    def compress(self, rank: int) -> tuple[LowRank, float]:
        """The best approximation of at most ``rank`` (Eckart-Young) and its relative Frobenius error.

        Through ``r x r`` products of the factors, in float64, never the matrix; an update whose rank is already
        small enough is returned as it is, with error 0.
        """
        _check_rank(rank)
        if rank >= self.rank:
            return self, 0.0
        u, s, vh, error = truncate_factors(self.b, self.a.double() * self.scaling, min(rank, *self.shape))
        return _factored(u, s, vh, self.b.dtype), error


@dataclass(frozen=True, eq=False)
class Dense:
    """An update given by the whole tensor: full fine-tuning, or a non-linear fusion of low-rank ones."""

    weight: Float[Tensor, "..."]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.weight.shape)

    def dense(self) -> Float[Tensor, "..."]:
        """The tensor itself."""
        return self.weight

    def __add__(self, other: Update) -> Update:
        return combine([self, other], [1.0, 1.0])

    def __sub__(self, other: Update) -> Update:
        return combine([self, other], [1.0, -1.0])

    def __mul__(self, number: float) -> Dense:
        return Dense(self.weight * float(number))

    __rmul__ = __mul__

    def __truediv__(self, number: float) -> Dense:
        return self * (1.0 / float(number))

    def __neg__(self) -> Dense:
        return self * -1.0

    def dot(self, other: Update) -> float:
        """Inner product of all entries, accumulated in float64."""
        if isinstance(other, LowRank):
            return other.dot(self)
        _same_shape([self, other])
        return float((self.weight.double() * other.weight.double()).sum())

    def norm(self) -> float:
        """Euclidean norm of all entries."""
        return math.sqrt(self.dot(self))

    def compress(self, rank: int) -> tuple[Update, float]:
        """The best approximation of at most ``rank``, and its relative Frobenius error; a vector stays as it is.

        Raises:
            FusionError: the tensor has more than two dimensions, or ``rank`` is smaller than 1.
        """
        _check_rank(rank)
        if self.weight.ndim == 1:
            return self, 0.0
        u, s, vh, error = truncate_matrix(self._matrix(), min(rank, *self.shape))
        return _factored(u, s, vh, self.weight.dtype), error

    def low_rank(self, tolerance: float | None = None) -> LowRank:
        """The same matrix as factors of its numerical rank.

        Singular values up to ``tolerance`` times the largest are rounding noise of the dtype and are dropped;
        the default is ``max(shape) * eps``, that of `torch.linalg.matrix_rank`.
        """
        u, s, vh = whole_svd(self._matrix())
        if tolerance is None:
            tolerance = max(self.weight.shape) * torch.finfo(self.weight.dtype).eps
        rank = max(1, int((s > tolerance * s[0]).sum()))
        return _factored(u[:, :rank], s[:rank], vh[:rank], self.weight.dtype)

    def _matrix(self) -> Float[Tensor, "out in"]:
        if self.weight.ndim != 2:
            raise FusionError("only a matrix has a low-rank form", got=self.shape)
        return self.weight


Update: TypeAlias = LowRank | Dense

_Term: TypeAlias = tuple[float, tuple[Tensor, Tensor]]  # factor, (b, a)
_B, _A = 0, 1


def combine(updates: Sequence[Update], coefficients: Sequence[float]) -> Update:
    """The linear combination ``sum_t c_t * updates_t`` of one site, low-rank where every term is.

    Terms with an equal factor share it and add the other one (adapters that share A₀); other ranks add up. A term
    whose coefficient is 0 is left out.

    Raises:
        FusionError: the shapes differ, or there is nothing to combine.
    """
    if not updates or len(updates) != len(coefficients):
        raise FusionError("one coefficient per update", got=f"{len(updates)} updates, {len(coefficients)} coefficients")
    _same_shape(updates)
    terms = [(u, float(c)) for u, c in zip(updates, coefficients, strict=True) if c != 0.0]
    if not terms:
        first = updates[0]
        return LowRank(torch.zeros_like(first.b), first.a) if isinstance(first, LowRank) else first * 0.0
    low_rank = [(u, c) for u, c in terms if isinstance(u, LowRank)]
    if len(low_rank) == len(terms):
        return _combine_low_rank(low_rank)
    if len(terms) == 1 and terms[0][1] == 1.0:
        return terms[0][0]
    total = terms[0][0].dense() * terms[0][1]
    for update, c in terms[1:]:
        total = torch.add(total, update.dense(), alpha=c)
    return Dense(total)


def _combine_low_rank(terms: Sequence[tuple[LowRank, float]]) -> LowRank:
    if len(terms) == 1:
        update, c = terms[0]
        return update if c == 1.0 and type(update) is LowRank else update * c  # what is in a file is read
    scalings = {u.scaling for u, _ in terms}
    common = scalings.pop() if len(scalings) == 1 else 1.0  # factors stay as they are wherever possible
    factors = ((c if common == u.scaling else c * u.scaling, (u.b, u.a)) for u, c in terms)
    sums = [_sum(group) for group in _groups(factors)]
    if len(sums) == 1:
        return LowRank(*sums[0], common)
    return LowRank(torch.cat([b for b, _ in sums], 1), torch.cat([a for _, a in sums], 0), common)


def _groups(terms: Iterable[_Term]) -> list[list[_Term]]:
    """Terms ``factor * b @ a`` put together that share their ``a``, or else their ``b``; what is shared is one object.

    They are found by their first rows, in which different factors differ already, so that hundreds of terms take a
    look each.
    """
    groups: list[list[_Term]] = []
    shared: dict[int, int] = {}  # group -> which part its terms share, once there are two
    known: tuple[dict[Any, list[int]], ...] = ({}, {})  # of each part: first row -> groups whose first term has it
    for factor, pair in terms:
        last = len(groups) - 1
        if groups and groups[last][0][1][_A] is pair[_A] and shared.setdefault(last, _A) == _A:
            groups[last].append((factor, pair))  # one object, as read from files: no look at its rows
            continue
        keys = {part: _first_row(pair[part]) for part in (_A, _B)}
        for part, key in keys.items():
            same = (g for g in known[part].get(key, ()) if shared.get(g, part) == part)
            found = next((g for g in same if _equal(groups[g][0][1][part], pair[part])), None)
            if found is not None:
                shared[found], first = part, groups[found][0][1]
                groups[found].append((factor, (first[_B], pair[_A]) if part == _B else (pair[_B], first[_A])))
                break
        else:
            for part, key in keys.items():
                known[part].setdefault(key, []).append(len(groups))
            groups.append([(factor, pair)])
    return groups


def _sum(group: list[_Term]) -> tuple[Tensor, Tensor]:
    b, a = group[0][1]
    if all(pair[_A] is a for _, pair in group):
        return _weighted([(c, pair[_B]) for c, pair in group]), a
    return b, _weighted([(c, pair[_A]) for c, pair in group])


def _weighted(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """A new tensor only where something is computed; multiplied and added in two steps, as everywhere."""
    factor, first = terms[0]
    total = first * factor if factor != 1.0 else first
    if len(terms) > 1:
        total = total + terms[1][1] * terms[1][0]
    for factor, other in terms[2:]:
        total += other * factor
    return total


def _first_row(factor: Tensor) -> tuple[Any, ...]:
    # not `contiguous`, which leaves a column of one entry its strides
    row = factor.detach()[:1].clone(memory_format=torch.contiguous_format)
    return factor.shape, factor.dtype, row.view(torch.uint8).cpu().numpy().tobytes()


def _equal(x: Tensor, y: Tensor) -> bool:
    return x is y or torch.equal(x, y)


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise FusionError("rank must be at least 1", got=rank)


def _factored(u: Tensor, s: Tensor, vh: Tensor, dtype: torch.dtype) -> LowRank:
    root = s.sqrt()  # split evenly, so that neither factor overflows in half precision
    return LowRank((u * root).to(dtype).contiguous(), (root[:, None] * vh).to(dtype).contiguous())


def _same_shape(updates: Sequence[Update]) -> None:
    shapes = list(dict.fromkeys(u.shape for u in updates))
    if len(shapes) > 1:
        raise FusionError("updates of one site must have one shape", got=shapes)
