"""What a task's rows are like: sizes, classes, lengths, rows that are cut, and one row as the model reads it.

rows, targets ── all of them ──▶ sizes, counts of classes
              ── a sample ─ Family.encode ──▶ lengths, share of rows that are cut, the example
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING, Any

from tangora.tasks.batches import IGNORED
from tangora.tasks.contract import MAPS
from tangora.tasks.load import made_of, read_rows
from tangora.tasks.splits import sample
from tangora.tasks.values import Split, Task
from tangora.tasks.zero_shot import ZeroShotTask

if TYPE_CHECKING:
    from tangora.config.tasks import TaskSettings
    from tangora.tasks.base import Base

__all__ = ["SAMPLE", "Example", "Overview", "SplitOverview", "Spread", "overview_of", "surveyed"]

SAMPLE = 2000
"""The most rows of a split that are converted to inputs for an overview."""
_MOST = 2000  # characters of an example


@dataclass(frozen=True)
class Spread:
    """The smallest, the median and the largest of some numbers."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return the spread of values; None if there are none."""
        listed = list(values)
        return cls(min(listed), median_low(listed), max(listed)) if listed else None


@dataclass(frozen=True)
class SplitOverview:
    """The rows of a split.

    Attributes:
        rows: how many.
        counts: class, label or answer -> its number of rows; tag -> its number of words; None if there are no classes.
        numbers: of a regression's targets; of plain texts, their bytes.
        converted: rows that were converted to inputs; fewer than ``rows`` if they are a sample.
        cut: how many of these lose tokens.
        max_length: the number of tokens that are kept; None if no row can be cut.
        prompt_tokens: of what the model reads, in the converted rows; None if it reads no tokens.
        answer_tokens: of what the model should write; None if it writes none.
    """

    rows: int
    counts: Mapping[str, int] | None
    numbers: Spread | None
    converted: int
    cut: int
    max_length: int | None
    prompt_tokens: Spread | None
    answer_tokens: Spread | None


@dataclass(frozen=True)
class Example:
    """A row of train.

    Attributes:
        prompt: exactly what the model reads, special tokens included; of an image, its shape.
        answer: what it should answer; with special tokens if the model writes it. None of a plain text.
    """

    prompt: str
    answer: str | None


@dataclass(frozen=True)
class Overview:
    """The rows of a task.

    Attributes:
        task, family: names.
        metrics: the primary one first.
        answers: their kind; see `tangora.tasks.contract.Answers`.
        classes: names in label order; empty if there are none.
        names_read: how a zero-shot model reads the name of the first class, in every template; else empty.
        splits: train, validation and test.
        example: a row of train.
    """

    task: str
    family: str
    metrics: tuple[str, ...]
    answers: str
    classes: Sequence[str]
    names_read: Sequence[str]
    splits: Mapping[str, SplitOverview]
    example: Example | None


def surveyed(config: TaskSettings, base: Base, seed: int, most: int = SAMPLE) -> tuple[Task, Overview]:
    """Return a task of at most ``most`` rows of each split, and the overview of all its rows.

    Targets are checked in all rows, and inputs in those that are converted.

    Raises:
        DataError: as `tangora.tasks.load.load_task`.
    """
    classes, parts = read_rows(config, base.config.family, seed)
    few = {split: rows.select(sample(len(rows.targets), most, seed)) for split, rows in parts.items()}
    task = made_of(config, base, classes, few)
    return task, overview_of(task, config, base, {split: rows.targets for split, rows in parts.items()})


def overview_of(
    task: Task, config: TaskSettings, base: Base, targets: Mapping[str, Sequence[Any]] | None = None
) -> Overview:
    """Return the overview of a task.

    Args:
        task: with the rows that were converted.
        config: its settings.
        base: its base.
        targets: split -> the targets of all rows, if the task has only some; as the family makes them.
    """
    whole = targets or {name: split.targets for name, split in task.splits.items()}
    first = task.labels[0] if task.labels and isinstance(task, ZeroShotTask) else None
    templates: Sequence[str] = getattr(config, "templates", ())
    return Overview(
        task=task.name,
        family=task.family,
        metrics=task.metrics,
        answers=task.form.kind,
        classes=list(task.labels),
        names_read=[] if first is None else [template.replace("{}", first) for template in templates],
        splits={name: _split(task, split, whole[name]) for name, split in task.splits.items()},
        example=_example(task, base),
    )


def _split(task: Task, split: Split, targets: Sequence[Any]) -> SplitOverview:
    kind = task.form.kind
    written = split.inputs.get("labels") if task.form.logits_over == "tokens" else None
    read = [len(ids) for ids in split.inputs.get("input_ids", [])]
    answers = None if written is None else [int((row != IGNORED).sum()) for row in written]
    if kind == "likelihood" and answers is not None:  # its first token is the prompt, and all others are scored
        read, answers = [one + other for one, other in zip(read, answers, strict=True)], None
    return SplitOverview(
        rows=len(targets),
        counts=_counts(task, targets),
        numbers=Spread.of(targets) if kind in ("number", "likelihood") else None,
        converted=len(split),
        cut=len(split.cut),
        max_length=split.longest,
        prompt_tokens=Spread.of(read),
        answer_tokens=None if answers is None else Spread.of(answers),
    )


def _counts(task: Task, targets: Sequence[Any]) -> dict[str, int] | None:
    """Return class -> count, every class of the task included."""
    kind, names = task.form.kind, task.labels
    if kind == "classes":
        found = Counter(names[number] for number in targets)
    elif kind == "labels":
        found = Counter(names[number] for numbers in targets for number in numbers)
    elif kind == "tags":
        found = Counter(tag for tags in targets for tag in tags)
    elif kind == "text" and names:
        found = Counter(target[0] if isinstance(target, tuple) else target for target in targets)
        if len(found) > len(names):  # the answers contain more than the class
            return None
        return dict(sorted(found.items()))
    else:
        return None
    return {name: found[name] for name in names}


def _example(task: Task, base: Base) -> Example | None:
    split = task.splits.get("train")
    if split is None or not len(split):
        return None
    ids = split.inputs.get("input_ids")
    answer = _answer(task, split.targets[0])
    if ids is None:
        shapes = (f"{name} of shape {' × '.join(map(str, values[0].shape))}" for name, values in split.inputs.items())
        return Example(", ".join(shapes), answer)
    prompt = ids[0].tolist()
    if task.form.logits_over == "tokens":
        written = [token for token in split.inputs["labels"][0].tolist() if token != IGNORED]
        if task.form.kind == "likelihood":
            return Example(_decoded(base, prompt + written), None)
        answer = _decoded(base, written)
    return Example(_decoded(base, prompt), answer)


def _answer(task: Task, target: Any) -> str:
    names, kind = task.labels, task.form.kind
    if kind == "classes":
        return str(names[target])
    if kind == "labels":
        return ", ".join(names[number] for number in target) or "no label"
    if kind in MAPS:
        return f"a map of {' × '.join(map(str, target.shape))} pixels"
    return " ".join(target) if kind == "tags" else f"{target:g}" if kind == "number" else str(target)


def _decoded(base: Base, ids: list[int]) -> str:
    if not hasattr(base.processor, "decode"):  # a third party's family may have tokens of its own
        return f"{len(ids)} tokens"
    text: str = base.processor.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text if len(text) <= _MOST else f"{text[: _MOST // 2]} … {text[-_MOST // 2 :]}"
