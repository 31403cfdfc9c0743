"""Logits of fused models, differentiable in the coefficients, for searches by gradients."""

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

    ``shares`` are the weights of lines in the task's loss; over all lines of a step they add up to 1.
    """

    logits: Float[Tensor, "lines classes"]
    labels: Int[Tensor, " lines"]
    shares: Float[Tensor, " lines"]


class Logits(Protocol):
    """The logits of fused models as a function of fusion coefficients.

    Attributes:
        tasks: those with rows here.
        vectors: names of the task vectors, one coefficient each.
        sites: empty for one coefficient per task vector; else one per vector and site.
        shape: of the coefficients, ``(vectors,)`` or ``(vectors, sites)``.
        rows: task -> number of rows.
        whole: whether every call yields all rows and ignores the picks.
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
        """Yield the picked rows of each task, in parts that are each differentiated and freed."""
        ...


def own_coefficients(logits: Logits, task: str) -> Float[Tensor, " vectors *sites"]:
    """Return the coefficients under which the fused model is the task's own expert.

    Raises:
        FusionError: no task vector is the task's.
    """
    if task not in logits.vectors:
        fix = "leave the task out, or add its adapter"
        raise FusionError("the search needs each task's own expert", got=task, where="coefficients", fix=fix)
    own = torch.zeros(logits.shape)
    own[logits.vectors.index(task)] = 1.0
    return own
