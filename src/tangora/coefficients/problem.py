"""The problem that a search solves: coefficients for some tasks, scored on some of their rows. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tangora.errors import FusionError

if TYPE_CHECKING:
    from tangora.coefficients.logits import Logits
    from tangora.tangent.columns import Columns

__all__ = ["Coefficients", "Problem", "silent"]

Coefficients = list[float] | dict[str, list[float]]
"""One per task vector, or site -> one per task vector."""

_View = TypeVar("_View")


def silent(done: int, total: int, detail: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Problem:
    """Coefficients to choose for the task vectors of some tasks, and views that score a choice.

    A run builds one for every set of tasks that it fuses; `tangora.coefficients.search` builds one for its adapters. A
    problem for a test needs no model, only a function of the weights.

    Args:
        tasks: names, in the order of the weights.
        rows: task -> the rows of ``split`` that the search may use.
        split: such as ``validation``.
        seed: of everything random.
        sites: their names, for a coefficient per task and site; else empty.
        loss_of: weights -> loss; see `loss`.
        logits_of: returns the logits; None if the method is not additive. See `logits`.
        columns_of: returns the columns; None if the logits are not linear in the coefficients. See `columns`.
        on_step: called with the number of steps done, their total, and a short description.

    >>> problem = Problem(("a", "b"), {"a": [0, 1], "b": [0]}, loss_of=lambda weights: (weights[0] - 0.5) ** 2)
    >>> problem.loss([0.25, 1.0]), problem.linear
    (0.0625, False)
    """

    tasks: tuple[str, ...]
    rows: Mapping[str, Sequence[int]]
    split: str = "validation"
    seed: int = 0
    sites: tuple[str, ...] = ()
    loss_of: Callable[[Any], float] | None = None
    logits_of: Callable[[], Logits] | None = None
    columns_of: Callable[[], Sequence[Columns]] | None = None
    on_step: Callable[[int, int, str], None] = silent

    @property
    def per(self) -> Literal["task", "site"]:
        """Whether there is a coefficient per task, or per task and site."""
        return "site" if self.sites else "task"

    @property
    def linear(self) -> bool:
        """Whether the logits are linear in the coefficients, so that there are columns."""
        return self.columns_of is not None

    @property
    def counts(self) -> dict[str, int]:
        """Task -> the number of its rows that the search may use."""
        return {task: len(rows) for task, rows in self.rows.items()}

    def loss(self, weights: Coefficients) -> float:
        """Return the mean over the tasks of the mean loss over the rows, of the model fused with ``weights``.

        A complete model is fused and scored, which takes a pass over all rows. Equal weights are scored once. The loss
        is that of the tasks, in nats; it may be infinite or NaN.
        """
        return float(_require(self.loss_of, "loss")(weights))

    def logits(self) -> Logits:
        """Return the logits of fused models on the rows, differentiable in the coefficients."""
        return _require(self.logits_of, "logits")()

    def columns(self) -> list[Columns]:
        """Return the logits as affine functions of the coefficients: an entry for each task, on its rows."""
        return list(_require(self.columns_of, "columns")())


def _require(view: _View | None, name: str) -> _View:
    if view is None:
        fix = "use a search that does not need them, or another method or mode"
        raise FusionError(f"this problem has no {name}", where="problem", fix=fix)
    return view
