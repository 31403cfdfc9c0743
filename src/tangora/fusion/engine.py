"""Apply a fusion method to task vectors: as coefficients if it is linear, else to single tensors or the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.fusion.computation import Computation
from tangora.fusion.contract import Coordinates
from tangora.fusion.mixing import mixed
from tangora.fusion.stacks import Memory, stacked
from tangora.fusion.uniforms import drawn
from tangora.support.threads import in_threads
from tangora.updates.short_sums import combine_to_rank
from tangora.updates.task_vector import Dense, LowRank, TaskVector, Update, combine
from tangora.updates.truncation import split, thin_svd

__all__ = ["Engine"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Engine:
    """Applies methods to the coordinates of adapters.

    Args:
        coordinates: the vectors that are fused.
        statistics: name and shape of a coordinate tensor -> its stacked statistics, for a method that needs them.
    """

    coordinates: Coordinates
    statistics: Callable[[str, Sequence[int]], Tensor | None] = lambda name, shape: None

    def linear(self, computation: Computation) -> TaskVector:
        """Return ``sum_t c_t * nu_t``; it is low-rank at sites where all vectors are."""
        if not computation.by_site:
            return TaskVector.combination(self._vectors, computation.coefficients(""))
        rows = {name: computation.coefficients(self._site(name)) for name in self._names()}
        return TaskVector.combination(self._vectors, rows)

    def linear_truncated(self, computation: Computation, rank: int) -> dict[str, tuple[Update, float]]:
        """Return the same with every site truncated to ``rank`` as soon as it is fused, and the sites' errors."""

        def one(name: str) -> tuple[Update, float]:
            coefficients = computation.coefficients(self._site(name))
            present = [(v[name], c) for v, c in zip(self._vectors, coefficients, strict=True) if name in v]
            return combine_to_rank([u for u, _ in present], [c for _, c in present], rank)

        names = self._names()
        return dict(zip(names, in_threads(one, names), strict=True))

    def dense(self, computation: Computation, then: Callable[[Update], _T]) -> dict[str, _T]:
        """Apply the method to stacked tensors; return name -> ``then`` of its result.

        Each thread holds one dense tensor at a time, or all of them if the method needs the whole model. Only the
        results of ``then`` are kept.
        """
        method, memory = computation.method, Memory()
        if method.granularity == "model":
            fused = self._fuse_model(computation)
            return dict(zip(fused, in_threads(then, list(fused.values())), strict=True))

        def one(name: str) -> _T:
            if (mixed := self._mixed(computation, name)) is not None:
                return then(mixed)
            factors = self._factors(name) if method.by_rows else self._rotated(name) if method.rotates_outputs else None
            deltas = stacked(self._updates(name), memory) if factors is None else factors[1]
            weights = self._column(computation, name, deltas).reshape(-1, *(1,) * (deltas.ndim - 1))
            extra: dict[str, Any] = {"uniforms": self._draws(computation, name, deltas)} if method.random else {}
            if method.statistics:
                extra["statistics"] = self.statistics(name, self._shape(name))
            result = memory.apart(method.function(deltas, weights=weights, **extra, **computation.parameters))
            if factors is None:
                return then(Dense(result))
            return then(LowRank(factors[0], result) if method.by_rows else _turned_back(factors[0], result))

        names = self._names()
        return dict(zip(names, in_threads(one, names), strict=True))

    def _mixed(self, computation: Computation, name: str) -> Update | None:
        """Return ``sum_t c_t * nu_t`` with coefficients from the inner products of the updates at one tensor.

        None if the method is another, or an update is not low-rank: then the dense tensors give the same.
        """
        updates = self._updates(name)
        if (coefficients := mixed(computation, self._site(name), updates)) is None:
            return None
        terms = [(update, c) for update, c in zip(updates, coefficients, strict=True) if update is not None]
        return combine([update for update, _ in terms], [c for _, c in terms])

    def _fuse_model(self, computation: Computation) -> TaskVector:
        """Apply the method to all sites at once, as one vector per task."""
        method, names = computation.method, self._names()
        shapes = [self._shape(name) for name in names]
        sizes = [math.prod(shape) for shape in shapes]
        deltas = torch.cat([_rows(stacked(self._updates(name))) for name in names], 1)
        extra = {}
        if method.random:
            extra = {"uniforms": torch.cat([_rows(self._draws(computation, n, deltas)) for n in names], 1)}
        columns = [self._column(computation, name, deltas)[:, None] for name in names]
        weights = columns[0]  # broadcast over all entries, unless the weights differ between sites
        if computation.by_site:
            weights = torch.cat([c.expand(-1, size) for c, size in zip(columns, sizes, strict=True)], 1)
        parts = method.function(deltas, weights=weights, **extra, **computation.parameters).split(sizes)
        return TaskVector({n: Dense(p.reshape(s).clone()) for n, p, s in zip(names, parts, shapes, strict=True)})

    @property
    def _vectors(self) -> Sequence[TaskVector]:
        return self.coordinates.vectors

    def _site(self, name: str) -> str:
        return self.coordinates.site_of(name)

    def _names(self) -> list[str]:
        return sorted({name for vector in self._vectors for name in vector})

    def _shape(self, name: str) -> tuple[int, ...]:
        return next(v[name].shape for v in self._vectors if name in v)

    def _updates(self, name: str) -> list[Update | None]:
        return [vector.get(name) for vector in self._vectors]

    def _factors(self, name: str) -> tuple[Tensor, Float[Tensor, "tasks ranks in"]] | None:
        """Return ``[s₁B₁ | s₂B₂ …]``, and per task its A in rows that are zero for the others; None if one is dense.

        A method that acts on the inputs alone commutes with the factors B: applied to the second result, it gives
        ``Σ sₜBₜ f(Aₜ)`` exactly, without a dense update.
        """
        present = {i: vector[name].factors() for i, vector in enumerate(self._vectors) if name in vector}
        low_rank = {i: factors for i, factors in present.items() if factors is not None}
        if len(low_rank) < len(present):
            return None
        ranks, rows, at = sum(f.rank for f in low_rank.values()), None, 0
        for i, factors in low_rank.items():
            a = factors.a
            rows = a.new_zeros(len(self._vectors), ranks, a.shape[1]) if rows is None else rows
            rows[i, at : at + factors.rank] = a
            at += factors.rank
        assert rows is not None
        return torch.cat([f.b * f.scaling for f in low_rank.values()], 1), rows

    def _rotated(self, name: str) -> tuple[Float[Tensor, "out k"], Float[Tensor, "tasks k in"]] | None:
        """Return an orthonormal basis Q of all outputs, and per task ``Qᵀν``; None if an update has no factors.

        With ``QR = [s₁B₁ | s₂B₂ …]``, ``Qᵀνₜ`` is the task's columns of R times Aₜ, and then rows of zeros: each task
        has a share of the rows as large as the largest rank. None, too, if there are no more outputs than rows.
        """
        present = {i: vector[name].factors() for i, vector in enumerate(self._vectors) if name in vector}
        factors = {i: f for i, f in present.items() if f is not None}
        rows = len(self._vectors) * max((f.rank for f in factors.values()), default=0)
        if len(factors) < len(present) or rows >= self._shape(name)[0]:
            return None
        read = {i: (f.b * f.scaling, f.a) for i, f in factors.items()}  # once: taking a factor may read a file
        q, r = torch.linalg.qr(torch.cat([b for b, _ in read.values()], 1).double())
        columns = r.split([b.shape[1] for b, _ in read.values()], 1)
        inside = {i: part @ a.double() for (i, (_, a)), part in zip(read.items(), columns, strict=True)}
        # The entries of Qᵀν may be larger than those of ν, and overflow in half precision.
        dtype = reduce(torch.promote_types, (factor.dtype for pair in read.values() for factor in pair), torch.float32)
        stack = q.new_zeros((len(self._vectors), rows, self._shape(name)[1]), dtype=dtype)
        for i, matrix in inside.items():
            stack[i, : len(matrix)] = matrix
        return q.to(dtype), stack

    def _column(self, computation: Computation, name: str, like: Tensor) -> Float[Tensor, " tasks"]:
        return torch.tensor(computation.row(self._site(name)), dtype=like.dtype, device=like.device)

    def _draws(self, computation: Computation, name: str, like: Tensor) -> Float[Tensor, " tasks *param"]:
        """Draw numbers in [0, 1) that depend only on the seed, the tensor and the adapter, not on other adapters."""
        return drawn(computation.seed, name, computation.fingerprints, self._shape(name)).to(like.device)


def _turned_back(basis: Float[Tensor, "out k"], result: Float[Tensor, "rows in"]) -> LowRank:
    """Return ``basis @ result`` as factors of its numerical rank; rows beyond the basis are zero."""
    u, s, vh = thin_svd(result[: basis.shape[1]].double())
    bound = max(basis.shape[0], result.shape[1]) * torch.finfo(basis.dtype).eps * s[0]
    rank = max(1, int((s > bound).sum()))
    return LowRank(*split(basis.double() @ u[:, :rank], s[:rank], vh[:rank], basis.dtype))


def _rows(stacked: Float[Tensor, " tasks *param"]) -> Float[Tensor, "tasks entries"]:
    return stacked.reshape(len(stacked), -1)
