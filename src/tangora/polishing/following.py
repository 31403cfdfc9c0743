"""Train a student towards the lessons: batches of one task each, in turn; one optimizer step sees every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from tangora.adapters.initial import seed_of
from tangora.modes.mixture import MixedCollator, MixedRows, Mixture, in_turns
from tangora.modes.trainer import Rows
from tangora.polishing.lessons import Lesson, with_features
from tangora.polishing.objectives import (
    class_divergence,
    feature_distance,
    label_divergence,
    squared_distance,
    tag_divergence,
    token_divergence,
)
from tangora.storage.spread import move_
from tangora.tasks.batches import IGNORED
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.config.polish import PolishSettings
    from tangora.modes.mixture import Collate, Ordered
    from tangora.polishing.lessons import Answers
    from tangora.tasks import Base
    from tangora.tasks.model import TaskModel
    from tangora.tasks.values import Batch

__all__ = ["Follower", "divergences", "in_turn"]


class Follower(nn.Module):
    """A task model whose loss is its distance from the lesson of its task.

    Args:
        model: of the task.
        lesson: of the task.
        base: of the model.
        settings: what is followed.
    """

    def __init__(self, model: TaskModel, lesson: Lesson, base: Base, settings: PolishSettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self._both = with_features(model, lesson.task, base)
        device = next(model.backbone.parameters()).device
        self._answers = lesson.answers.to(device)
        self._labels = None if lesson.labels is None else lesson.labels.to(device)
        self._over = lesson.task.form.logits_over
        self.weight = 1.0

    def forward(self, row: Int[Tensor, " batch"], **batch: Tensor) -> dict[str, Tensor]:
        """Return ``logits`` and the mean ``loss`` of the batch's rows, times the task's weight."""
        labels = batch.pop("labels")
        logits, features = self._both.split(self.model.logits(batch, labels))
        losses = self._with_labels(self._losses(logits, features, row, labels), logits, row)
        return {"loss": self.weight * losses.mean(), "logits": logits}

    def divergence(self, row: Tensor, **batch: Tensor) -> Float[Tensor, " batch"]:
        """Return the divergence of each row; of answers that are no distribution, the squared distance.

        With labels, it is the weighted mean of this and of the cross-entropy.
        """
        labels = batch.pop("labels")
        logits, _ = self._both.split(self.model.logits(batch, labels))
        return self._with_labels(self._divergence(logits, self._answers.of(row), labels, 1.0), logits, row)

    def _with_labels(self, losses: Tensor, logits: Tensor, row: Tensor) -> Tensor:
        """Return ``(1 − a) · loss + a · cross-entropy`` of rows that have a label, and the loss of the others.

        The labels' part has no temperature, as in arXiv:1503.02531.
        """
        if self._labels is None:
            return losses
        labels = self._labels[row]
        share = torch.where(labels == IGNORED, 0.0, self.settings.labels)
        return (1 - share) * losses + share * cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")

    def _losses(self, logits: Tensor, features: Tensor | None, row: Tensor, labels: Tensor) -> Tensor:
        answers, follow = self._answers.of(row), self.settings.follow
        if features is None or follow == "probabilities":
            return self._divergence(logits, answers, labels, self.settings.temperature)
        distance = feature_distance(features, answers)
        if follow == "features":
            return distance
        divergence = self._divergence(logits, answers, labels, self.settings.temperature)
        return divergence + self.settings.feature_weight * distance

    def _divergence(self, logits: Tensor, answers: Answers, labels: Tensor, temperature: float) -> Tensor:
        match self._over:
            case "tokens":
                return token_divergence(logits, answers, labels)
            case "tags":
                return tag_divergence(logits, answers, labels, temperature)
            case "labels":
                return label_divergence(logits, answers, temperature)
            case "classes":
                return class_divergence(logits, answers, temperature)
        return squared_distance(logits, answers)


class _NumberedRows(Dataset[dict[str, Any]]):
    """The rows of a lesson, each with its number."""

    def __init__(self, lesson: Lesson) -> None:
        self._rows = lesson.rows.dataset()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self._rows[number], "row": number}


@dataclass(frozen=True)
class _NumberedCollator:
    """Collates numbered rows; it can be pickled for data loader processes."""

    collator: Collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        bare = [{name: value for name, value in row.items() if name != "row"} for row in rows]
        return {**self.collator(bare), "row": torch.tensor([row["row"] for row in rows])}


def in_turn(lessons: Sequence[Lesson], collators: Sequence[Collate], batch: int, seed: int) -> Callable[[int], Ordered]:
    """Return the rows of a training in their order, for `tangora.modes.session.Session.run`."""
    numbered = tuple(_NumberedCollator(collator) for collator in collators)

    def ordered(drawn: int) -> Ordered:
        share = -(-drawn // batch // len(lessons)) * batch
        streams = [Rows(_NumberedRows(lesson), share, seed_of("polish", seed, lesson.task.name)) for lesson in lessons]
        order = in_turns(len(lessons), batch, share * len(lessons))
        return MixedRows(streams, order), MixedCollator(numbered), Mixture

    return ordered


class Judge(Protocol):
    """A task model that measures how far the answers of rows are from what they should be."""

    model: TaskModel

    def divergence(self, row: Tensor, **batch: Tensor) -> Float[Tensor, " batch"]:
        """Return a number for each row."""
        ...


def divergences(followers: Sequence[Judge], lessons: Sequence[Lesson], batch_size: int = 64) -> dict[str, float]:
    """Return task -> the mean divergence on the rows of its lesson, in nats."""
    means = {}
    for follower, lesson in zip(followers, lessons, strict=True):
        device, total = next(follower.model.backbone.parameters()).device, 0.0
        assert isinstance(follower, nn.Module)
        move_(follower, device)  # a trainer may have moved the backbone that it shares, but not its readout
        with evaluating(follower), torch.no_grad():
            for numbers, batch in lesson.rows.batches(batch_size, follower.model.collator):
                placed = {name: value.to(device) for name, value in batch.items()}
                row = torch.tensor(numbers, device=device)
                total += float(follower.divergence(row, **placed).double().sum())
        means[lesson.task.name] = total / len(lesson.rows)
    return means
