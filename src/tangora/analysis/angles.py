"""Do these adapters write to, and read from, the same directions? Principal angles between their subspaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.analysis._vectors import check, sites
from tangora.errors import ArgumentError
from tangora.support.threads import in_threads
from tangora.updates.task_vector import TaskVector, Update
from tangora.updates.truncation import truncate_factors, truncate_matrix

__all__ = ["Angles", "Overlap", "principal_angles", "subspace_overlap"]


@dataclass(frozen=True)
class Angles:
    """Principal angles in radians, ascending, in a site's output space (``columns``) and input space (``rows``)."""

    columns: Float[Tensor, " smaller_rank"]
    rows: Float[Tensor, " smaller_rank"]


@dataclass(frozen=True)
class Overlap:
    """Mean of cos² of the principal angles over sites, for every pair of tasks, and its value for random subspaces."""

    columns: Float[Tensor, "tasks tasks"]
    rows: Float[Tensor, "tasks tasks"]
    chance_columns: float
    chance_rows: float


def principal_angles(one: Update, other: Update, rank: int | None = None) -> Angles:
    """Return the angles between the column spaces of two updates of a site, and between their row spaces.

    With orthonormal bases U_t of the column space of ΔW_t, which it writes to, and V_t of its row space, which it reads
    from, ``cos θ_i = σ_i(U_tᵀ U_u)`` for columns and ``σ_i(V_tᵀ V_u)`` for rows (Björck and Golub, 1973,
    doi:10.2307/2005662, theorem 1). Bases come from the factors; no low-rank update becomes dense.

    An angle of 0 is a shared direction. If all angles are π/2, ΔW_t and ΔW_u do not affect each other's outputs
    (columns) or do not respond to each other's inputs (rows). Adapters with the same frozen A₀ read the same
    directions: their row angles are 0.

    Args:
        one: a matrix update.
        other: one of the same shape.
        rank: compare only the leading ``rank`` directions. Full fine-tuning needs it: matrices of full rank span the
            whole space, and all angles are 0. None: every direction above rounding noise.

    Returns:
        As many angles as the smaller of the two ranks, so none if an update is zero.

    Raises:
        ArgumentError: an update is not a matrix, or the rank is below 1.
        FusionError: the shapes differ.

    >>> from tangora.updates.task_vector import Dense
    >>> one = Dense(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    >>> other = Dense(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    >>> angles = principal_angles(one, other)
    >>> torch.rad2deg(angles.columns).round().tolist(), angles.rows.tolist()
    ([45.0], [0.0])
    """
    check([TaskVector({"one site": one}), TaskVector({"one site": other})])
    (u, v), (p, q) = _bases(one, rank), _bases(other, rank)
    return Angles(_cosines(u, p).acos(), _cosines(v, q).acos())


def subspace_overlap(task_vectors: Sequence[TaskVector], *, rank: int | None = 8) -> Overlap:
    """Return the overlap of the directions that two task vectors write to, or read from.

    For a site it is ``(1 / k) Σ_i cos² θ_i`` over the k principal angles (see `principal_angles`); the result is the
    mean over the matrix sites that both have. It is 1 if the smaller subspace lies within the other, and 0 if they are
    orthogonal. Random subspaces of ranks k ≤ l in n dimensions have ``l / n`` on average: the chance values of
    `Overlap`.

    If columns overlap far above chance, sums of task vectors interfere in their outputs, whatever their cosine. Methods
    that work on singular directions (``tsv_m``, ``knots``, ``iso_cts``) address that.

    Args:
        task_vectors: one per task.
        rank: number of leading directions of a site to compare, ordered by singular value.

    Raises:
        ArgumentError: there is no task vector, or the rank is below 1.
        FusionError: two task vectors have different shapes at one site.

    >>> from tangora.updates.task_vector import LowRank
    >>> a = torch.eye(1, 4)
    >>> one, other = (TaskVector({"layer": LowRank(b, a)}) for b in (torch.eye(3, 1), torch.eye(3).flip(1)[:, :1]))
    >>> overlap = subspace_overlap([one, other])
    >>> overlap.columns[0, 1].item(), overlap.rows[0, 1].item()
    (0.0, 1.0)
    """
    check(task_vectors)
    matrices = {s: members for s, members in sites(task_vectors).items() if len(task_vectors[members[0]][s].shape) == 2}
    if not matrices:
        nothing = torch.zeros(len(task_vectors), len(task_vectors), dtype=torch.float64)
        return Overlap(nothing, nothing, 0.0, 0.0)
    per_site = in_threads(lambda site: _site(task_vectors, site, matrices[site], rank), list(matrices))
    columns, rows = torch.stack([shares for shares, _ in per_site]).nanmean(0).nan_to_num()
    chance = torch.tensor([expected for _, expected in per_site], dtype=torch.float64).mean(0).tolist()
    return Overlap(columns, rows, *chance)


def _site(
    vectors: Sequence[TaskVector], site: str, members: Sequence[int], rank: int | None
) -> tuple[Float[Tensor, "2 tasks tasks"], tuple[float, float]]:
    """Return the mean cos² of the column and row angles of every pair, NaN if there are none, and chance values."""
    shares = torch.full((2, len(vectors), len(vectors)), torch.nan, dtype=torch.float64)
    bases = {i: _bases(vectors[i][site], rank) for i in members}
    for i in members:
        for j in members:
            for space, (one, other) in enumerate(zip(bases[i], bases[j], strict=True)):
                shares[space, i, j] = _cosines(one, other).square().mean()  # of no angles: NaN
    widest = max(u.shape[1] for u, _ in bases.values())
    out, inside = vectors[members[0]][site].shape
    return shares, (widest / out, widest / inside)


def _bases(update: Update, rank: int | None) -> tuple[Float[Tensor, "out k"], Float[Tensor, "in k"]]:
    """Return orthonormal bases of the column space and the row space, without directions of rounding noise."""
    if len(update.shape) != 2:
        raise ArgumentError("only a matrix has subspaces", got=tuple(update.shape), where="principal_angles")
    if rank is not None and rank < 1:
        raise ArgumentError("rank must be at least 1", got=rank, where="principal_angles")
    most = min(*update.shape, rank or max(update.shape))
    factors = update.factors()
    if factors is not None:
        b, a = factors.b, factors.a.double() * factors.scaling
        left, values, right, _ = truncate_factors(b, a, min(most, factors.rank))
    else:
        left, values, right, _ = truncate_matrix(update.dense(), most)
    noise = max(update.shape) * torch.finfo(torch.float32).eps
    kept = int((values > noise * values[0]).sum()) if bool(values[0] > 0) else 0
    return left[:, :kept].double(), right[:kept].T.double()


def _cosines(one: Float[Tensor, "n k"], other: Float[Tensor, "n l"]) -> Float[Tensor, " smaller_rank"]:
    """Return cosines of the principal angles between two spans, descending."""
    cosines: Tensor = torch.linalg.svdvals(one.T @ other)
    return cosines.clamp(max=1.0)
