"""Logits of fused models on some rows of some tasks, differentiable in the coefficients: for searches by gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangora.errors import FusionError

__all__ = ["Answers", "Logits", "own_coefficients"]


class Answers(NamedTuple):
    """Logits of some lines (rows, or tokens of target texts) of one task.

    ``shares`` say what a line counts in the task's loss; over all lines of a step they add up to 1.
    """

    logits: Float[Tensor, "lines classes"]
    labels: Int[Tensor, " lines"]
    shares: Float[Tensor, " lines"]


class Logits(Protocol):
    """The logits of fused models as a function of fusion coefficients.

    Attributes:
        tasks: those with rows here.
        vectors: names of the task vectors, one coefficient each.
        sites: empty for one coefficient a task vector; else one a vector and site.
        shape: of the coefficients, ``(vectors,)`` or ``(vectors, sites)``.
        rows: task -> how many.
        whole: every call gives all rows, whatever is picked.
    """

    tasks: tuple[str, ...]
    vectors: tuple[str, ...]
    sites: tuple[str, ...]
    shape: tuple[int, ...]
    rows: Mapping[str, int]
    whole: bool

    def __call__(
        self, coefficients: Float[Tensor, " vectors *sites"], picks: Mapping[str, Sequence[int]]
    ) -> Iterator[Mapping[str, Answers]]:
        """The picked rows of each task, in parts that may each be differentiated and forgotten."""
        ...


def own_coefficients(logits: Logits, task: str) -> Float[Tensor, " vectors *sites"]:
    """Return the coefficients under which the fused model is the task's own expert.

    Raises:
        FusionError: no task vector is the task's.
    """
    if task not in logits.vectors:
        fix = "leave the task out, or add its adapter"
        raise FusionError("minimax needs each task's own expert", got=task, where="coefficients", fix=fix)
    own = torch.zeros(logits.shape)
    own[logits.vectors.index(task)] = 1.0
    return own
