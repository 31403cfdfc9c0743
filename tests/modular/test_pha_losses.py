"""PHA's losses against double loops; label smoothing against torch's."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tangora.modular.pha.losses import instance_loss, nearest_prototype, prototype_loss
from tangora.modular.smoothing import smoothed
from tangora.tasks.readouts import token_losses

TASKS = torch.tensor([0, 2, 0, 1, 2, 0, 3])  # 1 and 3 have one row each
T = 0.1


@pytest.fixture
def encodings():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


@pytest.fixture
def prototypes():
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def cosine(x, y):
    x, y = x.tolist(), y.tolist()
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)


def by_loops(z, tasks):
    total, anchors = 0.0, 0
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and tasks[p] == tasks[i]]
        if not positives:
            continue
        below = sum(math.exp(cosine(z[i], z[a]) / T) for a in range(len(z)) if a != i)
        total += sum(math.log(math.exp(cosine(z[i], z[p]) / T) / below) for p in positives) / len(positives)
        anchors += 1
    return -total / anchors


def to_prototypes_by_loops(z, tasks, k, released):
    total = 0.0
    for i in range(len(z)):
        own = int(tasks[i])
        below = sum(math.exp(cosine(z[i], k[t]) / T) for t in range(len(k)) if not (released and t == own))
        total += cosine(z[i], k[own]) / T - math.log(below)
    return -total / len(z)


def test_the_loss_between_rows(encodings):
    loss = float(instance_loss(encodings, TASKS, T).detach())
    assert math.isclose(loss, by_loops(encodings, TASKS), rel_tol=1e-12)
    assert torch.autograd.gradcheck(lambda z: instance_loss(z, TASKS, 0.5), encodings)


@pytest.mark.parametrize("released", [False, True])
def test_the_loss_between_rows_and_prototypes(encodings, prototypes, released):
    loss = prototype_loss(encodings, TASKS, prototypes, T, released=released)
    expected = to_prototypes_by_loops(encodings, TASKS, prototypes, released)
    assert math.isclose(loss.item(), expected, rel_tol=1e-12)
    assert released or loss.item() >= 0
    assert torch.autograd.gradcheck(
        lambda z, k: prototype_loss(z, TASKS, k, 0.5, released=released), (encodings, prototypes)
    )


def test_the_two_forms_differ_by_the_positive(encodings, prototypes):
    ordinary, released = (prototype_loss(encodings, TASKS, prototypes, T, released=r) for r in (False, True))
    assert ordinary.item() > released.item(), "a term more in the denominator"


def test_an_anchor_without_positives_contributes_nothing(encodings):
    """Row 6 is alone: the mean is over the other six, for which it is a negative."""
    loss = instance_loss(encodings, torch.tensor([0, 0, 0, 0, 0, 0, 1]), 1.0)
    z, total = encodings.detach(), 0.0
    for i in range(6):
        below = sum(math.exp(cosine(z[i], z[a])) for a in range(7) if a != i)
        total -= sum(math.log(math.exp(cosine(z[i], z[p])) / below) for p in range(6) if p != i) / 5
    assert math.isclose(loss.item(), total / 6, rel_tol=1e-12)


@pytest.mark.parametrize("tasks", [[0], [0, 1, 2]])
def test_without_any_positives_the_loss_is_zero_and_has_a_gradient_of_zero(encodings, tasks):
    loss = instance_loss(encodings[: len(tasks)], torch.tensor(tasks), T)
    loss.backward()
    assert loss.item() == 0
    assert not bool(encodings.grad.any())


@pytest.mark.parametrize("released", [False, True])
def test_relabelling_tasks_with_their_prototypes_changes_nothing(encodings, prototypes, released):
    order = torch.tensor([2, 0, 3, 1])  # task t becomes order[t]
    moved = torch.empty_like(prototypes)
    moved[order] = prototypes
    own = prototype_loss(encodings, TASKS, prototypes, T, released=released)
    again = prototype_loss(encodings, order[TASKS], moved, T, released=released)
    assert torch.allclose(own, again, rtol=1e-12)
    assert torch.equal(instance_loss(encodings, TASKS, T), instance_loss(encodings, order[TASKS], T))


def test_the_nearest_prototype_has_the_largest_cosine_to_the_mean():
    prototypes = torch.tensor([[5.0, 0.0], [0.0, 0.1], [-1.0, -1.0]])
    assert nearest_prototype(torch.tensor([[0.1, 1.0], [-0.2, 3.0]]), prototypes) == 1, "the lengths do not matter"
    assert nearest_prototype(torch.tensor([[1.0, 0.2], [1.0, -0.2], [-0.01, 0.02]]), prototypes) == 0


LOGITS = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_smoothed_labels_of_classes():
    logits, labels = LOGITS[:, 0], torch.tensor([1, 5, 0])
    plain = cross_entropy(logits, labels, reduction="none")
    expected = cross_entropy(logits, labels, reduction="none", label_smoothing=0.3)
    assert torch.allclose(smoothed(plain, logits, labels, "classes", 0.3), expected, rtol=1e-12)


@pytest.mark.parametrize("over", ["tags", "tokens"])
def test_smoothed_labels_of_tokens(over):
    labels = torch.tensor([[1, 5, -100, -100], [0, 2, 3, 4], [4, -100, -100, -100]])
    plain = token_losses(LOGITS, labels)
    expected = torch.stack(
        [
            cross_entropy(row[own != -100], own[own != -100], label_smoothing=0.3)
            for row, own in zip(LOGITS, labels, strict=True)
        ]
    )
    assert torch.allclose(smoothed(plain, LOGITS, labels, over, 0.3), expected, rtol=1e-12)


def test_smoothed_labels_of_rows_with_several():
    logits = LOGITS[:, 0]
    hot = (torch.arange(18).reshape(3, 6) % 4 == 0).double()
    plain = binary_cross_entropy_with_logits(logits, hot, reduction="none").mean(-1)
    expected = binary_cross_entropy_with_logits(logits, 0.7 * hot + 0.3 / 2, reduction="none").mean(-1)
    assert torch.allclose(smoothed(plain, logits, hot, "labels", 0.3), expected, rtol=1e-12)


def test_a_regression_is_not_smoothed():
    plain = torch.ones(3)
    assert smoothed(plain, LOGITS[:, 0, :1], torch.zeros(3), None, 0.3) is plain
    assert smoothed(plain, LOGITS[:, 0], torch.zeros(3).long(), "classes", 0.0) is plain
