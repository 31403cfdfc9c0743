from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch

from tangora.adapters.adapter import Adapter
from tangora.updates import digests as module
from tangora.updates.digests import digests
from tangora.updates.text import tensor_digest
from tangora.updates.update import Dense, LowRank


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_neither_digests_nor_their_order(threads, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    updates = {f"{i % 7}.{i}": LowRank(torch.randn(9, 2, generator=generator), torch.ones(2, 4)) for i in range(20)}
    updates["3.dense"] = Dense(torch.ones(3, 2))
    alone, before = digests(updates), torch.get_num_threads()
    assert alone == [(site, updates[site].digest()) for site in sorted(updates)]
    monkeypatch.setattr(module, "_LARGE", 1)
    torch.set_num_threads(threads)
    try:
        assert digests(updates) == alone
        one = Adapter(updates).fingerprint
    finally:
        torch.set_num_threads(before)
    monkeypatch.undo()
    assert Adapter(updates).fingerprint == one
    assert digests({}) == []


@pytest.mark.parametrize("at", [0, 255, 256, 999])
def test_one_number_beyond_bfloat16_makes_a_digest_that_of_float32(at):
    numbers = torch.ones(1000)
    half = tensor_digest(numbers)
    assert half == hashlib.sha256(numbers.to(torch.bfloat16).view(torch.uint8).numpy().tobytes()).hexdigest()
    numbers[at] = 1.0 + 2.0**-20
    assert tensor_digest(numbers) == hashlib.sha256(numbers.numpy().tobytes()).hexdigest()


def test_low_rank_adapters_are_cut_without_scipy():
    code = """
import sys, torch, tangora
from tangora.adapters.adapter import Adapter
from tangora.updates.update import LowRank
parts = [Adapter({"layer": LowRank(torch.randn(6, 2), torch.randn(2, 5))}) for _ in range(3)]
assert tangora.fuse(parts, weights=1.0, rank=2).updates["layer"].factors().rank == 2
assert tangora.fuse(parts, weights=1.0, rank="auto").updates["layer"].factors() is not None
assert "scipy" not in sys.modules, [name for name in sys.modules if name.startswith("scipy")][:3]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
