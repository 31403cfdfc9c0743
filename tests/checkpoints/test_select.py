from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tangora.checkpoints import select
from tangora.checkpoints.select import Selection

VALUES = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, 0.002, -0.002]),
)


def search(entries, keep, sample=None, blocks=3, device="numpy"):
    wanted, passes = Selection(keep, len(entries), wide=entries.dtype == torch.float64), 0
    wanted.guess([] if sample is None else [piece.numpy() for piece in sample])
    while wanted.cutoff is None:
        for block in entries.tensor_split(blocks):  # NumPy's are overwritten; a tensor is counted where it is
            wanted.count(block.clone().numpy() if device == "numpy" else block)
        wanted.narrow()
        passes += 1
        assert passes <= 6
    return wanted.cutoff, passes


def expected(entries, keep):
    return float(entries.abs().sort(descending=True).values[keep - 1]) if keep < len(entries) else 0.0


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=60), st.data())
def test_it_is_the_kth_largest_magnitude(values, data):
    entries = torch.tensor(values)
    keep = data.draw(st.integers(1, len(values)))
    picked = data.draw(st.lists(st.sampled_from(values), max_size=20))  # however bad the sample is
    assume(len(picked) != len(values))  # pieces do not overlap: as many entries are the stream itself
    found, _ = search(entries, keep, [torch.tensor(picked)] if picked else None, data.draw(st.integers(1, 4)))
    assert found == expected(entries, keep)


@pytest.mark.parametrize("device", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_pass_with_a_good_sample(dtype, device):
    entries = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=dtype) * 0.002
    pieces = list(entries[:65_536].split(2048))
    found, passes = search(entries, 80_000, pieces, device=device)
    assert found == expected(entries, 80_000)
    assert passes == (1 if dtype == torch.float32 else passes)


def test_without_a_sample_few_entries_are_kept_and_many_are_counted(monkeypatch):
    entries = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    assert search(entries, 777) == (expected(entries, 777), 1)
    monkeypatch.setattr(select, "_WAITING", 1000)
    assert search(entries, 777) == (expected(entries, 777), 2)


def test_a_sample_that_misleads_costs_passes_and_nothing_else():
    entries = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    for lie, least in ((1e-30, 1), (1e30, 2)):
        found, passes = search(entries, 777, list(torch.full((4096,), lie).split(16)))
        assert found == expected(entries, 777)
        assert passes >= least


def test_entries_wait_in_bounded_numbers(monkeypatch):
    monkeypatch.setattr(select, "_WAITING", 100)
    entries = torch.randn(5_000, generator=torch.Generator().manual_seed(0))
    assert search(entries, 50, blocks=40)[0] == expected(entries, 50)


def test_values_are_exact():
    entries = torch.tensor(np.nextafter(np.float32(1), np.float32(2), dtype=np.float32)).repeat(5)
    entries = torch.cat([entries, torch.ones(5)])
    assert search(entries, 5)[0] == float(entries[0])
    assert search(entries, 6)[0] == 1.0
