"""The loss of a student: how far its answers are from those of an expert, for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tangora.polishing.lessons import Answers
from tangora.tasks.batches import IGNORED

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import LogitsOver

__all__ = [
    "answer_entropy",
    "class_divergence",
    "feature_distance",
    "label_divergence",
    "squared_distance",
    "tag_divergence",
    "token_divergence",
]

_LEAST = 1e-12


def class_divergence(
    logits: Float[Tensor, "batch classes"], answers: Answers, temperature: float = 1.0
) -> Float[Tensor, " batch"]:
    """Return ``T² · KL(expert ‖ student)`` of the class probabilities at temperature T, in nats (arXiv:1503.02531).

    The factor T² keeps the size of its gradients as T changes.
    """
    expert = (answers.logits / temperature).log_softmax(-1)
    student = (logits / temperature).log_softmax(-1)
    return temperature**2 * (expert.exp() * (expert - student)).sum(-1)


def token_divergence(
    logits: Float[Tensor, "batch tokens vocabulary"], answers: Answers, labels: Int[Tensor, "batch tokens"]
) -> Float[Tensor, " batch"]:
    """Return the mean of ``KL(expert ‖ student)`` over the tokens of a row, in nats.

    All tokens that are not among the expert's most likely ones count as one outcome, with the mass that is left to
    them. Merging outcomes never raises a divergence, so this is a lower bound; it is exact if the vocabulary is kept.
    """
    assert answers.tokens is not None
    count = labels.shape[1]  # answers are padded to the longest row of the lesson, a batch to its own
    expert, kept = answers.logits[:, :count], answers.tokens[:, :count]
    every = logits.log_softmax(-1)
    student = every.gather(-1, kept)
    total = (expert.exp() * (expert - student)).sum(-1)
    if kept.shape[-1] < logits.shape[-1]:
        rest = (1 - expert.exp().sum(-1)).clamp_min(_LEAST)
        # 1 − Σ of the kept ones would be rounding alone, without a gradient, if they have nearly all of the mass
        others = every.scatter(-1, kept, -torch.inf).logsumexp(-1)
        total = total + rest * (rest.log() - others)
    mask = labels != IGNORED
    return torch.where(mask, total, 0).sum(1) / mask.sum(1).clamp_min(1)


def tag_divergence(
    logits: Float[Tensor, "batch tokens tags"],
    answers: Answers,
    labels: Int[Tensor, "batch tokens"],
    temperature: float = 1.0,
) -> Float[Tensor, " batch"]:
    """Return the mean of ``T² · KL(expert ‖ student)`` over the words of a row, in nats.

    Args:
        logits: of the student.
        answers: of the expert.
        labels: ignored wherever no word begins.
        temperature: T.
    """
    expert = answers.logits[:, : labels.shape[1]]  # padded to the longest row of the lesson
    each = class_divergence(logits, Answers(expert), temperature)
    mask = labels != IGNORED
    return torch.where(mask, each, 0).sum(1) / mask.sum(1).clamp_min(1)


def label_divergence(
    logits: Float[Tensor, "batch labels"], answers: Answers, temperature: float = 1.0
) -> Float[Tensor, " batch"]:
    """Return ``T² · KL(expert ‖ student)`` of the sets of labels, in nats: the sum over independent labels."""
    expert, student = answers.logits / temperature, logits / temperature
    yes = expert.sigmoid() * (logsigmoid(expert) - logsigmoid(student))
    no = (-expert).sigmoid() * (logsigmoid(-expert) - logsigmoid(-student))
    return temperature**2 * (yes + no).sum(-1)


def squared_distance(logits: Float[Tensor, "batch width"], answers: Answers) -> Float[Tensor, " batch"]:
    """Return the mean square of the differences, for answers that are no distribution."""
    return (logits - answers.logits).square().mean(-1)


def feature_distance(features: Float[Tensor, "batch dim"], answers: Answers) -> Float[Tensor, " batch"]:
    """Return one minus the cosine of unit features: half their squared distance."""
    assert answers.features is not None
    return 1 - (features * answers.features).sum(-1)


def answer_entropy(
    logits: Float[Tensor, "batch *tokens width"], labels: Int[Tensor, " batch *tokens"], over: LogitsOver | None
) -> Float[Tensor, " batch"]:
    """Return the entropy of each row's answer, in nats: the mean over its tokens or tags, the sum over its labels.

    Args:
        logits: of a task whose answers are distributions.
        labels: only their places count: tokens and tags that are ignored are left out.
        over: what the logits are over.
    """
    if over == "labels":
        yes, no = logits.sigmoid() * logsigmoid(logits), (-logits).sigmoid() * logsigmoid(-logits)
        return -(yes + no).sum(-1)
    each = -(logits.log_softmax(-1) * logits.softmax(-1)).sum(-1)
    if over == "classes":
        return each
    mask = labels != IGNORED
    return torch.where(mask, each, 0).sum(1) / mask.sum(1).clamp_min(1)
