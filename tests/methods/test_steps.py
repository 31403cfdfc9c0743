"""Steps before a method, ``pico+tsv_m``: what each does, by hand, and what a combination promises and refuses."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from small_updates import check, low_rank
from torch import Tensor

from tangora.errors import ArgumentError, PluginError
from tangora.methods import (
    Change,
    Method,
    ctm,
    equal_norms,
    fusion_step,
    get,
    mean_norm,
    methods,
    pico,
    task_arithmetic,
    ties_per_tensor,
    tsv_m,
)
from tangora.testing import METHOD_CHECKS

EVEN = torch.ones(2, 1, 1, dtype=torch.float64)
COMBINED = [
    "ctm+dare_ties",
    "ctm+ties_per_tensor",
    "equal_norms+pico+iso_c",
    "equal_norms+regmean",
    "mean_norm+cart",
    "mean_norm+slerp",
    "pico+tsv_m",
]


def fuse(name: str, deltas: Tensor, *weights: float, **parameters: object) -> Tensor:
    column = torch.tensor(weights or [1.0] * len(deltas), dtype=deltas.dtype)
    return get(name).function(deltas, weights=column.reshape(-1, *(1,) * (deltas.ndim - 1)), **parameters)


# --- equal norms


def test_equal_norms() -> None:
    # norms 5 and 1, mean 3: (3, 4) · 3/5 and (0, 1) · 3
    deltas = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]], dtype=torch.float64)
    check(equal_norms(deltas, weights=EVEN), [1.8, 5.4])
    check(equal_norms(deltas, weights=torch.tensor([1.0, -0.5]).reshape(2, 1, 1)), [1.8, 0.9])


def test_equal_norms_before_an_election() -> None:
    # In the second entry −1 of the first task outweighs 0.5 of the other. With norms of n̄ = (√5 + 0.5)/2 it is −n̄/√5
    # against n̄.
    deltas = torch.tensor([[[2.0, -1.0]], [[0.0, 0.5]]], dtype=torch.float64)
    assert float(ties_per_tensor(deltas, weights=EVEN, density=1.0)[0, 1]) == -1.0
    mean = (math.sqrt(5) + 0.5) / 2
    check(fuse("equal_norms+ties_per_tensor", deltas, density=1.0), [2 / math.sqrt(5) * mean, mean])


def test_equal_norms_passes_over_an_update_of_zero_and_works_on_vectors_and_numbers() -> None:
    deltas = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert fuse("equal_norms", deltas).tolist() == [2.0, 2.0]
    assert fuse("equal_norms", torch.tensor([3.0, -1.0])).item() == 0.0


# --- the mean norm


def test_mean_norm() -> None:
    # ‖(3, 4)‖ = 5, mean 3.5
    deltas = torch.tensor([[[3.0, 0.0]], [[0.0, 4.0]]], dtype=torch.float64)
    check(mean_norm(deltas, weights=EVEN), [2.1, 2.8])
    check(mean_norm(deltas, weights=0.5 * EVEN), [1.05, 1.4])
    check(mean_norm(deltas, weights=torch.tensor([1.0, 0.0]).reshape(2, 1, 1)), [2.1, 0.0])


@pytest.mark.parametrize("rule", ["iso_c", "task_arithmetic", "ties_per_tensor", "tsv_m", "wudi"])
def test_the_result_has_the_mean_norm_whatever_the_method(rule: str) -> None:
    deltas = low_rank(4, 9, 8, 2) * torch.tensor([1.0, 3.0, 0.1, 20.0]).reshape(4, 1, 1)
    fused = fuse(f"mean_norm+{rule}", deltas)
    torch.testing.assert_close(fused.norm(), deltas.flatten(1).norm(dim=1).mean(), rtol=1e-11, atol=0)
    plain = fuse(rule, deltas)
    torch.testing.assert_close(fused / fused.norm(), plain / plain.norm(), rtol=0, atol=1e-11)


def test_mean_norm_does_not_blow_up_what_cancels() -> None:
    delta = low_rank(1, 6, 5, 2).float()
    fused = fuse("mean_norm", torch.cat([delta, -delta, delta * 1e-9]))
    assert float(fused.norm()) < 1e-6
    assert not fuse("mean_norm", torch.zeros(3, 4, 4)).any()


# --- Pico


def test_pico() -> None:
    # Outputs e₁ and e₂ of task one, e₁ of task two: e₁ is shared by both. D = diag(1/2, 1): diag(1, 2) and diag(1, 0),
    # the sum is diag(2, 2). ‖ν‖² was 4 + 4 + 4 and is 1 + 4 + 1: times √2.
    deltas = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    r = math.sqrt(2)
    check(pico(deltas, weights=EVEN), [2 * r, 0.0], [0.0, 2 * r])
    check(pico(deltas, weights=torch.tensor([1.0, -1.0]).reshape(2, 1, 1)), [0.0, 0.0], [0.0, 2 * r])
    # α = 1/2: e₁ by 1/√2: diag(√2, 2) and diag(√2, 0); ‖·‖² is 2 + 4 + 2: times √1.5
    check(pico(deltas, weights=EVEN, strength=0.5), [2 * r * math.sqrt(1.5), 0.0], [0.0, 2 * math.sqrt(1.5)])
    check(pico(deltas, weights=EVEN, strength=0.0), [4.0, 0.0], [0.0, 2.0])


def test_pico_of_nearly_shared_directions() -> None:
    # outputs at 0° and 60°: P₁ + P₂ has eigenvalues 1 ± cos 60°; that of 1.5, at 30°, is weakened to 1/1.5
    angle = math.pi / 3
    deltas = torch.tensor([[[1.0], [0.0]], [[math.cos(angle)], [math.sin(angle)]]], dtype=torch.float64)
    # the sum is √3 at 30°: √3/1.5. Each had 1, and has (√3/2/1.5)² + (1/2)² = 1/3 + 1/4 = 7/12 left of it.
    length = math.sqrt(3) / 1.5 * math.sqrt(12 / 7)
    check(pico(deltas, weights=EVEN), [length * math.cos(angle / 2)], [length * math.sin(angle / 2)])


def test_pico_leaves_own_outputs_and_equal_ones_alone() -> None:
    apart = torch.zeros(2, 6, 5, dtype=torch.float64)
    apart[0, :3], apart[1, 3:] = low_rank(2, 3, 5, 2)
    torch.testing.assert_close(pico(apart, weights=EVEN), apart.sum(0), rtol=0, atol=1e-11)
    equal = low_rank(1, 6, 5, 2).expand(2, 6, 5)
    torch.testing.assert_close(pico(equal, weights=EVEN), equal.sum(0), rtol=0, atol=1e-11)
    found, expected = fuse("pico+tsv_m", apart), tsv_m(apart, weights=EVEN)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_pico_of_two_shared_directions_of_many_tasks() -> None:
    # Seven tasks write to one common direction and one of their own each: in the sum the common one is seven times as
    # strong, and after the step it counts as their mean.
    own = torch.eye(9, dtype=torch.float64)[1:8, :, None] @ torch.eye(9, dtype=torch.float64)[1:8, None]
    common = torch.eye(9, dtype=torch.float64)[:1].T @ torch.eye(9, dtype=torch.float64)[:1]
    fused = fuse("pico", own + common)
    torch.testing.assert_close(fused[0, 0], fused[1, 1], rtol=0, atol=1e-11)


# --- compress, then merge


def test_ctm() -> None:
    # rank 1 of both: e₁e₁ᵀ holds most of diag(4, 1) and all of diag(2, 0)
    deltas = torch.tensor([[[4.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    check(ctm(deltas, weights=EVEN, shared_rank=1), [6.0, 0.0], [0.0, 0.0])
    check(ctm(deltas, weights=torch.tensor([0.5, -2.0]).reshape(2, 1, 1), shared_rank=1), [-2.0, 0.0], [0.0, 0.0])
    check(ctm(deltas, weights=EVEN, shared_rank=2), [6.0, 0.0], [0.0, 1.0])


def test_ctm_balances_the_tasks() -> None:
    # By energy e₁e₁ᵀ of the strong task wins with 9 over 2 · 1; with norms of one, two tasks of e₂e₂ᵀ do.
    deltas = torch.diag_embed(torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64))
    check(fuse("ctm", deltas, shared_rank=1, balance=0.0), [3.0, 0.0], [0.0, 0.0])
    check(fuse("ctm", deltas, shared_rank=1, balance=1.0), [0.0, 0.0], [0.0, 2.0])


def test_ctm_has_its_rank_and_loses_nothing_of_a_rank_that_is_enough() -> None:
    deltas = low_rank(3, 20, 24, 2)
    for rank in (1, 2, 4):
        for rule in ("task_arithmetic", "ties_per_tensor", "dare_ties"):
            extra = {"uniforms": torch.rand(deltas.shape, generator=torch.Generator().manual_seed(1))}
            fused = fuse(f"ctm+{rule}", deltas, shared_rank=rank, **(extra if rule == "dare_ties" else {}))
            assert int(torch.linalg.matrix_rank(fused, rtol=1e-9)) <= rank
    torch.testing.assert_close(fuse("ctm", deltas, shared_rank=6), deltas.sum(0), rtol=0, atol=1e-11)


def test_ctm_finds_a_planted_subspace_that_the_best_cut_of_the_sum_does_not() -> None:
    # Both tasks move in the plane of e₁, e₂, with opposite signs there, and a little in e₃ with the same sign: the sum
    # has e₃ alone, the shared bases of rank 2 are the plane.
    deltas = torch.diag_embed(torch.tensor([[2.0, -2.0, 0.1], [-2.0, 2.0, 0.1]], dtype=torch.float64))
    change = torch.tensor([1.0, 0.5]).reshape(2, 1, 1)
    check(ctm(deltas, weights=change, shared_rank=2), [1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0])


# --- combinations


def checks_of(name: str) -> list[Callable[[Method], None]]:
    method = get(name)
    left_out = {
        "check_matrices": method.random,  # its part on the order of tasks draws by position
        "check_weights_of_entries": not method.additive,  # refused, see below
    }
    return [check for check in METHOD_CHECKS if not left_out.get(check.__name__)]


@pytest.mark.parametrize(
    ("name", "check"),
    [(name, check) for name in COMBINED for check in checks_of(name)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_combination_keeps_the_contract(name: str, check: Callable[[Method], None]) -> None:
    check(get(name))


def test_every_step_stands_before_every_method_that_works_by_tensor() -> None:
    deltas = low_rank(2, 6, 5, 2).float()
    steps = [name for name in methods() if name in ("ctm", "equal_norms", "mean_norm", "pico")]
    assert len(steps) == 4
    for step in steps:
        for rule in methods().values():
            if rule.granularity == "model":
                with pytest.raises(PluginError, match=f"{step} works tensor by tensor, {rule.name} on the whole model"):
                    get(f"{step}+{rule.name}")
            elif not rule.statistics and not get(step).parameters.keys() & rule.parameters.keys():
                extra = {"uniforms": torch.full(deltas.shape, 0.4)} if rule.random else {}
                assert fuse(f"{step}+{rule.name}", deltas, **extra).isfinite().all()


def test_the_first_step_sees_the_updates_first() -> None:
    deltas = low_rank(3, 6, 5, 2) * torch.tensor([1.0, 5.0, 0.2]).reshape(3, 1, 1)
    norms = deltas.flatten(1).norm(dim=1).reshape(3, 1, 1)
    expected = fuse("pico+ties_per_tensor", deltas * norms.mean() / norms)
    torch.testing.assert_close(fuse("equal_norms+pico+ties_per_tensor", deltas), expected, rtol=0, atol=1e-11)


def test_the_record_of_a_combination() -> None:
    method = get("pico+svd")
    assert repr(method) == "Method('pico+svd', tensor, strength=1.0, components=16)"
    assert method.default_weight == get("svd").default_weight
    assert get("mean_norm+svd").default_weight == 1.0
    assert method.reference == "arXiv:2604.16826, doi:10.1007/BF02288367"
    assert method.summary.startswith("Weaken the output directions that several tasks share")
    assert method.summary.endswith(
        "Then: The matrix of a given rank that is nearest to the weighted sum of the updates."
    )
    with pytest.raises(ArgumentError, match=r"pico\+svd: strength must be in \[0, inf\], got -1 at fuse.strength"):
        method.check({"strength": -1})
    with pytest.raises(ArgumentError, match=r"pico\+svd: unknown parameter 'strenth'"):
        method.check({"strenth": 1.0})
    assert "pico+svd" not in methods()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("+ties_per_tensor", "no such fusion method"),
        ("ctm+regmean", "regmean needs statistics of whole weights, and ctm fuses other coordinates"),
        ("equal_norms+ties", r"Use equal_norms\+ties_per_tensor"),
        ("pico+", "no such fusion method"),
        ("pico+pico", "pico and pico both have a parameter 'strength'"),
        ("pico+tsvm", "no such fusion method, got 'tsvm'. Did you mean 'tsv_m'"),
        ("picco+tsv_m", "no such fusion method, got 'picco'. Did you mean 'pico'"),
        ("ties+pico", r"ties is a method, not a step before one.*ctm, equal_norms, mean_norm, pico"),
    ],
)
def test_what_cannot_be_combined_is_refused(name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        get(name)


def test_weights_of_entries_are_refused_where_they_have_no_meaning() -> None:
    deltas, weights = low_rank(2, 4, 3, 1), torch.rand(2, 4, 3, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="weights must not differ within a tensor"):
        get("pico+iso_c").function(deltas, weights=weights)
    parts = [fuse("pico", deltas, *row) for row in ((1.0, 0.0), (0.0, 1.0))]
    expected = sum(w * p for w, p in zip(weights, parts, strict=True))
    torch.testing.assert_close(pico(deltas, weights=weights), expected, rtol=0, atol=1e-11)


def test_gradients_reach_weights_of_entries() -> None:
    deltas = low_rank(2, 4, 3, 1)
    weights = torch.ones(2, 4, 3, dtype=torch.float64, requires_grad=True)
    mean_norm(deltas, weights=weights).sum().backward()
    assert weights.grad is not None
    assert int((weights.grad != 0).sum()) == weights.numel()


def test_a_step_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from tangora.methods import _registry, _steps

    monkeypatch.setattr(_registry, "_METHODS", dict(methods()))
    monkeypatch.setattr(_steps, "_STEPS", dict(_steps._STEPS))

    @fusion_step("halved", reference="none", identity=False)
    def halved(deltas: Tensor, *, by: float = 2.0) -> Change:
        """Halve the updates."""
        return Change(deltas / by)

    deltas = low_rank(2, 4, 3, 1)
    expected = task_arithmetic(deltas, weights=EVEN) / 2
    torch.testing.assert_close(halved(deltas, weights=EVEN), expected)
    torch.testing.assert_close(fuse("halved+tsv_m", deltas, by=4.0), tsv_m(deltas, weights=EVEN) / 4)
    with pytest.raises(PluginError, match="two fusion methods are called 'pico'"):
        fusion_step("pico", reference="none")(lambda deltas: Change(deltas))
    with pytest.raises(PluginError, match=r"no such promise of a step, got 'symetric'. Did you mean 'symmetric'"):
        fusion_step("other", reference="none", symetric=False)
    assert _steps._STEPS["pico"].function.__module__ == "tangora.methods.pico"
