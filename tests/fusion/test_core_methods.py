"""Methods in the space ``core``: those that see singular directions give there what they give on whole matrices."""

from __future__ import annotations

import pytest
import torch

import toys
from tangora.adapters.adapter import load
from tangora.fusion.fusion import fuse
from tangora.fusion.sources import SourceAdapter
from tangora.fusion.verification import verify

# Rotations of outputs and inputs commute with all of these: the bases of core are orthonormal and hold every update.
DIRECTIONS = ["cart", "ctm", "ctm+iso_c", "equal_norms+iso_cts", "iso_c", "iso_cts", "pico", "svd", "wudi"]
SHARES = ["mean_norm+tsv_m", "pico+tsv_m", "tsv_m"]  # these keep min(out, in) // T directions of each task
ENTRIES = ["ctm+ties_per_tensor", "do_merging", "knots", "pcb", "robust_merge", "ties"]
SHAPES = {"up": (14, 12), "down": (12, 16)}


def three(shared_a: bool) -> list:
    return [toys.lora(seed, rank=2, shared_a=shared_a, shapes=SHAPES) for seed in (1, 2, 3)]


@pytest.mark.parametrize(
    ("method", "shared_a"),
    [*((method, shared_a) for method in DIRECTIONS for shared_a in (False, True)), *((m, False) for m in SHARES)],
)
def test_methods_of_directions_give_the_same_in_core_as_in_delta(method, shared_a):
    small = {"shared_rank": 2} if "ctm" in method else {}
    adapters = three(shared_a)
    core = fuse(adapters, method, [1.0, 0.5, 0.75], space="core", **small).task_vector.dense()
    delta = fuse(adapters, method, [1.0, 0.5, 0.75], **small).task_vector.dense()
    for site, expected in delta.items():
        # float32, of updates whose singular values lie within a factor of a hundred: 1e-7 times that, and some room
        torch.testing.assert_close(core[site], expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


def test_tsv_m_shares_out_the_directions_of_the_cores_which_one_a_for_all_makes_few():
    # cores [≤ 6, 2], three tasks: one direction each, as of adapters that were cut to rank 1 before
    adapters = three(True)
    core = fuse(adapters, "tsv_m", space="core").task_vector.dense()
    cut = [fuse([adapter], weights=1.0, rank=1) for adapter in adapters]
    for site, expected in fuse(cut, "tsv_m").task_vector.dense().items():
        torch.testing.assert_close(core[site], expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("method", [*DIRECTIONS, *ENTRIES, *SHARES])
def test_what_is_fused_in_core_is_no_wider_than_the_adapters_together_and_verified(tmp_path, method):
    adapters = three(False)
    fused = fuse(adapters, method, space="core")
    assert all(update.factors().rank <= 6 for update in fused.updates.values())
    fused.save(tmp_path / "out")
    folders = [tmp_path / f"parent {i}" for i in range(3)]
    for adapter, folder in zip(adapters, folders, strict=True):
        adapter.save(folder)
    sources = [SourceAdapter(load(folder), folder) for folder in folders]
    found = verify(load(tmp_path / "out"), tmp_path / "out", sources)
    assert found.error < 1e-5
    assert found.gauge is not None
    assert found.gauge < 1e-2
