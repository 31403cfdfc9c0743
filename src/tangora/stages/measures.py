"""What an analysis computes for one mode, one pair of tasks or one task, as values for a JSON file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tangora._io import digest
from tangora.errors import DataError

if TYPE_CHECKING:
    from tangora.adapter import Adapter
    from tangora.analysis.plane import Answer
    from tangora.evaluate import Evaluator
    from tangora.tasks import Task

__all__ = ["angles", "by_forward_passes", "limited", "plane", "signs"]


def signs(experts: Mapping[str, Adapter]) -> dict[str, Any]:
    """Sign conflicts between every two experts."""
    from tangora.analysis.signs import sign_conflict

    vectors = [adapter.task_vector for adapter in experts.values()]
    return {name: sign_conflict(vectors, weighted=name == "weighted").tolist() for name in ("counted", "weighted")}


def angles(experts: Mapping[str, Adapter], rank: int) -> dict[str, Any]:
    """How far the subspaces of every two experts overlap."""
    from tangora.analysis.angles import subspace_overlap

    found = subspace_overlap([adapter.task_vector for adapter in experts.values()], rank=rank)
    chance = {"columns": found.chance_columns, "rows": found.chance_rows}
    return {"columns": found.columns.tolist(), "rows": found.rows.tolist(), "chance": chance}


def plane(
    answer: Answer, tasks: tuple[str, str], coefficients: Sequence[float], on_point: Callable[[], None]
) -> dict[str, Any]:
    """Disentanglement error, joint loss and both tasks' scores over the plane of two task vectors."""
    from tangora.analysis import disentanglement_error, joint_loss, over_unit_square, survey

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
    evaluator: Evaluator, experts: Mapping[str, Adapter], tasks: tuple[str, str], split: str, seed: int
) -> Answer:
    """Answers of the fused model at each point, weights swapped in place; equal models are scored once."""
    from tangora.fuse import Fusion
    from tangora.stages.candidate_key import candidate_key

    fusion = Fusion([experts[task] for task in tasks], seed=seed, names=tasks)

    def answer(coefficients: tuple[float, float]) -> Mapping[str, Any]:
        key = candidate_key(fusion, "task_arithmetic", list(coefficients), {}, seed)
        return evaluator.evaluate(key, lambda: fusion.merge("task_arithmetic", list(coefficients)), tasks, split)

    return answer


def limited(task: Task, split: str, rows: int, seed: int) -> Task:
    """The task with at most ``rows`` rows of one split, a sample by ``seed`` with each class in proportion.

    Raises:
        DataError: the task has no such split.
    """
    from tangora.tasks.splits import sample
    from tangora.tasks.values import Split

    if split not in task.splits:
        raise DataError("the split is missing", got=split, where=f"task {task.name}")
    whole = task.splits[split]
    picks = sample(len(whole), rows, seed, whole.targets if task.head is not None else None)
    inputs = {name: [values[i] for i in picks] if isinstance(values, list) else values[picks]
              for name, values in whole.inputs.items()}  # fmt: skip
    part = Split(inputs, [whole.targets[i] for i in picks])  # type: ignore[arg-type]  # all labels, or all texts
    print_of = digest([task.fingerprint, split, part.fingerprint])
    return replace(task, splits={split: part}, fingerprint=print_of)
