"""The rows that a router learns from: with labels, without, or with the answers of the experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tangora.errors import DataError, ModelError
from tangora.evaluation.evaluator import scoring_key
from tangora.evaluation.generated import with_own_answers
from tangora.polishing.lessons import Answers, Lesson, lesson
from tangora.polishing.rows import choose_rows, refuse_unlabelled, shared_with_test, without_labels
from tangora.tasks.fitting import with_head

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.polishing.routes import RouteTraining
    from tangora.tasks import Task
    from tangora.tasks.values import Split

__all__ = ["lessons_of"]


def lessons_of(given: RouteTraining) -> list[Lesson]:
    """Return the rows of every task, in order, with what the objective needs of its expert.

    Raises:
        DataError: a task lacks the split, has no rows in it, or most of them are test rows of its own.
        ModelError: the objective is not defined for the answers of a task.
    """
    for task in given.tasks:
        _refuse(task, given.settings.objective, given.settings.rows_of)
    chosen = [_chosen(task, given) for task in given.tasks]
    experts = given.experts.values()
    return [_lesson(task, rows, expert, given) for task, rows, expert in zip(given.tasks, chosen, experts, strict=True)]


def _refuse(task: Task, objective: str, split: str) -> None:
    """Refuse an objective that says nothing about the answers of a task, or about rows without labels."""
    form = task.form
    if objective == "labels" and split in task.splits:
        refuse_unlabelled(task, split, "route.objective=labels")
    if objective == "entropy" and form.logits_over is None:
        fix = "choose objective=follow, or objective=labels"
        raise ModelError(
            "the entropy of these answers is not defined",
            got=form.kind,
            where=f"task {task.name}, route.objective",
            fix=fix,
        )
    if objective != "labels" and form.logits_over == "tokens" and form.kind != "text":
        fix = "choose objective=labels, or tasks that answer with texts"
        what = "without labels, answers in tokens are those that an expert generates"
        raise ModelError(what, got=form.kind, where=f"task {task.name}, route.objective", fix=fix)


def _chosen(task: Task, given: RouteTraining) -> list[int]:
    """Return the numbers of the rows of a task."""
    settings = given.settings
    chosen = choose_rows(task, settings.rows_of, settings.rows, given.seed)
    where, least = f"task {task.name}, {settings.rows_of}", 2 if settings.held_out else 1
    if len(chosen) < least:
        raise DataError(f"a router needs at least {least} rows of a task", got=len(chosen), where=where, fix="add rows")
    if settings.split != "oracle" and 2 * shared_with_test(task, settings.rows_of, chosen) > len(chosen):
        fix = "give other rows; to learn from test rows nevertheless, set split=oracle, which marks the adapter"
        raise DataError("most of these rows are among the task's test rows", where=where, fix=fix)
    return chosen


def _lesson(task: Task, chosen: Sequence[int], expert: Adapter, given: RouteTraining) -> Lesson:
    settings, count = given.settings, len(chosen)
    rows, held = task.splits[settings.rows_of].select(chosen), settings.held(count)
    if settings.objective == "follow":
        bare = without_labels(rows, task.form.logits_over)
        made = lesson(given.base, task, bare, lambda: expert, top=settings.top, same_base=True, cache=given.cache)
        return replace(made, drawn=count, held=held)
    adapter = with_head(expert, given.base, task)
    if settings.objective == "entropy":
        rows = _unlabelled(task, chosen, adapter, given)
    posed, kept = replace(task, splits={"train": rows}), replace(adapter, updates={})
    nothing = Answers(torch.zeros(count, 0))
    return Lesson(posed, rows, nothing, kept, expert.fingerprint, scoring_key(expert), count, held)


def _unlabelled(task: Task, chosen: Sequence[int], expert: Adapter, given: RouteTraining) -> Split:
    """Return rows without labels; the target tokens of texts are those that the task's expert generates."""
    split = given.settings.rows_of
    if task.form.logits_over != "tokens":
        return without_labels(task.splits[split].select(chosen), task.form.logits_over)
    return with_own_answers(given.base, task, split, chosen, expert).splits[split]
