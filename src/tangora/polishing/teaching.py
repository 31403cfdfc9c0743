"""Make the lessons of a polish: draw rows of each task, make more of them, and have the experts answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tangora.errors import ArgumentError, DataError, ModelError
from tangora.polishing.lessons import Lesson, lesson
from tangora.polishing.recombination import recombined
from tangora.polishing.rows import choose_rows, joined, refuse_unlabelled, shared_with_test, without_labels
from tangora.tasks.batches import IGNORED

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from tangora.adapters.adapter import Adapter
    from tangora.config.polish import PolishSettings
    from tangora.progress import Progress
    from tangora.tasks import Base
    from tangora.tasks.values import Split, Task

__all__ = ["Teaching"]


@dataclass(frozen=True)
class Teaching:
    """How lessons are made.

    Args:
        base: of the experts; as before afterwards.
        settings: rows and what is kept of the answers.
        seed: of the choice of rows, and of those that are made.
        cache: folder of the answers; None to keep none.
        same_base: accept experts of another base.
    """

    base: Base
    settings: PolishSettings
    seed: int
    cache: Path | None
    same_base: bool

    def lessons(
        self, tasks: Sequence[Task], experts: Mapping[str, Callable[[], Adapter]], start: Adapter, progress: Progress
    ) -> list[Lesson]:
        """Return the lesson of every task, in order; one expert is in memory at a time.

        Raises:
            ModelError: an expert saved parameters whole that the start does not have.
        """
        made = []
        progress.begin("answers of the experts", len(tasks))
        for task in tasks:
            top, same = self.settings.top, self.same_base
            chosen = self._rows(task)
            rows, held = self._with_more(task, without_labels(chosen, task.form.logits_over))
            one = lesson(self.base, task, rows, experts[task.name], top=top, same_base=same, cache=self.cache)
            _refuse_other_parameters(one, start)
            labels = _placed(chosen.targets, len(rows), held) if self.settings.labels else None
            made.append(replace(one, held=held, drawn=len(chosen), labels=labels))
            progress.advance(detail=task.name)
        progress.end()
        return made

    def _with_more(self, task: Task, rows: Split) -> tuple[Split, int]:
        """Return the rows with those that are made of them, held-out ones last, and how many are held out.

        Nothing is made of rows that are held out.
        """
        held = self.settings.held(len(rows))
        used, last = rows.select(range(len(rows) - held)), rows.select(range(len(rows) - held, len(rows)))
        classes = task.form.logits_over == "classes"
        more = self.settings.answered(len(rows), classes=classes) - len(rows)
        names = task.labels if self.settings.class_names else ()
        made = recombined(used, more, self.base, f"{self.seed}:{task.name}", names) if more else used.select([])
        return joined([used, made, last]), held

    def _rows(self, task: Task) -> Split:
        """Return the chosen rows.

        Raises:
            ArgumentError: labels are asked for, and answers are no classes.
            DataError: the split is missing, has too few rows or no labels, or most of the rows are test rows.
        """
        if self.settings.labels and task.form.logits_over != "classes":
            fix, where = "leave labels out", f"task {task.name}, polish.labels"
            raise ArgumentError("labels are read of classes alone", got=task.form.kind, where=where, fix=fix)
        chosen = choose_rows(task, self.settings.split, self.settings.rows, self.seed)
        where = f"task {task.name}, {self.settings.split}"
        if len(chosen) < 2:
            raise DataError("polish needs at least 2 rows of a task", got=len(chosen), where=where, fix="add rows")
        if 2 * shared_with_test(task, self.settings.split, chosen) > len(chosen):
            fix = "give other rows: scores on rows that an adapter was made with say nothing"
            raise DataError("most of these rows are among the task's test rows", where=where, fix=fix)
        if self.settings.labels:
            refuse_unlabelled(task, self.settings.split, "polish.labels")
        return task.splits[self.settings.split].select(chosen)


def _placed(targets: Sequence[int], count: int, held: int) -> Int[Tensor, " rows"]:
    """Return the classes of drawn rows among all: held-out ones are last, and those before them were made."""
    labels = torch.full((count,), IGNORED)
    used = len(targets) - held
    labels[:used] = torch.tensor(targets[:used])
    labels[count - held :] = torch.tensor(targets[used:], dtype=torch.int64)
    return labels


def _refuse_other_parameters(one: Lesson, start: Adapter) -> None:
    """Refuse an expert that answered with parameters of its own which the student has not."""
    whole = start.whole
    for name, value in one.expert.whole.items():
        if name not in whole or not torch.equal(whole[name], value):
            what = "an expert saved a parameter of the base whole, and the start has another value of it"
            fix = "polish experts whose modules_to_save agree, or fuse them by name (heads='fuse') and give the result"
            raise ModelError(what, got=one.task.name, where=name, fix=f"{fix} as start")
