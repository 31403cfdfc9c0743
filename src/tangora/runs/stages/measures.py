"""What an analysis computes for one mode, one pair of tasks or one task, as values for a JSON file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tangora.adapters.application import applied
from tangora.analysis import disentanglement_error, joint_loss, over_unit_square, survey
from tangora.analysis.angles import subspace_overlap
from tangora.analysis.linearity import linearity_gap
from tangora.analysis.signs import sign_conflict
from tangora.errors import DataError
from tangora.evaluation.candidates import candidate_key
from tangora.fusion.fusion import Fusion
from tangora.support.seams import FAMILIES
from tangora.tangent import make_columns
from tangora.tasks import TaskModel, make_readout
from tangora.tasks.batches import IGNORED
from tangora.tasks.splits import sample
from tangora.tasks.values import evaluating, only

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from tangora.adapters.adapter import Adapter
    from tangora.analysis.plane import Answer
    from tangora.evaluation.evaluator import Evaluator
    from tangora.runs.stages.columns import ColumnStore
    from tangora.tasks import Base, Task

__all__ = ["angles", "by_columns", "by_forward_passes", "limited", "linearity", "picked", "plane", "signs"]


def signs(experts: Mapping[str, Adapter]) -> dict[str, Any]:
    """Sign conflicts between every two experts."""
    vectors = [adapter.task_vector for adapter in experts.values()]
    return {name: sign_conflict(vectors, weighted=name == "weighted").tolist() for name in ("counted", "weighted")}


def angles(experts: Mapping[str, Adapter], rank: int) -> dict[str, Any]:
    """How far the subspaces of every two experts overlap."""
    found = subspace_overlap([adapter.task_vector for adapter in experts.values()], rank=rank)
    chance = {"columns": found.chance_columns, "rows": found.chance_rows}
    return {"columns": found.columns.tolist(), "rows": found.rows.tolist(), "chance": chance}


def plane(
    answer: Answer, tasks: tuple[str, str], coefficients: Sequence[float], on_point: Callable[[], None]
) -> dict[str, Any]:
    """Disentanglement error, joint loss and both tasks' scores over the plane of two task vectors."""
    found = survey(answer, tasks, coefficients, on_point)
    error = disentanglement_error(found)
    return {
        "coefficients": list(coefficients),
        "rows": {task: len(found.results[task][0][0].values) for task in tasks},
        "error": error.tolist(),
        "mean_error": over_unit_square(error, coefficients),
        "loss": joint_loss(found).tolist(),
        "scores": {task: [[r.score for r in row] for row in found.results[task]] for task in tasks},
    }


def by_forward_passes(
    evaluator: Evaluator, experts: Mapping[str, Adapter], tasks: Sequence[str], split: str, seed: int
) -> Answer:
    """Answers of the fused model at each point, weights swapped in place; equal models are scored once."""
    fusion = Fusion([experts[task] for task in tasks], seed=seed, names=tasks)

    def answer(coefficients: tuple[float, float]) -> Mapping[str, Any]:
        key = candidate_key(fusion, "task_arithmetic", list(coefficients), {}, seed)
        return evaluator.evaluate(key, lambda: fusion.merge("task_arithmetic", list(coefficients)), tasks, split)

    return answer


def by_columns(
    store: ColumnStore, mode: str, tasks: Sequence[str], split: str, rows: Mapping[str, list[int]]
) -> Answer:
    """Answers of the expansion at each point, from columns: no forward pass once these are there."""

    def answer(coefficients: tuple[float, float]) -> Mapping[str, Any]:
        return store.results(mode, tasks, split, dict(zip(tasks, coefficients, strict=True)), rows)

    return answer


def linearity(
    base: Base,
    task: Task,
    split: str,
    expert: Adapter,
    path: Sequence[float],
    batch_size: int,
    on_point: Callable[[], None],
) -> dict[str, Any]:
    """The gap between network and expansion at every point of φ₀ + a·τ; τ is the change of the weights."""
    columns = make_columns(base, task, split, {task.name: expert}, batch_size=batch_size)
    fusion, gaps = Fusion([expert], names=[task.name]), []
    for a in path:
        network = columns.origin
        if a != 0:
            with applied(base.backbone, fusion.merge("task_arithmetic", [a])):
                network = network_logits(base, task, split, expert, batch_size)
        gaps.append(linearity_gap(network, columns.origin + a * columns.columns[0], columns.origin))
        on_point()
    distance, agreement = [gap.distance for gap in gaps], [gap.agreement for gap in gaps]
    return {"path": list(path), "distance": distance, "agreement": agreement, "rows": len(task.splits[split])}


def network_logits(
    base: Base, task: Task, split: str, expert: Adapter, batch_size: int
) -> Float[Tensor, "lines classes"]:
    """Logits of the ordinary network, with the lines of `Columns`: row by row, or target token by target token."""
    model = TaskModel(base.backbone, task, base, make_readout(task, base, expert))
    device = next(base.backbone.parameters()).device
    found: dict[int, Tensor] = {}
    with evaluating(model), torch.no_grad():
        for rows, batch in task.splits[split].batches(batch_size, model.collator):
            placed = {name: value.to(device) for name, value in batch.items()}
            labels = placed.pop("labels")
            logits = model.logits(placed, labels)
            for row, of_row, answers in zip(rows, logits, labels, strict=True):
                found[row] = of_row[answers != IGNORED].cpu() if answers.ndim else of_row[None].cpu()
    return torch.cat([found[row] for row in sorted(found)])


def picked(task: Task, split: str, rows: int, seed: int) -> list[int]:
    """At most ``rows`` rows of a split, a sample by ``seed`` with each class in proportion.

    Raises:
        DataError: the task has no such split.
    """
    if split not in task.splits:
        raise DataError("the split is missing", got=split, where=f"task {task.name}")
    whole = task.splits[split]
    by_class = FAMILIES.get(task.family).answers == "classes"
    return sample(len(whole), rows, seed, whole.targets if by_class else None)


def limited(task: Task, split: str, rows: int, seed: int) -> Task:
    """The task with the rows of one split that are `picked`, and no other.

    Raises:
        DataError: the task has no such split.
    """
    return only(task, split, picked(task, split, rows, seed))
