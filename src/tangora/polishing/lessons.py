"""The experts' answers on rows without labels: computed once, one expert in memory at a time, and kept by content.

    rows of a task ─▶ expert in the base ─▶ Lesson: the rows as inputs, and the expert's answers

Answers are logits over classes, labels or tags (or numbers), in full; or, for each token that the expert itself
generated, the probabilities of the most likely tokens and the mass of all the others. If logits are linear in unit
features (`Family.followed`), the features are kept too. A lesson contains labels of the data set only if the setting
``labels`` asks for them (`tangora.polishing.teaching`); they are no part of what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tangora.adapters.adapter import Adapter
from tangora.errors import ModelError
from tangora.evaluation.evaluator import answering, scoring_key
from tangora.evaluation.generated import generated_labels
from tangora.modes.belonging import refuse_another_base
from tangora.polishing.rows import without_labels
from tangora.support.files import atomic_file, digest, read_safetensors, write_safetensors
from tangora.support.seams import FAMILIES
from tangora.support.source import source_digest
from tangora.tasks.batches import IGNORED
from tangora.tasks.fitting import with_head
from tangora.tasks.values import Split, Task, evaluating

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks import Base
    from tangora.tasks.contract import Readout
    from tangora.tasks.model import TaskModel

__all__ = ["Answers", "Lesson", "SideBySide", "lesson", "with_features"]

_BATCH = 32


@dataclass(frozen=True)
class Answers:
    """An expert's answers to rows, in order.

    Attributes:
        logits: in full; of tokens, the logarithms of the probabilities of the ``top`` most likely.
        features: unit features; None if logits are no linear function of such.
        tokens: the most likely tokens; None if answers are not tokens. Rows are padded on the right.
    """

    logits: Float[Tensor, "rows *tokens width"]
    features: Float[Tensor, "rows dim"] | None = None
    tokens: Int[Tensor, "rows tokens top"] | None = None

    def of(self, rows: Tensor) -> Answers:
        """Return the answers to some rows, on the device of their numbers."""
        chosen, device = rows.to(self.logits.device), rows.device
        features = None if self.features is None else self.features[chosen].to(device)
        tokens = None if self.tokens is None else self.tokens[chosen].to(device)
        return Answers(self.logits[chosen].to(device), features, tokens)

    def mass(self, rows: Split) -> float | None:
        """Return the mean probability of the tokens that are kept; None if answers are not tokens."""
        if self.tokens is None:
            return None
        labels = pad_sequence(list(rows.inputs["labels"]), batch_first=True, padding_value=IGNORED)
        kept = self.logits[:, : labels.shape[1]].exp().sum(-1)
        return float(kept[labels != IGNORED].double().mean())

    def to(self, device: torch.device) -> Answers:
        """Return the answers on a device."""
        features = None if self.features is None else self.features.to(device)
        return Answers(self.logits.to(device), features, None if self.tokens is None else self.tokens.to(device))


@dataclass(frozen=True)
class Lesson:
    """Rows of a task, with the answers of its expert.

    Attributes:
        task: with the rows as its only split, ``train``.
        rows: their inputs; the labels are placeholders, or for generated text the expert's own tokens.
        answers: of the expert.
        expert: the expert without its updates: its heads, records, and parameters saved whole.
        print: the fingerprint of the expert.
        key: of the expert's answers: its updates, heads and mode.
        drawn: how many of the rows are rows of the task; the others were made of them.
        held: how many of the rows, the last ones, are held out.
        labels: the class of each row, ``IGNORED`` for rows that were made; None if no label is read.
    """

    task: Task
    rows: Split
    answers: Answers
    expert: Adapter
    print: str
    key: str
    drawn: int = 0
    held: int = 0
    labels: Int[Tensor, " rows"] | None = None

    def part(self, rows: Sequence[int]) -> Lesson:
        """Return the lesson of some of the rows, in this order."""
        numbers = torch.tensor(list(rows), dtype=torch.int64)
        labels = None if self.labels is None else self.labels[numbers]
        return replace(self, rows=self.rows.select(rows), answers=self.answers.of(numbers), labels=labels)


class SideBySide(nn.Module):
    """A readout whose logits are those of a task's readout, followed by unit features of the same pass.

    Args:
        readout: of the task.
        followed: has unit features as its logits; None without features.
    """

    def __init__(self, readout: Readout, followed: Readout | None) -> None:
        super().__init__()
        self.readout, self.followed = readout, followed
        self.width = readout.width + (followed.width if followed is not None else 0)
        self.features_key = readout.features_key

    def features(self, backbone: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor | None, /) -> Tensor:
        """Return the features that both readouts share."""
        return self.readout.features(backbone, dict(inputs), labels)

    def logits(self, features: Tensor, /) -> Tensor:
        """Return logits and unit features, side by side."""
        logits = self.readout.logits(features)
        return logits if self.followed is None else torch.cat([logits, self.followed.logits(features)], -1)

    def split(self, joint: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the two parts of logits."""
        if self.followed is None:
            return joint, None
        return joint[..., : self.readout.width], joint[..., self.readout.width :]


def with_features(model: TaskModel, task: Task, base: Base) -> SideBySide:
    """Give the model a readout that returns unit features too, if the task has such, and return that readout.

    Raises:
        ModelError: the features are not those from which logits are computed, which is a fault of the family.
    """
    family: Any = FAMILIES.get(task.family)
    followed = family.followed(task)
    second: Any = None if followed is None else family.readout(followed, base)
    if second is not None:
        if second.features_key != model.readout.features_key:
            raise ModelError("followed features are of another kind than the task's", got=task.family, where=task.name)
        second.to(next(model.backbone.parameters()).device)
    both = SideBySide(model.readout, second)
    model.readout = cast(Any, both)  # it computes features and logits, and is asked for nothing else
    return both


def lesson(
    base: Base,
    task: Task,
    rows: Split,
    expert: Callable[[], Adapter],
    *,
    top: int,
    same_base: bool = False,
    cache: Path | None = None,
) -> Lesson:
    """Return the answers of a task's expert to rows of its inputs.

    Args:
        base: as before afterwards.
        task: of the expert.
        rows: inputs; their targets and labels are not used.
        expert: loads the expert, which is dropped again before this returns.
        top: tokens of a vocabulary whose probabilities are kept.
        same_base: accept an expert of another base.
        cache: folder in which answers are kept by their content; None to keep none.

    Raises:
        ModelError: the expert was made for another base, or does not fit it.
    """
    adapter = expert()
    refuse_another_base(adapter, base, same_base=same_base)  # also if its answers are kept
    adapter = with_head(adapter, base, task)
    unlabelled = without_labels(rows, task.form.logits_over)
    path = None if cache is None else cache / f"{_key(base, task, unlabelled, adapter, top)}.safetensors"
    if path is not None and path.is_file():
        return _assembled(task, unlabelled, read_safetensors(path), adapter)
    with answering(adapter, base, same_base=same_base) as model_of:
        tensors = _answered(model_of, task, unlabelled, base, top)
    if path is not None:
        with atomic_file(path) as scratch:
            write_safetensors(scratch, tensors)
    return _assembled(task, unlabelled, tensors, adapter)


def _key(base: Base, task: Task, rows: Split, adapter: Adapter, top: int) -> str:
    """Return a hash of everything that determines the answers."""
    family = FAMILIES.get(task.family)
    code = source_digest(lesson, family, without=("tangora.errors", "tangora.progress"))
    kept = top if task.form.logits_over == "tokens" else None
    who = [scoring_key(adapter), base.identity, base.machine.dtype]
    return digest(["lesson", code, *who, task.fingerprint, rows.fingerprint, kept])


def _answered(
    model_of: Callable[[Task], TaskModel], task: Task, rows: Split, base: Base, top: int
) -> dict[str, Tensor]:
    """Return the answers as tensors: ``logits``, ``features``, and of tokens ``generated``, ``tokens``."""
    model = model_of(task)
    if task.form.logits_over == "tokens":
        labels = generated_labels(model, rows)
        rows = Split({**rows.inputs, "labels": labels}, [0] * len(rows))
    both = with_features(model, task, base)
    logits: list[Any] = [None] * len(rows)
    features: list[Any] = [None] * len(rows)
    tokens: list[Any] = [None] * len(rows)
    with evaluating(model), torch.no_grad():  # inference mode would disable forward-mode differentiation
        for numbers, batch in rows.batches(_BATCH, model.collator):
            placed = {name: value.to(_device(model)) for name, value in batch.items()}
            inputs = {name: value for name, value in placed.items() if name != "labels"}
            own, units = both.split(model.logits(inputs, placed["labels"]))
            if task.form.logits_over == "tokens":
                own, most = own.log_softmax(-1).topk(min(top, own.shape[-1]))
                _fill(tokens, numbers, most)
            _fill(logits, numbers, own)
            if units is not None:
                _fill(features, numbers, units)
    parts = {"logits": logits, "features": features, "tokens": tokens}
    tensors = {name: pad_sequence(values, batch_first=True) for name, values in parts.items() if values[0] is not None}
    if task.form.logits_over == "tokens":
        tensors["generated"] = pad_sequence(list(rows.inputs["labels"]), batch_first=True, padding_value=IGNORED)
    return tensors


def _fill(places: list[Any], numbers: Sequence[int], values: Tensor) -> None:
    for number, value in zip(numbers, values.cpu(), strict=True):
        places[number] = value


def _assembled(task: Task, rows: Split, tensors: Mapping[str, Tensor], adapter: Adapter) -> Lesson:
    """Return the lesson; its task has the rows as its only split."""
    if (generated := tensors.get("generated")) is not None:
        labels = [row[row != IGNORED] for row in generated]
        rows = Split({**rows.inputs, "labels": labels}, rows.targets)
    answers = Answers(tensors["logits"], tensors.get("features"), tensors.get("tokens"))
    kept = replace(adapter, updates={})
    return Lesson(replace(task, splits={"train": rows}), rows, answers, kept, adapter.fingerprint, scoring_key(adapter))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
