"""The change of one site's weight: the contract `Update`, its two plain forms, and their linear combination.

A low-rank update stays low-rank: sums stack factors (`tangora.updates.sharing`), norms and inner products go through
the small ``r x r`` products, and so does truncation (`tangora.updates.truncation`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import ArgumentError, FusionError
from tangora.updates.sharing import Factors, products, stacked
from tangora.updates.text import joined, number_digest, sizes, tensor_digest
from tangora.updates.truncation import split, truncate_matrix, truncate_sum, whole_svd

__all__ = ["Dense", "Factors", "LowRank", "Update", "combine"]


@runtime_checkable
class Update(Protocol):
    """What is added to one site's weight: factors, a full tensor, or tensors in a file.

    An implementation defines the five members without a body here: ``shape``, ``dense``, ``factors``, ``scaled`` and
    ``digest``. The others follow from these; a form that can do better overrides them. Updates never change, and
    operators return new ones: ``v + w, v - w, -v, 2 * v, v / 2, sum([v, w])``, low-rank if all are.

    Callers branch on ``factors()``, not on ``isinstance``.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape, ``(out, in)`` for a matrix."""

    def dense(self) -> Float[Tensor, "..."]:
        """Return the full tensor; it is large for a low-rank update, so compute it for one site at a time."""

    def factors(self) -> Factors | None:
        """Return the factors of a low-rank update; None for any other. Nothing is read or computed yet."""

    def scaled(self, number: float) -> Update:
        """Return ``number`` times the update, held in memory; the update itself if that changes nothing."""

    def digest(self) -> str:
        """Return a text that depends only on shape and numbers, as they are factored; adapters' fingerprints use it."""

    def rows(self, start: int, stop: int, *, transposed: bool = False) -> Float[Tensor, "rows width"]:
        """Return the rows ``[start, stop)`` of the tensor, or of its transpose; from factors, no others are formed."""
        factors = self.factors()
        if factors is None:
            dense = self.dense()
            return (dense.T if transposed else dense)[start:stop]
        left, right = (factors.a.T, factors.b.T) if transposed else (factors.b, factors.a)
        return (left[start:stop] @ right) * factors.scaling

    def to(self, target: torch.dtype | torch.device | str) -> Update:
        """Return the same numbers in a dtype, or on a device; an update that computes them anew returns itself."""
        return self

    def dot(self, other: Update) -> float:
        """Return the inner product of all entries, accumulated in float64; for factors, through small products.

        Raises:
            FusionError: the shapes differ.
        """
        _same_shape([self, other])
        mine, theirs = self.factors(), other.factors()
        if mine is None:
            if theirs is not None:
                return other.dot(self)
            return float((self.dense().double() * other.dense().double()).sum())
        b, a = mine.b.double(), mine.a.double()
        if theirs is None:
            return mine.scaling * float(((b.T @ other.dense().double()) * a).sum())
        their_b, their_a = (b, a) if theirs is mine else (theirs.b.double(), theirs.a.double())
        product = ((b.T @ their_b) * (a @ their_a.T)).sum()
        return mine.scaling * theirs.scaling * float(product)

    def norm(self) -> float:
        """Return the Euclidean (Frobenius) norm of all entries."""
        return math.sqrt(max(self.dot(self), 0.0))

    def compress(self, rank: int) -> tuple[Update, float]:
        """Return the best approximation of at most ``rank`` (Eckart-Young), and its relative Frobenius error.

        Factors are truncated through their ``r x r`` products in float64, without the matrix. A vector is returned
        unchanged, with error 0, and so is an update with factors of at most this rank.

        Raises:
            ArgumentError: ``rank`` is smaller than 1, or the tensor has more than two dimensions.
        """
        if rank < 1:
            raise ArgumentError("rank must be at least 1", got=rank)
        factors = self.factors()
        if len(self.shape) == 1 or (factors is not None and factors.rank <= rank):
            return self, 0.0
        kept = min(rank, *self.shape)
        if factors is None:
            matrix = _matrix(self.dense())
            u, s, vh, error = truncate_matrix(matrix, kept)
            return LowRank(*split(u, s, vh, matrix.dtype)), error
        b = factors.b
        u, s, vh, error = truncate_sum([(b, factors.a)], kept, factors.scaling)
        return LowRank(*split(u, s, vh, b.dtype)), error

    def __add__(self, other: Update) -> Update:
        return combine([self, other], [1.0, 1.0])

    def __radd__(self, other: object) -> Update:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # `sum` begins with 0

    def __sub__(self, other: Update) -> Update:
        return combine([self, other], [1.0, -1.0])

    def __mul__(self, number: float) -> Update:
        return self.scaled(float(number))

    def __rmul__(self, number: float) -> Update:
        return self.scaled(float(number))

    def __truediv__(self, number: float) -> Update:
        return self.scaled(1.0 / float(number))

    def __neg__(self) -> Update:
        return self.scaled(-1.0)


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Update):
    """An update ``scaling * b @ a`` in memory; the product is never formed unless `dense` is called.

    Args:
        b: ``[out, r]``.
        a: ``[r, in]``.
        scaling: alpha / r for LoRA, alpha / sqrt(r) for rsLoRA, times any coefficient.

    Raises:
        ArgumentError: the factors do not fit.

    >>> import torch
    >>> update = LowRank(torch.ones(3, 1), torch.ones(1, 2), scaling=2.0)
    >>> update, (update + update).norm()
    (LowRank(3x2, rank 1, scaling 2), 9.797958971132712)
    """

    b: Float[Tensor, "out r"]
    a: Float[Tensor, "r in"]
    scaling: float = 1.0

    def __post_init__(self) -> None:
        if self.b.ndim != 2 or self.a.ndim != 2 or self.b.shape[1] != self.a.shape[0]:
            got = f"b {tuple(self.b.shape)}, a {tuple(self.a.shape)}"
            raise ArgumentError("factors must be b [out, r] and a [r, in] of one rank", got=got)

    def __repr__(self) -> str:
        return f"LowRank({sizes(self.shape)}, rank {self.rank}, scaling {self.scaling:g})"

    @property
    def shape(self) -> tuple[int, ...]:
        """``(out, in)``."""
        return (self.b.shape[0], self.a.shape[1])

    @property
    def rank(self) -> int:
        """Width of the factors, an upper bound of the matrix rank."""
        return self.a.shape[0]

    def factors(self) -> LowRank:
        """Return itself."""
        return self

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the matrix."""
        product = self.b @ self.a
        return product if self.scaling == 1.0 else product.mul_(self.scaling)

    def scaled(self, number: float) -> LowRank:
        """Return the same factors with another scaling."""
        return self if number == 1.0 else LowRank(self.b, self.a, self.scaling * number)

    def to(self, target: torch.dtype | torch.device | str) -> LowRank:
        """Return the same factors in a dtype, or on a device."""
        return LowRank(self.b.to(target).contiguous(), self.a.to(target).contiguous(), self.scaling)

    def digest(self) -> str:
        """Return shape, rank, and the digests of b, a and the scaling."""
        numbers = (tensor_digest(self.b), tensor_digest(self.a), number_digest(self.scaling))
        return joined(self.shape, self.rank, *numbers)


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Update):
    """An update given by its full tensor: from full fine-tuning, or a non-linear fusion of low-rank ones.

    >>> import torch
    >>> Dense(torch.ones(3, 2)) / 2
    Dense(3x2)
    """

    weight: Float[Tensor, "..."]

    def __repr__(self) -> str:
        return f"Dense({sizes(self.shape)})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.weight.shape)

    def factors(self) -> None:
        """Return None: a full tensor has no factors."""
        return

    def dense(self) -> Float[Tensor, "..."]:
        """Return the tensor."""
        return self.weight

    def scaled(self, number: float) -> Dense:
        """Return ``number`` times the tensor."""
        return self if number == 1.0 else Dense(self.weight * number)

    def to(self, target: torch.dtype | torch.device | str) -> Dense:
        """Return the tensor in a dtype, or on a device."""
        return Dense(self.weight.to(target))

    def digest(self) -> str:
        """Return shape and digest of the tensor."""
        return joined(self.shape, tensor_digest(self.weight))

    def low_rank(self, tolerance: float | None = None) -> LowRank:
        """Return the same matrix as factors of its numerical rank.

        Args:
            tolerance: singular values up to this fraction of the largest are rounding noise of the dtype and are
                dropped; the default is ``max(shape) * eps``, that of `torch.linalg.matrix_rank`.

        Raises:
            ArgumentError: the update is no matrix.
        """
        u, s, vh = whole_svd(_matrix(self.weight))
        if tolerance is None:
            tolerance = max(self.weight.shape) * torch.finfo(self.weight.dtype).eps
        rank = max(1, int((s > tolerance * s[0]).sum()))
        return LowRank(*split(u[:, :rank], s[:rank], vh[:rank], self.weight.dtype))


def combine(updates: Sequence[Update], coefficients: Sequence[float]) -> Update:
    """Return the linear combination ``sum_t c_t * updates_t`` of one site, low-rank if every term is.

    Terms with an equal factor share it and add the other one (adapters that share A₀); otherwise the ranks add up. A
    term with coefficient 0 is left out.

    Raises:
        ArgumentError: there is nothing to combine, or not one coefficient per update.
        FusionError: the shapes differ.
    """
    if not updates or len(updates) != len(coefficients):
        got = f"{len(updates)} updates, {len(coefficients)} coefficients"
        raise ArgumentError("one coefficient per update", got=got)
    _same_shape(updates)
    terms = [(u, float(c)) for u, c in zip(updates, coefficients, strict=True) if c != 0.0]
    if not terms:
        nothing = updates[0].factors()
        return LowRank(torch.zeros_like(nothing.b), nothing.a) if nothing is not None else updates[0].scaled(0.0)
    if len(terms) == 1:
        return terms[0][0].scaled(terms[0][1])
    low_rank = [(factors, c) for u, c in terms if (factors := u.factors()) is not None]
    if len(low_rank) == len(terms):
        pairs, common = products(low_rank)
        return LowRank(*stacked(pairs), common)
    total = terms[0][0].dense() * terms[0][1]
    for update, c in terms[1:]:
        total = torch.add(total, update.dense(), alpha=c)
    return Dense(total)


def _matrix(tensor: Tensor) -> Float[Tensor, "out in"]:
    if tensor.ndim != 2:
        raise ArgumentError("only a matrix has a low-rank form", got=tuple(tensor.shape))
    return tensor


def _same_shape(updates: Sequence[Update]) -> None:
    shapes = list(dict.fromkeys(u.shape for u in updates))
    if len(shapes) > 1:
        raise FusionError("updates of one site must have one shape", got=shapes)
