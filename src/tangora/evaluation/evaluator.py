"""Score adapters on tasks. Weights are swapped in place, and nothing is scored twice.

One base model in float32 serves every candidate. A candidate's updates are added to the weights that they change, the
model is scored, and the saved weights are copied back bit for bit. The model is not copied, and no adapter layers are
added. Each score is kept under a key, in memory and (given a path) in a file of JSON lines, so that an equal candidate
is not scored again, in this run or after a kill.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.adapters.heads import heads_digest
from tangora.errors import DataError
from tangora.modes import answers
from tangora.modes.belonging import refuse_another_base
from tangora.modes.contract import mode_of
from tangora.support.files import digest, writing
from tangora.support.json_text import parse_json
from tangora.support.seams import FAMILIES, METRICS
from tangora.support.shown import one_line
from tangora.support.source import source_digest
from tangora.tasks import predict, score
from tangora.tasks.maps import packed, unpacked
from tangora.tasks.values import only

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.adapters.adapter import Adapter
    from tangora.tasks import Base, Task, TaskModel

__all__ = [
    "Evaluator",
    "Result",
    "ScoreStore",
    "answering",
    "evaluate",
    "scoring_code",
    "scoring_key",
]


@dataclass(frozen=True)
class Result:
    """The result of one model on one split of one task.

    Attributes:
        score: by the task's metric.
        loss: mean loss over the rows.
        values: the prediction for each row, in the split's order (labels, or generated texts).
        unended: number of generated answers that reached the largest number of tokens without an end.
    """

    score: float
    loss: float
    values: list[Any]
    unended: int = 0

    def __repr__(self) -> str:
        return one_line("Result", f"score {self.score:.4g}", f"loss {self.loss:.4g}", f"{len(self.values)} rows")


class ScoreStore:
    """Results by key. With a ``path``, they are appended to the file line by line and read on construction.

    A line truncated by a kill is dropped: its score is measured again.

    Args:
        path: a file of JSON lines; None keeps results in memory only.
        also: further stores to read results from; nothing is added to them.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, also: Iterable[ScoreStore] = ()) -> None:
        self._results: dict[str, Result] = {}
        self._path = Path(path) if path is not None else None
        self._also = list(also)
        if self._path is not None and self._path.exists():
            raw = self._path.read_bytes()
            complete = raw[: raw.rfind(b"\n") + 1]
            if len(complete) < len(raw):
                os.truncate(self._path, len(complete))  # in one step: a kill while it is written again loses all lines
            self._read(complete.decode(errors="replace"))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ScoreStore:
        """Return the results of a file that another process may be writing, or an empty store if there is none."""
        store = cls()
        if Path(path).exists():
            store._read(Path(path).read_text(encoding="utf-8", errors="replace"))
        return store

    def __len__(self) -> int:
        """Return the number of results in this store."""
        return len(self._results)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in this store, in the order in which results were added."""
        return iter(self._results)

    def get(self, key: str) -> Result | None:
        """Return the result under ``key``, or None."""
        if key in self._results:
            return self._results[key]
        return next((result for store in self._also if (result := store.get(key)) is not None), None)

    def put(self, key: str, result: Result) -> None:
        """Keep ``result`` under ``key``, on disk before this returns."""
        self._results[key] = result
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        row = {"key": key, "score": result.score, "loss": result.loss, "values": packed(result.values)}
        line = json.dumps({**row, "unended": result.unended} if result.unended else row)
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _read(self, text: str) -> None:
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = parse_json(line)
                self._results[row["key"]] = Result(
                    row["score"], row["loss"], unpacked(row["values"]), row.get("unended", 0)
                )


class Evaluator:
    """Scores candidates on a fixed set of tasks with one base model.

    Args:
        base: the pristine base; its weights are restored after every call.
        tasks: all tasks that a candidate can be scored on.
        batch_size: rows per forward pass.
        store: keeps the results; in memory by default.
        same_base: accept adapters that were made for another base.
    """

    def __init__(
        self,
        base: Base,
        tasks: Sequence[Task],
        *,
        batch_size: int = 64,
        store: ScoreStore | None = None,
        same_base: bool = False,
    ) -> None:
        self._base, self._same_base = base, same_base
        self._tasks = {task.name: task for task in tasks}
        self._batch_size = batch_size
        self._store = store if store is not None else ScoreStore()
        self._saved: dict[str, Tensor] = {}
        self.scored = 0

    def on(self, rows: Mapping[str, Sequence[int]], split: str) -> Evaluator:
        """Return an evaluator on some rows of a split of some tasks, with the same store."""
        tasks = [only(self._tasks[name], split, chosen) for name, chosen in rows.items()]
        return Evaluator(self._base, tasks, batch_size=self._batch_size, store=self._store)

    def evaluate(
        self, key: str, adapter: Callable[[], Adapter | None], tasks: Sequence[str], split: str
    ) -> dict[str, Result]:
        """Return results on ``split`` of ``tasks``; call ``adapter`` only if one of them is missing in the store.

        Args:
            key: identifies the candidate: equal keys must mean equal weights.
            adapter: makes the candidate; None stands for the unchanged base model.

        Raises:
            ModelError: the adapter does not fit the base, or was made for other weights.
            DataError: a task has no such split.
        """
        names = {name: self._key(key, self._tasks[name], split) for name in tasks}
        missing = [name for name in tasks if self._store.get(names[name]) is None]
        if missing:
            with answering(adapter(), self._base, self._saved, same_base=self._same_base) as model_of:
                for name in missing:
                    self._store.put(names[name], self._measure(model_of, self._tasks[name], split))
                    self.scored += 1
        results = {name: self._store.get(names[name]) for name in tasks}
        return {name: result for name, result in results.items() if result is not None}

    def _key(self, key: str, task: Task, split: str) -> str:
        computed = [self._base.identity, self._base.machine.dtype]
        return digest([key, *computed, task.fingerprint, split, scoring_code(task.family, task.metrics)])

    def _measure(self, model_of: Callable[[Task], TaskModel], task: Task, split: str) -> Result:
        if split not in task.splits:
            raise DataError("the split is missing", got=split, where=f"task {task.name}")
        rows = task.splits[split]
        predictions = predict(model_of(task), rows, self._batch_size)
        return Result(
            score=float(score(task.metric, predictions.values, rows.targets)),
            loss=float(np.mean(predictions.losses, dtype=np.float64)),
            values=predictions.plain,
            unended=predictions.unended,
        )


@cache
def scoring_code(family: str, metrics: tuple[str, ...]) -> str:
    """Return a digest of the scoring code: after a change, every score is measured again.

    It covers the family, the metrics and the code that applies updates to weights, also from other packages.
    `scoring_key` covers modes that answer in another way.
    """
    used = [FAMILIES.get(family), *(METRICS.get(name) for name in metrics)]
    return source_digest(Evaluator, answers, *used, without=("tangora.errors", "tangora.progress"))


@contextlib.contextmanager
def answering(
    adapter: Adapter | None, base: Base, saved: dict[str, Tensor] | None = None, *, same_base: bool = False
) -> Iterator[Callable[[Task], TaskModel]]:
    """Yield a function, task -> model, that answers with an adapter by its mode; restore the base afterwards.

    Args:
        adapter: of any mode; None stands for the unchanged base.
        base: its model answers.
        saved: pristine weights kept from earlier calls with the same base; filled here.
        same_base: accept an adapter that was made for another base.

    Raises:
        ModelError: the adapter was made for another base, or does not fit it.
    """
    from tangora.tasks.model import TaskModel  # deferred: torch

    refuse_another_base(adapter, base, same_base=same_base)
    if adapter is None:
        yield lambda task: TaskModel(base.backbone, task, base)
        return
    with mode_of(adapter).answering(base, adapter, {} if saved is None else saved) as model_of:
        yield model_of


def scoring_key(adapter: Adapter) -> str:
    """Return a key of an adapter's scores: its updates, the way its mode answers with them, and its heads."""
    mode, key = mode_of(adapter), adapter.fingerprint
    if mode.answers != "weights":
        key = digest([mode.answers, adapter.fingerprint, source_digest(mode)])
    return digest([key, heads_digest(adapter.heads)]) if adapter.heads else key


def evaluate(
    adapter: Adapter | None,
    base: Base,
    tasks: Sequence[Task],
    *,
    split: str = "test",
    batch_size: int = 64,
    same_base: bool = False,
) -> Mapping[str, Result]:
    """Score one adapter (or the base alone, ``None``) on ``split`` of each task.

    Args:
        adapter: of any mode.
        base: the model that the adapter was made for.
        tasks: to score it on.
        split: of each task.
        batch_size: rows per forward pass.
        same_base: accept an adapter that was made for another base.

    Raises:
        ModelError: the adapter does not fit the base, or was made for other weights.
        DataError: a task has no such split.
    """
    key = scoring_key(adapter) if adapter is not None else "zero_shot"
    evaluator = Evaluator(base, tasks, batch_size=batch_size, same_base=same_base)
    return evaluator.evaluate(key, lambda: adapter, [task.name for task in tasks], split)
