"""A fusion method applied to task vectors: on coefficients where it is linear, else tensor by tensor or whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.fusion.uniforms import drawn
from tangora.fusion.weights import WeightTable
from tangora.methods import Method
from tangora.support.threads import in_threads
from tangora.updates.task_vector import Dense, LowRank, TaskVector, Update, combine

__all__ = ["Engine"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Engine:
    """Task vectors and what their tensors are called.

    Args:
        vectors: one per adapter, over coordinate tensors; one that a vector does not have is zero there.
        site_of: coordinate tensor -> site, by which weights are given.
        seed, fingerprints: what decides every random number, with the tensor's name.
        statistics: those of a coordinate tensor and its shape, stacked, for a method that needs them.
    """

    vectors: Sequence[TaskVector]
    site_of: Callable[[str], str]
    seed: int
    fingerprints: Sequence[str]
    statistics: Callable[[str, Sequence[int]], Tensor | None] = lambda name, shape: None

    def linear(self, method: Method, table: WeightTable, parameters: Mapping[str, Any]) -> TaskVector:
        """``sum_t c_t * nu_t``, which is low-rank where they are."""
        if not isinstance(table, dict):
            return TaskVector.combination(self.vectors, method.coefficients(table, parameters))
        rows = {name: method.coefficients(table[self.site_of(name)], parameters) for name in self._names()}
        return TaskVector.combination(self.vectors, rows)

    def linear_cut(
        self, method: Method, table: WeightTable, parameters: Mapping[str, Any], rank: int
    ) -> dict[str, tuple[Update, float]]:
        """The same, every site cut to ``rank`` while it is at hand, with its error."""

        def one(name: str) -> tuple[Update, float]:
            row = table[self.site_of(name)] if isinstance(table, dict) else table
            coefficients = method.coefficients(row, parameters)
            present = [(v[name], c) for v, c in zip(self.vectors, coefficients, strict=True) if name in v]
            return combine([u for u, _ in present], [c for _, c in present]).compress(rank)

        names = self._names()
        return dict(zip(names, in_threads(one, names), strict=True))

    def dense(
        self, method: Method, table: WeightTable, parameters: Mapping[str, Any], then: Callable[[Update], _T]
    ) -> dict[str, _T]:
        """``then`` of what the method makes of stacked tensors, by name.

        One tensor a thread is dense at a time, or all of them where the method must see the whole model: what
        ``then`` returns is all that stays.
        """
        if method.granularity == "model":
            whole = self._whole(method, table, parameters)
            return dict(zip(whole, in_threads(then, list(whole.values())), strict=True))

        def one(name: str) -> _T:
            factors = self._factors(name) if method.by_rows else None
            deltas = self._stacked(name) if factors is None else factors[1]
            weights = self._column(table, name, deltas).reshape(-1, *(1,) * (deltas.ndim - 1))
            given: dict[str, Any] = {"uniforms": self._draws(name, deltas.device)} if method.random else {}
            if method.statistics:
                given["statistics"] = self.statistics(name, self._shape(name))
            made = method.function(deltas, weights=weights, **given, **parameters)
            return then(Dense(made) if factors is None else LowRank(factors[0], made))

        names = self._names()
        return dict(zip(names, in_threads(one, names), strict=True))

    def _whole(self, method: Method, table: WeightTable, parameters: Mapping[str, Any]) -> TaskVector:
        names = self._names()
        shapes = [self._shape(name) for name in names]
        sizes = [math.prod(shape) for shape in shapes]
        deltas = torch.cat([_rows(self._stacked(name)) for name in names], 1)
        given = {}
        if method.random:
            given = {"uniforms": torch.cat([_rows(self._draws(n, deltas.device)) for n in names], 1)}
        weights = self._column(table, names[0], deltas)[:, None]
        if isinstance(table, dict):
            columns = [self._column(table, name, deltas)[:, None] for name in names]
            weights = torch.cat([c.expand(-1, size) for c, size in zip(columns, sizes, strict=True)], 1)
        pieces = method.function(deltas, weights=weights, **given, **parameters).split(sizes)
        return TaskVector({n: Dense(p.reshape(s).clone()) for n, p, s in zip(names, pieces, shapes, strict=True)})

    def _names(self) -> list[str]:
        return sorted({name for vector in self.vectors for name in vector})

    def _shape(self, name: str) -> tuple[int, ...]:
        return next(v[name].shape for v in self.vectors if name in v)

    def _stacked(self, name: str) -> Float[Tensor, "tasks *param"]:
        stacked: Tensor | None = None
        for i, vector in enumerate(self.vectors):
            if name in vector:
                dense = vector[name].dense()
                if stacked is None:
                    stacked = dense.new_zeros(len(self.vectors), *dense.shape)
                stacked = stacked.to(torch.promote_types(stacked.dtype, dense.dtype))
                stacked[i] = dense
        assert stacked is not None
        return stacked

    def _factors(self, name: str) -> tuple[Tensor, Float[Tensor, "tasks ranks in"]] | None:
        """``[s₁B₁ | s₂B₂ …]``, and per task A in its own rows, zero in the others'; None where an update is dense.

        A method that treats rows alike and linearly gives ``Σ sₜBₜ f(Aₜ)`` from these: exact, and never dense.
        """
        present = {i: vector[name].factors() for i, vector in enumerate(self.vectors) if name in vector}
        low_rank = {i: factors for i, factors in present.items() if factors is not None}
        if len(low_rank) < len(present):
            return None
        ranks, rows, at = sum(f.rank for f in low_rank.values()), None, 0
        for i, factors in low_rank.items():
            a = factors.a
            rows = a.new_zeros(len(self.vectors), ranks, a.shape[1]) if rows is None else rows
            rows[i, at : at + factors.rank] = a
            at += factors.rank
        assert rows is not None
        return torch.cat([f.b * f.scaling for f in low_rank.values()], 1), rows

    def _column(self, table: WeightTable, name: str, like: Tensor) -> Float[Tensor, "tasks"]:
        row = table[self.site_of(name)] if isinstance(table, dict) else table
        return torch.tensor(row, dtype=like.dtype, device=like.device)

    def _draws(self, name: str, device: torch.device) -> Float[Tensor, "tasks *param"]:
        """Numbers in [0, 1) that depend on the seed, the tensor and the adapter alone, not on order or company."""
        return drawn(self.seed, name, self.fingerprints, self._shape(name)).to(device)


def _rows(stacked: Float[Tensor, "tasks *param"]) -> Float[Tensor, "tasks entries"]:
    return stacked.reshape(len(stacked), -1)
