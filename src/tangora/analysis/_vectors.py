"""Checks and sites shared by all comparisons of task vectors."""

from __future__ import annotations

from collections.abc import Sequence

from tangora.errors import ArgumentError, FusionError
from tangora.updates.task_vector import TaskVector

__all__ = ["check", "sites"]


def check(task_vectors: Sequence[TaskVector]) -> None:
    """Refuse task vectors that cannot be compared.

    Raises:
        ArgumentError: there is no task vector.
        FusionError: two task vectors have different shapes at one site.
    """
    if not task_vectors:
        raise ArgumentError("give at least one task vector", got=0)
    shapes: dict[str, tuple[int, ...]] = {}
    for vector in task_vectors:
        for site, update in vector.items():
            shape = tuple(update.shape)
            if shapes.setdefault(site, shape) != shape:
                raise FusionError(
                    f"two task vectors give it shapes {shapes[site]} and {shape}",
                    where=site,
                    fix="compare adapters of one base model",
                )


def sites(task_vectors: Sequence[TaskVector]) -> dict[str, list[int]]:
    """Return site -> the indices of the task vectors that have it."""
    names = dict.fromkeys(site for vector in task_vectors for site in vector)
    return {site: [i for i, vector in enumerate(task_vectors) if site in vector] for site in names}
