"""Rules without data on seven low-rank updates with planted directions: what each is defined to do, it does there.

The updates are as of LoRA adapters that started from one A: nearly the same input directions, outputs of which one is
shared by all tasks, one is written to with opposite signs, and the rest are each task's own; strengths differ by 30.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangora.methods import get

TASKS, OUT, IN, RANK = 7, 60, 48, 4
RULES = [
    "cart", "ctm", "ctm+iso_c", "do_merging", "equal_norms+tsv_m", "iso_c", "mean_norm", "mean_norm+wudi", "pcb",
    "pico", "pico+tsv_m", "tsv_m", "wudi",
]  # fmt: skip
SMALL = {"ctm": {"shared_rank": RANK}, "pcb": {"density": 1.0}}


@pytest.fixture(scope="module")
def planted() -> Tensor:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    directions = torch.linalg.qr(normal(OUT, OUT)).Q
    a = normal(1, RANK, IN) + 0.3 * normal(TASKS, RANK, IN)
    b = normal(TASKS, OUT, RANK) * 0.1
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    for t in range(TASKS):
        b[t, :, 0] += 3 * directions[:, 0]
        b[t, :, 1] += 2 * signs[t] * directions[:, 1]
        b[t, :, 2] += 2 * directions[:, 2 + t]
    strengths = torch.tensor([1.0, 1.3, 0.8, 3.0, 0.1, 1.0, 2.0], dtype=torch.float64)
    return strengths.reshape(-1, 1, 1) * (b @ a)


def fuse(name: str, deltas: Tensor, **parameters: object) -> Tensor:
    weights = torch.ones(len(deltas), 1, 1, dtype=deltas.dtype)
    given = SMALL.get(name.split("+")[0], {}) | parameters
    return get(name).function(deltas, weights=weights, **given)


def interference(fused: Tensor, deltas: Tensor) -> float:
    """The loss of WUDI-Merging."""
    norms = deltas.flatten(1).norm(dim=1)
    return float((((fused - deltas) @ deltas.mT).flatten(1).norm(dim=1) ** 2 / norms**2).sum())


@pytest.mark.parametrize("name", RULES)
def test_float32_and_bfloat16_give_what_float64_gives(planted: Tensor, name: str) -> None:
    # Singular values lie within a factor of 1000 (strengths 30, own directions 30), and the rules divide by no smaller
    # ones: 1000 · eps and some room. For bfloat16 both see the rounded updates, and only the result is rounded again.
    expected = fuse(name, planted)
    single = fuse(name, planted.float())
    assert float((single - expected).norm() / expected.norm()) < 1000 * torch.finfo(torch.float32).eps * 4
    half = planted.bfloat16()
    wide = fuse(name, half.float())
    assert float((fuse(name, half).float() - wide).norm() / wide.norm()) < torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("name", RULES)
def test_the_order_of_the_tasks_and_an_update_of_zero(planted: Tensor, name: str) -> None:
    expected = fuse(name, planted)
    backwards = fuse(name, planted.flip(0))
    assert float((backwards - expected).norm() / expected.norm()) < 1e-9
    if "tsv_m" not in name and name not in ("cart", "pcb"):  # in these, the number of tasks has a part
        with_zero = fuse(name, torch.cat([planted, torch.zeros(1, OUT, IN, dtype=torch.float64)]))
        assert float((with_zero - expected).norm() / expected.norm()) < 1e-9


def test_wudi_has_the_least_interference_of_all(planted: Tensor) -> None:
    least = interference(fuse("wudi", planted, ridge=0.0), planted)
    energy = interference(torch.zeros(OUT, IN, dtype=torch.float64), planted)
    assert least < 1e-9 * energy  # 28 directions in 48: all the tasks' demands can be met at once
    losses = [interference(fuse("wudi", planted, ridge=ridge), planted) for ridge in (1e-4, 1e-2, 1.0, 100.0)]
    assert sorted(losses) == losses
    assert losses[-1] < interference(fuse("task_arithmetic", planted), planted)
    others = [interference(fuse(name, planted), planted) for name in ("average", "do_merging", "iso_c", "tsv_m")]
    assert losses[1] < min(others)


def test_a_ridge_keeps_wudi_from_growing_where_inputs_are_nearly_the_same(planted: Tensor) -> None:
    exact, near = fuse("wudi", planted, ridge=0.0), fuse("wudi", planted)
    assert float(near.norm()) < float(exact.norm())


def test_pico_evens_out_what_all_share_and_keeps_what_is_own(planted: Tensor) -> None:
    total, evened = fuse("task_arithmetic", planted), fuse("pico", planted)
    values, tamed = torch.linalg.svdvals(total), torch.linalg.svdvals(evened)
    assert float(tamed[0] / tamed.norm()) < float(values[0] / values.norm())


def test_the_bases_of_ctm_hold_more_than_the_first_ones_and_than_any_drawn(planted: Tensor) -> None:
    unit = planted / planted.flatten(1).norm(dim=1).reshape(-1, 1, 1)

    def held(left: Tensor, right: Tensor) -> float:
        return float((left.T @ unit @ right).square().sum())

    # fused with a weight for one task alone, the result is that task between the bases: these are the bases' planes
    found = torch.stack(
        [
            get("ctm").function(planted, weights=row.reshape(-1, 1, 1), shared_rank=RANK)
            for row in torch.eye(TASKS).double()
        ]
    )
    left, right = torch.linalg.svd(torch.cat(list(found), 1))[0], torch.linalg.svd(torch.cat(list(found)))[2].T
    best = held(left[:, :RANK], right[:, :RANK])
    first = torch.linalg.svd(torch.cat(list(unit), 1))[0], torch.linalg.svd(torch.cat(list(unit)))[2].T
    assert best >= held(first[0][:, :RANK], first[1][:, :RANK]) - 1e-9
    g = torch.Generator().manual_seed(1)
    drawn = [torch.linalg.qr(torch.randn(n, RANK, generator=g, dtype=torch.float64)).Q for n in (OUT, IN)]
    assert best > 2 * held(*drawn)


def test_do_merging_and_mean_norm_do_not_follow_the_strongest(planted: Tensor) -> None:
    def shares(fused: Tensor) -> Tensor:
        return torch.stack([(fused * d).sum() / (fused.norm() * d.norm()) for d in planted])

    weakest = int(planted.flatten(1).norm(dim=1).argmin())
    total = shares(fuse("task_arithmetic", planted))
    for name in ("do_merging", "equal_norms"):
        assert float(shares(fuse(name, planted))[weakest]) > float(total[weakest])
    norms = planted.flatten(1).norm(dim=1)
    torch.testing.assert_close(fuse("mean_norm", planted).norm(), norms.mean(), rtol=1e-9, atol=0)
