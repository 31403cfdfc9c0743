"""What a rank costs: singular values of updates, the least rank under a bound, and the error that a rank would leave.

By Eckart and Young, the best approximation of rank r leaves ``(Σ_{i>r} σᵢ²)^½`` of an update. For factors b, a the σᵢ
are those of an r x r core: with ``bᵀb = LLᵀ``, the eigenvalues of ``Lᵀ(aaᵀ)L`` are the σᵢ². No matrix is formed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from tangora.errors import ArgumentError
from tangora.support.threads import in_threads
from tangora.updates.truncation import core_values, whole_svd
from tangora.updates.update import Factors, Update

__all__ = ["check_bound", "error_at", "least_rank", "spectra_of", "spectrum", "work"]

Spectrum = Float[Tensor, " rank"]
"""Singular values in float64, descending."""


def spectrum(update: Update) -> Spectrum:
    """Return the singular values of an update of a matrix, in float64, descending; of factors, at most their rank.

    Values below about 1e-8 of the largest are rounding noise if they come from factors.

    >>> import torch
    >>> from tangora.updates.update import LowRank
    >>> spectrum(LowRank(torch.eye(3)[:, :2], torch.tensor([[0.0, 3.0], [4.0, 0.0]]))).tolist()
    [4.0, 3.0]
    """
    factors = update.factors()
    if factors is None:
        return whole_svd(update.dense())[1]
    return core_values(factors.b.double(), factors.a.double() * factors.scaling)[: min(factors.rank, *factors.shape)]


def spectra_of(updates: Mapping[str, Update]) -> dict[str, Spectrum]:
    """Return site -> singular values, for the updates that are matrices."""
    matrices = {site: update for site, update in updates.items() if len(update.shape) == 2}
    return dict(zip(matrices, in_threads(spectrum, list(matrices.values())), strict=True))


def work(update: Factors) -> int:
    """Return the number of multiplications that `spectrum` takes for factors, about."""
    r = update.rank
    return r * r * (sum(update.shape) + 10 * r)


def least_rank(values: Spectrum, bound: float, square: float | None = None) -> int:
    """Return the least rank, at least 1, whose relative error (Frobenius) is at most ``bound``.

    Args:
        values: the largest singular values, or all of them.
        bound: of the error.
        square: the squared norm of the matrix; if None, that of ``values``.

    Returns:
        the rank; ``len(values) + 1`` if none of these suffices.

    >>> import torch
    >>> least_rank(torch.tensor([4.0, 3.0, 0.1]), 0.05)
    2
    """
    total = float(values.square().sum()) if square is None else square
    if total <= 0:
        return 1
    # Summed from the smallest, so that what a rank leaves is exact to its own last digits.
    beyond = max(total - float(values.square().sum()), 0.0) if square is not None else 0.0
    left = values.square().flip(0).cumsum(0).flip(0) + beyond  # left[i]: what rank i leaves
    for rank in range(1, len(values) + 1):
        rest = float(left[rank]) if rank < len(values) else beyond
        if rest <= bound * bound * total:
            return rank
    return len(values) + 1


def error_at(spectra: Mapping[str, Spectrum], rank: int, errors: Mapping[str, float] | None = None) -> float:
    """Return the relative error (Frobenius) over all sites if each is cut to a rank.

    Args:
        spectra: site -> singular values.
        rank: the largest that is kept.
        errors: site -> the relative error that it has already, of an approximation of the update that is meant. What
            an approximation lacks is orthogonal to what it has.

    >>> import torch
    >>> round(error_at({"a": torch.tensor([4.0, 3.0]), "b": torch.tensor([5.0])}, 1), 4)
    0.4243
    """
    squares = {site: float(values.square().sum()) for site, values in spectra.items()}
    before = {site: (errors or {}).get(site, 0.0) for site in spectra}
    lacking = {site: squares[site] * e**2 / (1 - e**2) for site, e in before.items() if e < 1}
    total = math.fsum(squares.values()) + math.fsum(lacking.values())
    left = math.fsum(float(values[rank:].square().sum()) for values in spectra.values()) + math.fsum(lacking.values())
    return math.sqrt(left / total) if total > 0 else 0.0


def check_bound(bound: float, where: str) -> float:
    """Return a bound of relative errors, after checking it.

    Raises:
        ArgumentError: it is no number between 1e-6 (below that, float32 rounds) and 1.
    """
    fix = "give a number such as 0.05; for the exact result, leave the rank out"
    number = isinstance(bound, int | float) and not isinstance(bound, bool)
    if not number or not 1e-6 <= bound < 1:
        raise ArgumentError("a relative error is between 0.000001 and 1", got=bound, where=where, fix=fix)
    return float(bound)
