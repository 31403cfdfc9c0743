"""Divergences between an expert and a student, against sums over all outcomes."""

from __future__ import annotations

import itertools

import pytest
import torch

from tangora.polishing.lessons import Answers
from tangora.polishing.objectives import class_divergence, label_divergence, tag_divergence


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_of_labels_it_is_that_of_all_sets_of_labels(draw, temperature):
    expert, student = (3 * torch.randn(4, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    expected = torch.zeros(4, dtype=torch.float64)
    for chosen in itertools.product((0.0, 1.0), repeat=3):
        p, q = (_of_set(logits / temperature, torch.tensor(chosen)) for logits in (expert, student))
        expected += temperature**2 * p * (p.log() - q.log())
    found = label_divergence(student, Answers(expert), temperature)
    assert torch.allclose(found, expected, rtol=1e-10)
    assert label_divergence(expert, Answers(expert), temperature).abs().max() < 1e-12


def _of_set(logits, chosen):
    """The probability of a set of independent labels."""
    p = logits.sigmoid()
    return torch.where(chosen > 0, p, 1 - p).prod(-1)


def test_large_logits_of_labels_stay_finite():
    expert = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = label_divergence(expert, Answers(torch.tensor([[-200.0, -200.0]])))
    loss.sum().backward()
    assert loss.item() == pytest.approx(200.0)
    assert expert.grad.isfinite().all()


def test_of_tags_it_is_the_mean_over_words(draw):
    expert, student = (torch.randn(2, 5, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([[-100, 0, -100, 0], [-100, -100, 0, -100]])
    found = tag_divergence(student[:, :4], Answers(expert), labels, 1.5)
    each = class_divergence(student.flatten(0, 1), Answers(expert.flatten(0, 1)), 1.5).view(2, 5)
    assert torch.allclose(found, torch.stack([(each[0, 1] + each[0, 3]) / 2, each[1, 2]]), rtol=1e-12)
