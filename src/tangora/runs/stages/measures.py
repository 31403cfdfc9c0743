"""The measurements of an analysis for one mode, one pair of tasks or one task, as values for a JSON file."""

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
from tangora.tangent import make_columns
from tangora.tasks import TaskModel, make_readout
from tangora.tasks.lines import lines_of
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
    """Return the sign conflicts between every two experts."""
    vectors = [adapter.task_vector for adapter in experts.values()]
    return {name: sign_conflict(vectors, weighted=name == "weighted").tolist() for name in ("counted", "weighted")}


def angles(experts: Mapping[str, Adapter], rank: int) -> dict[str, Any]:
    """Return the overlap of the subspaces of every two experts."""
    overlap = subspace_overlap([adapter.task_vector for adapter in experts.values()], rank=rank)
    chance = {"columns": overlap.chance_columns, "rows": overlap.chance_rows}
    return {"columns": overlap.columns.tolist(), "rows": overlap.rows.tolist(), "chance": chance}


def plane(
    answer: Answer, tasks: tuple[str, str], coefficients: Sequence[float], on_point: Callable[[], None]
) -> dict[str, Any]:
    """Return disentanglement error, joint loss and both tasks' scores over the plane of two task vectors."""
    answers = survey(answer, tasks, coefficients, on_point)
    error = disentanglement_error(answers)
    return {
        "coefficients": list(coefficients),
        "rows": {task: len(answers.results[task][0][0].values) for task in tasks},
        "error": error.tolist(),
        "mean_error": over_unit_square(error, coefficients),
        "loss": joint_loss(answers).tolist(),
        "scores": {task: [[r.score for r in row] for row in answers.results[task]] for task in tasks},
    }


def by_forward_passes(
    evaluator: Evaluator, experts: Mapping[str, Adapter], tasks: Sequence[str], split: str, seed: int
) -> Answer:
    """Return a function that scores the fused model at a point, with weights swapped in; equal models only once."""
    fusion = Fusion([experts[task] for task in tasks], seed=seed, names=tasks)

    def answer(coefficients: tuple[float, float]) -> Mapping[str, Any]:
        key = candidate_key(fusion, "task_arithmetic", list(coefficients), {}, seed)
        return evaluator.evaluate(key, lambda: fusion.merge("task_arithmetic", list(coefficients)), tasks, split)

    return answer


def by_columns(
    store: ColumnStore, mode: str, tasks: Sequence[str], split: str, rows: Mapping[str, list[int]]
) -> Answer:
    """Return a function that scores the expansion at a point, from columns: no forward pass once these exist."""

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
    """Return the gap between network and expansion at every point of φ₀ + a·τ; τ is the change of the weights."""
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
    """Return logits of the ordinary network, in the lines of `Columns`."""
    model = TaskModel(base.backbone, task, base, make_readout(task, base, expert))
    device, over = next(base.backbone.parameters()).device, task.form.logits_over
    assert over is not None
    parts = []
    with evaluating(model), torch.no_grad():
        for rows, batch in task.splits[split].batches(batch_size, model.collator):
            placed = {name: value.to(device) for name, value in batch.items()}
            labels = placed.pop("labels")
            lines = lines_of(over, labels, model.readout.width)
            parts.append((torch.tensor(rows)[lines.rows.cpu()], lines.of(model.logits(placed, labels)).cpu()))
    owners, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return logits[torch.argsort(owners, stable=True)]


def picked(task: Task, split: str, rows: int, seed: int) -> list[int]:
    """Return at most ``rows`` rows of a split, a sample by ``seed`` with all classes in proportion.

    Raises:
        DataError: the task has no such split.
    """
    if split not in task.splits:
        raise DataError("the split is missing", got=split, where=f"task {task.name}")
    full = task.splits[split]
    by_class = task.form.kind == "classes"
    return sample(len(full), rows, seed, full.targets if by_class else None)


def limited(task: Task, split: str, rows: int, seed: int) -> Task:
    """Return the task with only the `picked` rows of one split.

    Raises:
        DataError: the task has no such split.
    """
    return only(task, split, picked(task, split, rows, seed))
