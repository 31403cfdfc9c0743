from __future__ import annotations

import pytest
import torch

from tangora.analysis import linearity_gap
from tangora.errors import ArgumentError


def test_a_quadratic_by_hand():
    # f(a) = (a + a², 1) has the expansion (a, 1): the gap is a² of a movement of a + a²
    origin = torch.tensor([[0.0, 1.0]])
    for a, agreement in ((0.25, 1.0), (0.75, 0.0), (2.0, 1.0)):  # at 0.75 the network has crossed 1, the line has not
        network, expansion = torch.tensor([[a + a * a, 1.0]]), torch.tensor([[a, 1.0]])
        gap = linearity_gap(network, expansion, origin)
        assert gap.distance == pytest.approx(a / (1 + a))
        assert gap.agreement == agreement


def test_where_nothing_moves_there_is_no_gap():
    logits = torch.ones(3, 2)
    assert linearity_gap(logits, logits, logits).distance == 0.0
    assert linearity_gap(logits, logits + 1, logits).distance == float("inf")


def test_bad_input():
    with pytest.raises(ArgumentError, match="one shape"):
        linearity_gap(torch.ones(3, 2), torch.ones(3, 2), torch.ones(1, 2))
