"""The cutoff of a trim: exact whatever the sample that brackets it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tangora.methods import _sparsity
from tangora.methods._sparsity import kept, threshold

MANY = (600, 512)


def _normal():
    return torch.randn(MANY, generator=torch.Generator().manual_seed(0))


MATRICES = {
    "normal": _normal,
    "columns of other scales": lambda: _normal() * torch.logspace(-8, 8, MANY[1]),
    "rows of other scales": lambda: _normal() * torch.logspace(-8, 8, MANY[0])[:, None],
    "few numbers": lambda: _normal().round(),
    "mostly zero": lambda: _normal().clamp(min=2.5) - 2.5,
    "zero": lambda: torch.zeros(MANY),
    "double": lambda: _normal().double(),
    "half": lambda: _normal().bfloat16(),
}


@pytest.mark.parametrize("density", [1e-6, 0.001, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("name", list(MATRICES))
def test_it_is_the_smallest_of_the_entries_that_are_kept(name, density):
    matrix = MATRICES[name]()
    before = matrix.clone()
    ordered = np.sort(matrix.abs().double().reshape(-1).numpy())
    count = kept(density, matrix.numel())
    assert threshold(matrix, density) == (0.0 if count == matrix.numel() else ordered[-count])
    assert torch.equal(matrix, before)


def test_a_sample_that_misses_costs_time_alone(monkeypatch):
    """All that the sample sees is small, and the cutoff is among what it does not see."""
    step = (MANY[0] * MANY[1] // _sparsity._SAMPLE) | 1
    flat = torch.linspace(1.0, 2.0, MANY[0] * MANY[1])
    flat[::step] = 0.0
    ordered = np.sort(flat.numpy())
    assert threshold(flat, 0.9) == ordered[-kept(0.9, len(flat))]


@pytest.mark.parametrize("density", [0.49, 0.51, 0.9])
def test_what_is_no_number_counts_as_largest(density):
    flat = _normal().reshape(-1)
    flat[::2] = float("nan")
    wanted = np.sort(flat.abs().numpy())[-kept(density, len(flat))]
    np.testing.assert_equal(threshold(flat, density), float(wanted))


def test_the_selection_is_among_few_entries():
    array = _normal().abs().reshape(-1).numpy()
    place = int(0.8 * len(array))
    inside, below = _sparsity._around(array, place)
    assert len(inside) < 0.1 * len(array)
    assert below <= place < below + len(inside)
