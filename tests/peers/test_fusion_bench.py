"""fusion-bench's functions beside Tangora's methods, on the same stacked updates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from little_models import error, low_rank
from torch import Tensor

from tangora.methods import consensus, fisher, iso_c, iso_cts, knots, model_stock, regmean, ties, tsv_m

pytest.importorskip("fusion_bench", reason="fusion-bench is not installed: make peers")

Measured = Callable[[str, float], float]
TASKS = 4
ONES = torch.ones(TASKS, 1, 1)


def full(seed: int = 0) -> Tensor:
    """Updates of full rank."""
    return torch.randn(TASKS, 24, 20, generator=torch.Generator().manual_seed(seed))


def states(deltas: Tensor) -> list[dict[str, Tensor]]:
    return [{"w": delta.clone()} for delta in deltas]


def their_tsv_m(deltas: Tensor) -> Tensor:
    from fusion_bench.method.task_singular_vector.utils import TSVM_utils

    return TSVM_utils.compute_and_sum_svd_mem_reduction(states(deltas), accelerator="cpu")["w"]


def their_iso_c(deltas: Tensor) -> Tensor:
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c

    return iso_c(states(deltas), accelerator="cpu")["w"]


def their_iso_cts(deltas: Tensor) -> Tensor:
    from fusion_bench.method.isotropic_merging.iso_utils import iso_cts

    return iso_cts(states(deltas), common_space_fraction=0.8, accelerator="cpu")["w"]


SPECTRAL = {"tsv_m": (tsv_m, their_tsv_m), "iso_c": (iso_c, their_iso_c), "iso_cts": (iso_cts, their_iso_cts)}


@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_methods_agree_at_full_rank(name: str, measured: Measured) -> None:
    ours, theirs = SPECTRAL[name]
    assert measured("apart", error(ours(full(), weights=ONES), theirs(full()))) < 1e-4


@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_methods_of_low_rank_hang_on_rounding_in_theirs(name: str, measured: Measured) -> None:
    """Adapters of rank 2: the same updates, written with another rounding, give another result; ours does not move."""
    ours, theirs = SPECTRAL[name]
    deltas = low_rank(1, 2, TASKS)
    moved = deltas * (1 + 1e-6 * torch.randn(deltas.shape, generator=torch.Generator().manual_seed(5)))
    assert measured("ours moves", error(ours(moved, weights=ONES), ours(deltas, weights=ONES))) < 1e-4
    assert measured("theirs moves", error(theirs(moved), theirs(deltas))) > 0.05


def test_ties_agrees_but_for_one_entry_too_many(measured: Measured) -> None:
    """Their k-th smallest is off by one: of d entries int(K·d) + 1 are kept. With as many kept, the two agree."""
    from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging, topk_values_mask

    flat = torch.randn(TASKS, 500, generator=torch.Generator().manual_seed(2))
    kept = topk_values_mask(flat, K=0.2)[0]
    assert [int(n) for n in (kept != 0).sum(1)] == [101] * TASKS
    theirs = ties_merging(flat, reset_thresh=0.2, merge_func="mean")
    ones = torch.ones(TASKS, 1)
    assert measured("apart, as many kept", error(ties(flat, weights=ones, density=101 / 500), theirs)) < 1e-6
    assert measured("apart, density 0.2", error(ties(flat, weights=ones, density=0.2), theirs)) < 0.2
    with pytest.raises(Exception, match="k"):
        ties_merging(flat, reset_thresh=1.0, merge_func="mean")  # everything kept
    everything = ties(flat, weights=ones, density=1.0)
    assert int((everything != 0).sum()) == 500


def test_regmean_agrees(measured: Measured) -> None:
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights

    deltas, inputs = full(), torch.randn(TASKS, 60, 20, generator=torch.Generator().manual_seed(3))
    grams = inputs.mT @ inputs / 60
    for alpha in (1.0, 0.9, 0.1):
        known = [{"w": gram} for gram in grams]
        theirs = merging_with_regmean_weights({"w.weight": list(deltas)}, known, reduce_non_diagonal_ratio=alpha)
        ours = regmean(deltas, weights=ONES, statistics=grams, off_diagonal=alpha)
        assert measured(f"apart, off_diagonal {alpha}", error(ours, theirs["w.weight"])) < 1e-4


def test_regmean_with_fewer_inputs_than_columns_is_noise_in_theirs(measured: Measured) -> None:
    """ΣG is singular and is inverted all the same; the mean of one expert with itself must be that expert."""
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights

    expert = full()[0]
    inputs = torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(3))
    grams = inputs.mT @ inputs / 5
    assert (
        measured(
            "ours",
            error(regmean(torch.stack([expert] * 2), weights=ONES[:2], statistics=grams, off_diagonal=1.0), expert),
        )
        < 1e-4
    )
    try:
        theirs = merging_with_regmean_weights({"w.weight": [expert] * 2}, [{"w": g} for g in grams])["w.weight"]
    except torch.linalg.LinAlgError:
        return
    assert measured("theirs", error(theirs, expert)) > 0.1


def test_fisher_agrees_and_a_floor_makes_it_an_average(measured: Measured) -> None:
    """Their floor of 1e-6 is added to squared gradients, which are far smaller in an expert that fits its data."""
    from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights

    deltas = full()
    for size in (1.0, 1e-8):
        information = size * torch.rand(deltas.shape, generator=torch.Generator().manual_seed(4)).square()
        ours = fisher(deltas, weights=ONES, statistics=information)
        known, alike = [{"w": f} for f in information], torch.ones(TASKS) / TASKS
        for floor in (0.0, 1e-6):
            theirs = merging_with_fisher_weights({"w": list(deltas)}, known, alike, False, floor)["w"]
            apart = measured(f"apart, information about {size:g}, floor {floor:g}", error(ours, theirs))
            assert (apart < 1e-4) == (floor == 0.0 or size == 1.0)
        if size < 1:
            assert measured("theirs from the average", error(theirs, deltas.mean(0))) < 0.05


def test_consensus_agrees(measured: Measured) -> None:
    from fusion_bench.method.tall_mask.utils import generate_task_masks

    flat = torch.randn(TASKS, 500, generator=torch.Generator().manual_seed(6))
    masks = generate_task_masks(flat, flat, torch.zeros(500), flat.sum(0), tall_mask_lambda=0.4)
    for agreement in (0, 1, 2, 4):
        theirs = torch.where(masks.sum(0) >= agreement, flat.sum(0), 0.0)
        ours = consensus(flat, weights=torch.ones(TASKS, 1), agreement=agreement, share=0.4)
        assert measured(f"apart, agreement {agreement}", error(ours, theirs)) < 1e-6


def test_knots_agrees(measured: Measured) -> None:
    """Their part of it is the common basis; what is left of each task in it is then merged by TIES."""
    from fusion_bench.method.knots.knots_utils import subspace_alignment

    deltas = low_rank(7, 3, TASKS)
    u, s, parts = subspace_alignment(list(deltas))
    aligned = torch.stack(list(parts))
    merged = ties(aligned.flatten(1), weights=torch.ones(TASKS, 1), density=0.5).reshape(aligned.shape[1:])
    theirs = u @ torch.diag(s) @ merged
    assert measured("apart", error(knots(deltas, weights=ONES, density=0.5), theirs)) < 1e-3


@pytest.mark.parametrize("tasks", [2, 3])
def test_model_stock_agrees_for_two(tasks: int, measured: Measured) -> None:
    """With more, theirs averages the angles, ours and mergekit's their cosines."""
    from fusion_bench.method.model_stock.model_stock import compute_angle, compute_ratio

    g = torch.Generator().manual_seed(8)
    shared = torch.randn(24, 20, generator=g)
    deltas = torch.stack([shared + (0.3 + t) * torch.randn(24, 20, generator=g) for t in range(tasks)])
    origin, models = {"w": torch.zeros(24, 20)}, states(deltas)
    pairs = [(i, j) for i in range(tasks) for j in range(i)]
    angle = sum(compute_angle(models[i], models[j], origin)["w"] for i, j in pairs) / len(pairs)
    theirs = deltas.mean(0) * compute_ratio({"w": angle}, k=tasks)["w"]
    apart = measured("apart", error(model_stock(deltas, weights=torch.ones(tasks, 1, 1)), theirs))
    assert apart < (1e-5 if tasks == 2 else 0.05)
