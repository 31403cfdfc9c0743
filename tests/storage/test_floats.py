"""Bytes to numbers and back, beside torch's own conversions."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tangora.storage import floats
from tangora.storage.floats import LARGEST, narrowed, widen
from tangora.storage.header import FLOATS

ways = pytest.mark.parametrize("modules", [sys.modules, {}], ids=["torch is loaded", "it is not"])


def seen(modules):
    """The conversions take the process to have these modules."""
    return mock.patch.object(floats, "sys", SimpleNamespace(modules=modules))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("wide", [np.float32, np.float64])
@ways
def test_every_pattern_is_widened_as_by_torch(dtype, wide, modules):
    if dtype == "F64" and wide == np.float32:
        pytest.skip("what is float64 is computed with in float64")
    bits = np.arange(2**16, dtype=np.uint16) if dtype in ("BF16", "F16") else np.arange(2**17, dtype=np.uint32) * 32749
    raw = bits.view(np.uint8)
    numbers = torch.from_numpy(raw.copy()).view(getattr(torch, FLOATS[dtype]))
    with np.errstate(all="ignore"), seen(modules):
        found = torch.from_numpy(widen(raw, dtype, np.empty(len(numbers), wide)))
    assert torch.equal(found.nan_to_num(7.0), numbers.to(found.dtype).nan_to_num(7.0))


@ways
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.sampled_from(list(FLOATS)))
def test_rounding_is_torchs(modules, values, dtype):
    numbers = np.array([v for v in values if abs(v) <= LARGEST[dtype]], np.float32)
    assume(len(numbers))
    kind = getattr(torch, FLOATS[dtype])
    with seen(modules):
        found = torch.from_numpy(narrowed(numbers, dtype, np.empty(8 * len(numbers), np.uint8))).view(kind)
    assert torch.equal(found, torch.from_numpy(numbers).to(kind))


@ways
def test_halfway_goes_to_even_and_a_bit_more_goes_up(modules):
    half = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], np.uint32).view(np.float32)
    with seen(modules):
        found = narrowed(half, "BF16", np.empty(8, np.uint8)).view(np.uint16)
    assert [hex(b) for b in found] == ["0x3f80", "0x3f82", "0x3f81", "0x3f80"]


def test_the_largest_numbers():
    for dtype, name in FLOATS.items():
        assert LARGEST[dtype] == torch.finfo(getattr(torch, name)).max
