"""Logits that are linear in the coefficients: cross-entropy on them with exact derivatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from tangora.coefficients.logits import Answers
from tangora.coefficients.newton import Expansion
from tangora.errors import ArgumentError, DataError, FusionError

if TYPE_CHECKING:
    from tangora.tangent.columns import Columns

__all__ = ["LinearLogits", "shares"]

_NEGLIGIBLE = 1e-9  # a class of this probability adds nothing to a Hessian


@dataclass(frozen=True)
class _Block:
    """One task's rows: ``logits = origin + (slopes @ x)``, in float64."""

    origin: Float[Tensor, "rows classes"]
    slopes: Float[Tensor, "rows*classes k"]
    labels: Int[Tensor, " rows"]
    shares: Float[Tensor, " rows"]

    def logits(self, x: Float[Tensor, " k"]) -> Float[Tensor, "rows classes"]:
        return self.origin + (self.slopes @ x).view_as(self.origin)

    def loss(self, x: Float[Tensor, " k"]) -> float:
        return float(self.shares @ cross_entropy(self.logits(x), self.labels, reduction="none"))


class LinearLogits:
    """The logits of fused tangent models on the rows of some tasks, as a function of the coefficients.

    Args:
        columns: one entry per task, all with the same vectors and sites.

    Raises:
        ArgumentError: there are no columns.
        FusionError: the tasks' columns do not belong together, or hold a value that is not finite.
        DataError: a task has no rows, or a label that is not a class.

    >>> from tangora.tangent.columns import Columns
    >>> rows = {"origin": torch.zeros(1, 2), "labels": torch.tensor([0]), "examples": torch.tensor([0])}
    >>> one = Columns("t", "validation", ("t",), (), columns=torch.tensor([[[1.0, 0.0]]]), fingerprint="", **rows)
    >>> LinearLogits([one]).losses(torch.tensor([0.0], dtype=torch.float64))
    [0.6931471805599453]
    """

    def __init__(self, columns: Sequence[Columns]) -> None:
        if not columns:
            raise ArgumentError(
                "nothing to find coefficients on", got=0, where="columns", fix="give those of at least one task"
            )
        first = columns[0]
        for other in columns[1:]:
            if (other.vectors, other.sites) != (first.vectors, first.sites):
                what = f"the columns of {first.task} and {other.task} are of different task vectors or sites"
                raise FusionError(what, where="columns", fix="make them from the same adapters")
        self.tasks = tuple(c.task for c in columns)
        self.vectors, self.sites = first.vectors, first.sites
        self.whole = True
        self.shape: tuple[int, ...] = (len(self.vectors), *((len(self.sites),) if self.sites else ()))
        self.rows: Mapping[str, int] = {c.task: len(c.examples.unique()) for c in columns}
        self._blocks = [_block(c) for c in columns]

    def __call__(
        self, coefficients: Float[Tensor, " vectors *sites"], picks: Mapping[str, Sequence[int]]
    ) -> Iterator[dict[str, Answers]]:
        """Yield every row of every task at once and ignore ``picks``: a pass costs next to nothing."""
        x = coefficients.reshape(-1).double()
        yield {t: Answers(b.logits(x), b.labels, b.shares) for t, b in zip(self.tasks, self._blocks, strict=True)}

    def losses(self, x: Float[Tensor, " k"]) -> list[float]:
        """Return the mean cross-entropy of each task."""
        return [block.loss(x) for block in self._blocks]

    def expansions(self, x: Float[Tensor, " k"]) -> list[Expansion]:
        """Return each task's mean cross-entropy, its gradient ``Xᵀ(p - y)`` and Hessian ``Xᵀ(diag p - p pᵀ)X``."""
        return [_expand(block, x) for block in self._blocks]


def _block(columns: Columns) -> _Block:
    rows, classes = columns.origin.shape
    labels = columns.labels
    if rows == 0:
        raise DataError("a task has no rows to find coefficients on", got=0, where=f"task {columns.task}")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        what = f"a label is not one of the {classes} classes"
        raise DataError(what, got=int(labels.max()), where=f"task {columns.task}", fix="make the columns again")
    origin = columns.origin.double()
    slopes = columns.columns.double().reshape(-1, rows * classes).T.contiguous()
    if not (bool(origin.isfinite().all()) and bool(slopes.isfinite().all())):
        fix = "check the adapters for NaN and make the columns again"
        raise FusionError("a logit is not finite", where=f"columns of task {columns.task}", fix=fix)
    return _Block(origin, slopes, labels.long(), shares(columns.examples))


def shares(examples: Int[Tensor, " lines"]) -> Float[Tensor, " lines"]:
    """Return the weight of each line in the mean over examples of the mean over an example's lines.

    >>> shares(torch.tensor([3, 3, 5])).tolist()
    [0.25, 0.25, 0.5]
    """
    _, which, lines = examples.unique(return_inverse=True, return_counts=True)
    counted: Tensor = 1.0 / (len(lines) * lines[which].double())
    return counted


def _expand(block: _Block, x: Tensor) -> Expansion:
    p = block.logits(x).softmax(-1)
    residual = p.clone()
    residual[torch.arange(len(p)), block.labels] -= 1.0
    gradient = block.slopes.T @ (residual * block.shares[:, None]).reshape(-1)
    # A few of thousands of token classes have all the probability; the others would be most of the work.
    seen = (p.reshape(-1) > _NEGLIGIBLE).nonzero()[:, 0]
    row = seen // p.shape[1]
    # The Hessian only shapes the steps and the gradient determines the solution, so the Hessian is in single precision.
    slopes, share = block.slopes[seen].float(), block.shares[row, None].float()
    weighted = slopes * p.reshape(-1)[seen, None].float()
    means = torch.zeros(len(p), len(x)).index_add_(0, row, weighted)
    hessian = slopes.T @ (weighted * share) - (means * block.shares[:, None].float()).T @ means
    return Expansion(block.loss(x), gradient, hessian.double())
