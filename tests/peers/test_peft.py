"""peft's `add_weighted_adapter` where it is right; where it is not, mostly, is in `tests/test_peers.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from little_models import error
from torch import Tensor

from test_peers import SITES, fused_deltas, make, peft_deltas, weighted

Measured = Callable[[str, float], float]
WEIGHTS = [0.5, 0.25]


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    return [make(tmp_path / name, seed) for seed, name in enumerate("ab")]


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(error(found[site], expected[site]) for site in SITES)


def test_cat_agrees(pair: list[str], measured: Measured) -> None:
    theirs = peft_deltas(*pair, weights=WEIGHTS, combination_type="cat")
    assert measured("apart", furthest(fused_deltas(pair, weights=WEIGHTS), theirs)) < 1e-6


def test_cat_of_rslora_is_rescaled(tmp_path: Path, measured: Measured) -> None:
    """The stacked factors keep use_rslora, whose scaling is alpha by the root of the rank, which is now another."""
    pair = [make(tmp_path / name, seed, use_rslora=True) for seed, name in enumerate("ab")]
    wanted = weighted(pair, WEIGHTS)
    theirs = peft_deltas(*pair, weights=WEIGHTS, combination_type="cat")
    assert measured("theirs", furthest(theirs, wanted)) > 0.5
    assert measured("ours", furthest(fused_deltas(pair, weights=WEIGHTS), wanted)) < 1e-6


@pytest.mark.parametrize("rank", [3, 8])
def test_svd_agrees(pair: list[str], rank: int, measured: Measured) -> None:
    """Also where something is cut off: both are the best of their rank."""
    theirs = peft_deltas(*pair, weights=WEIGHTS, combination_type="svd", svd_rank=rank)
    assert measured("apart", furthest(fused_deltas(pair, weights=WEIGHTS, rank=rank), theirs)) < 1e-5


@pytest.mark.parametrize(
    ("theirs", "ours"), [("ties_svd", "ties_per_tensor"), ("magnitude_prune_svd", "magnitude_prune")]
)
def test_methods_on_whole_updates_agree(pair: list[str], theirs: str, ours: str, measured: Measured) -> None:
    """The forms of peft that see s·BA and not the factors; both elect signs before they weight."""
    found = peft_deltas(*pair, weights=WEIGHTS, combination_type=theirs, density=0.5, svd_rank=8)
    expected = fused_deltas(pair, method=ours, weights=WEIGHTS, density=0.5, rank=8)
    assert measured("apart", furthest(expected, found)) < 1e-5
