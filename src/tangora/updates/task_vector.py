"""`TaskVector`: what fine-tuning changed at all sites, as an element of a vector space.

The updates of single sites, `LowRank` and `Dense`, are in `tangora.updates.update` and are exported here.
This module depends on no files and no models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

from torch import Tensor

from tangora.errors import FusionError
from tangora.support.shown import html_table
from tangora.support.threads import in_threads
from tangora.updates.truncation import prepare
from tangora.updates.update import Dense, Factors, LowRank, Update, combine

__all__ = ["Dense", "Factors", "LowRank", "TaskVector", "Update", "combine"]

_SHOWN = 20  # sites of a table in a notebook


class TaskVector(Mapping[str, Update]):
    """An immutable mapping from site to update, with the algebra of a vector space.

    If only one operand has a site, the other is zero there.

    >>> import torch
    >>> one = TaskVector({"layer": LowRank(torch.ones(2, 1), torch.ones(1, 2))})
    >>> sum([0.5 * one, one / 2])
    TaskVector(1 sites, norm 2)
    >>> (0.5 * one + one / 2).dense()["layer"].sum().item()
    4.0
    >>> round(one.cosine(one), 6)
    1.0
    """

    def __init__(self, updates: Mapping[str, Update]) -> None:
        self._updates = MappingProxyType(dict(updates))

    def __getitem__(self, site: str) -> Update:
        return self._updates[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._updates)

    def __len__(self) -> int:
        return len(self._updates)

    def __repr__(self) -> str:
        return f"TaskVector({len(self)} sites, norm {self._norm:.4g})"

    def _repr_html_(self) -> str:
        """Return a table for notebooks: the sites with the largest norms."""
        norms = sorted(((update.norm(), site) for site, update in self.items()), reverse=True)
        rows = [[site, repr(self[site]), f"{norm:.4g}"] for norm, site in norms[:_SHOWN]]
        rest = [[f"and {len(norms) - _SHOWN} more", "", ""]] if len(norms) > _SHOWN else []
        return html_table(repr(self), ["site", "update", "norm"], [*rows, *rest])

    def dense(self) -> dict[str, Tensor]:
        """Return every update as a full tensor; this needs the memory of the weights."""
        return {site: update.dense() for site, update in self.items()}

    @classmethod
    def combination(
        cls, vectors: Sequence[TaskVector], coefficients: Sequence[float] | Mapping[str, Sequence[float]]
    ) -> TaskVector:
        """Return ``sum_t c_t * vectors_t``, with one coefficient per vector, or per site and vector.

        Raises:
            FusionError: the shapes of a site differ.
        """

        def one(site: str) -> Update:
            c = coefficients[site] if isinstance(coefficients, Mapping) else coefficients
            present = [(v[site], x) for v, x in zip(vectors, c, strict=True) if site in v]
            try:
                return combine([u for u, _ in present], [x for _, x in present])
            except FusionError as cause:
                raise FusionError(str(cause), where=site) from cause

        sites = list(dict.fromkeys(site for vector in vectors for site in vector))
        return cls(dict(zip(sites, in_threads(one, sites), strict=True)))

    def __add__(self, other: TaskVector) -> TaskVector:
        return TaskVector.combination([self, other], [1.0, 1.0])

    def __radd__(self, other: object) -> TaskVector:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # `sum` begins with 0

    def __sub__(self, other: TaskVector) -> TaskVector:
        return TaskVector.combination([self, other], [1.0, -1.0])

    def __mul__(self, number: float) -> TaskVector:
        return TaskVector({site: update.scaled(float(number)) for site, update in self.items()})

    __rmul__ = __mul__

    def __truediv__(self, number: float) -> TaskVector:
        return self * (1.0 / float(number))

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def dot(self, other: Mapping[str, Update]) -> float:
        """Return the inner product over all sites, accumulated in float64."""
        return math.fsum(update.dot(other[site]) for site, update in self.items() if site in other)

    def norm(self) -> float:
        """Return the Euclidean norm over all sites."""
        return self._norm

    @cached_property
    def _norm(self) -> float:
        return math.sqrt(math.fsum(update.norm() ** 2 for update in self.values()))

    def cosine(self, other: TaskVector) -> float:
        """Return the cosine similarity; 0 if one of the two is zero."""
        norms = self.norm() * other.norm()
        return self.dot(other) / norms if norms > 0 else 0.0

    def compress(self, rank: int) -> tuple[TaskVector, float]:
        """Return the task vector with every site truncated to ``rank``, and the relative error over all sites."""
        smaller, errors = self.compress_by_site(rank)
        return smaller, smaller.total_error(errors)

    def compress_by_site(self, rank: int) -> tuple[TaskVector, dict[str, float]]:
        """Return the task vector with every site truncated to ``rank``, and the relative error of each."""
        prepare(self.values())
        results = dict(zip(self, in_threads(lambda update: update.compress(rank), list(self.values())), strict=True))
        return TaskVector({s: u for s, (u, _) in results.items()}), {s: error for s, (_, error) in results.items()}

    def total_error(self, errors: Mapping[str, float]) -> float:
        """Return the relative error over all sites from that of every site, for a task vector that was truncated.

        What truncation keeps and what it cuts off are orthogonal, so the norm of what was kept and the relative error
        give the norm before truncation.
        """
        sites = [site for site, error in errors.items() if error < 1.0]
        kept = dict(zip(sites, in_threads(lambda site: self[site].norm() ** 2, sites), strict=True))
        original = {site: square / (1.0 - errors[site] ** 2) for site, square in kept.items()}
        total = math.fsum(original.values())
        lost = math.fsum(square * errors[site] ** 2 for site, square in original.items())
        return math.sqrt(lost / total) if total > 0 else 0.0
