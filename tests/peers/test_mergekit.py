"""mergekit, run from checkpoint to checkpoint, beside Tangora on the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from little_models import distance, read, weights, write
from torch import Tensor

import tangora

pytest.importorskip("mergekit", reason="mergekit is not installed: make peers")

Measured = Callable[[str, float], float]
EXACT = 1e-6  # two float32 programs that compute the same


class Bench:
    """A base and three models made from it, on disk in one dtype."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, scale: float = 0.05) -> None:
        self.folder, self.dtype = folder, str(dtype).removeprefix("torch.")
        self.base = {name: t.to(dtype).float() for name, t in weights(0).items()}
        self.models = [weights(seed, scale, self.base) for seed in (1, 2, 3)]
        self.paths = [write(folder / f"{i}", m, dtype) for i, m in enumerate([self.base, *self.models])]
        self.runs = 0

    def mergekit(
        self, method: str, *, count: int = 3, weight: list[float] | None = None, **options
    ) -> dict[str, Tensor]:
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        per_model = {k: v for k, v in options.items() if k in ("density", "gamma", "epsilon")}
        shared = {k: v for k, v in options.items() if k not in per_model and k != "base"}
        listed = [
            {"model": str(path), "parameters": {**per_model, **({"weight": w} if weight else {})}}
            for path, w in zip(self.paths[1 : 1 + count], weight or [0.0] * count, strict=True)
        ]
        recipe = {
            "merge_method": method, "base_model": str(self.paths[options.get("base", 0)]), "dtype": self.dtype,
            "models": listed, "parameters": shared,
        }  # fmt: skip
        self.runs += 1
        out = self.folder / f"theirs{self.runs}"
        settings = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
        run_merge(MergeConfiguration.model_validate(recipe), str(out), settings)
        return read(out)

    def tangora(
        self, method: str, lambdas: float | list[float], *, count: int = 3, base: Path | None = None, **options
    ):
        self.runs += 1
        out = self.folder / f"ours{self.runs}"
        models = self.paths[1 : 1 + count]
        tangora.fuse_checkpoints(base or self.paths[0], models, out, method, lambdas, threads=1, **options)
        return read(out)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("f32"))


def test_task_arithmetic_agrees(bench: Bench, measured: Measured) -> None:
    lambdas = [0.3, 0.5, -0.2]
    theirs, ours = bench.mergekit("task_arithmetic", weight=lambdas), bench.tangora("task_arithmetic", lambdas)
    assert measured("apart", distance(ours, theirs, bench.base)) < EXACT


def test_ties_agrees_at_equal_weights(bench: Bench, measured: Measured) -> None:
    """mergekit trims each tensor, and divides by the agreeing weights' sum: at equal weights, by their number."""
    theirs = bench.mergekit("ties", weight=[0.7] * 3, density=0.2)
    ours = bench.tangora("ties_per_tensor", 1.0, density=0.2)
    assert measured("apart", distance(ours, theirs, bench.base)) < EXACT


def test_ties_differs_at_unequal_weights(bench: Bench, measured: Measured) -> None:
    """mergekit elects signs of weighted entries, so that a weight changes which entries are in the result."""
    lambdas = [0.2, 1.0, 0.5]
    theirs = bench.mergekit("ties", weight=lambdas, density=0.2, normalize=False)
    ours = bench.tangora("ties_per_tensor", lambdas, density=0.2)
    assert measured("apart", distance(ours, theirs, bench.base)) > 0.3
    name = "model.layers.0.mlp.up_proj.weight"
    by_hand = _elected_after_weighting([m[name] - bench.base[name] for m in bench.models], lambdas, 0.2)
    torch.testing.assert_close(theirs[name] - bench.base[name], by_hand, rtol=1e-4, atol=1e-5)


def _elected_after_weighting(deltas: list[Tensor], lambdas: list[float], density: float) -> Tensor:
    kept = []
    for delta, weight in zip(deltas, lambdas, strict=True):
        least = delta.abs().flatten().sort(descending=True).values[int(density * delta.numel()) - 1]
        kept.append(weight * torch.where(delta.abs() >= least, delta, 0.0))
    sign = torch.where(sum(kept) >= 0, 1.0, -1.0)
    return sum(torch.where(entry.sign() == sign, entry, 0.0) for entry in kept)


def test_ties_over_the_whole_model_is_not_per_tensor(bench: Bench, measured: Measured) -> None:
    """The paper trims the whole task vector. Here one tensor changed ten times as much as the others."""
    wide = Bench(bench.folder / "uneven")
    for i, model in enumerate(wide.models):
        name = "model.layers.0.mlp.up_proj.weight"
        model[name] = wide.base[name] + 10 * (model[name] - wide.base[name])
        write(wide.paths[i + 1], model)
    theirs = wide.mergekit("ties", weight=[1.0] * 3, density=0.2)
    assert measured("apart, ties", distance(wide.tangora("ties", 1.0, density=0.2), theirs, wide.base)) > 0.2
    per_tensor = wide.tangora("ties_per_tensor", 1.0, density=0.2)
    assert measured("apart, ties_per_tensor", distance(per_tensor, theirs, wide.base)) < EXACT


def test_breadcrumbs_agrees(bench: Bench, measured: Measured) -> None:
    """Their density is what is left, ours say what is cut: bottom = 1 - density - gamma, top = gamma.

    Of two entries that are equal at a bound, ours keeps both, theirs the one that the sort put first.
    """
    theirs = bench.mergekit("breadcrumbs", weight=[0.3] * 3, density=0.5, gamma=0.1)
    ours = bench.tangora("breadcrumbs", 0.3, bottom=0.4, top=0.1)
    apart = torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in theirs])
    assert measured("entries that differ", float((apart > EXACT).sum())) <= 1


def test_della_without_chance_agrees(bench: Bench, measured: Measured) -> None:
    """At density 1 nothing is drawn, and what is left is the election."""
    theirs, ours = (
        bench.mergekit("della", weight=[1.0] * 3, density=1.0),
        bench.tangora("della", 1.0, density=1.0, window=0.0),
    )
    assert measured("apart", distance(ours, theirs, bench.base)) < EXACT


def test_della_rescales_by_a_norm_where_the_paper_divides_by_the_chance(
    monkeypatch: pytest.MonkeyPatch, measured: Measured
) -> None:
    """The same uniform numbers: nearly the same entries are kept, and every one of them gets another value."""
    from mergekit import sparsify

    from tangora.methods import della

    g = torch.Generator().manual_seed(0)
    delta, uniforms = torch.randn(1, 40, 200, generator=g), torch.rand(1, 40, 200, generator=g)
    monkeypatch.setattr(torch, "bernoulli", lambda p: (uniforms[0] < p).to(p.dtype))
    theirs = sparsify.della_magprune(delta[0], density=0.5, epsilon=0.2, rescale_norm=sparsify.RescaleNorm.l1)
    ours = della(delta, weights=torch.ones(1, 1, 1), uniforms=uniforms, density=0.5, window=0.4)
    assert measured("fraction kept by one only", float(((theirs != 0) != (ours != 0)).float().mean())) < 0.01
    both = (theirs != 0) & (ours != 0)
    ratio = (ours / theirs)[both]
    small, large = (ratio[part].mean() for part in (delta[0][both].abs() < 0.3, delta[0][both].abs() > 2))
    # ours is worth the original in expectation for every entry; theirs takes from small ones and gives to large ones
    assert measured("small entries, ours / theirs", float(small)) > 1.5
    assert measured("large entries, ours / theirs", float(large)) < 0.95
    chances = (torch.rand(delta.shape, generator=g) for _ in range(400))
    many = [della(delta, weights=torch.ones(1, 1, 1), uniforms=u, density=0.5, window=0.4) for u in chances]
    unbiased = (sum(many) / len(many) / delta[0])[delta[0].abs() < 0.3].median()
    assert float(unbiased) == pytest.approx(1.0, abs=0.02)


def test_slerp_agrees_on_whole_weights(bench: Bench, measured: Measured) -> None:
    """mergekit's arc is between weights: ours with a base of zeros."""
    origin = write(bench.folder / "zeros", {name: torch.zeros_like(t) for name, t in bench.base.items()})
    theirs = bench.mergekit("slerp", base=1, count=2, t=0.25)
    ours = bench.tangora("slerp", 1.0, count=2, base=origin, position=0.25)
    assert measured("apart", distance(ours, theirs, bench.base)) < 1e-4


def test_slerp_of_weights_is_all_but_the_average(bench: Bench, measured: Measured) -> None:
    theirs = bench.mergekit("slerp", base=1, count=2, t=0.5)
    average = bench.tangora("average", 1.0, count=2)
    assert measured("theirs from the average", distance(theirs, average, bench.base)) < 0.05
    ours = bench.tangora("slerp", 1.0, count=2, position=0.5)
    assert measured("ours from the average", distance(ours, average, bench.base)) > 0.3


def test_model_stock_agrees(bench: Bench, tmp_path: Path, measured: Measured) -> None:
    """Where the experts' angles are acute, as the paper has them."""
    close = Bench(tmp_path)
    shared = weights(9, 0.05)
    for i, model in enumerate(close.models):
        write(close.paths[i + 1], {name: t + shared[name] for name, t in model.items()})
    theirs, ours = close.mergekit("model_stock"), close.tangora("model_stock", 1.0)
    assert measured("apart", distance(ours, theirs, close.base)) < 1e-5


def test_model_stock_of_small_updates_is_drawn_to_the_base(tmp_path: Path, measured: Measured) -> None:
    """mergekit divides by at least 1e-6 for the product of two norms: under 1e-3 each, the angle is not an angle."""
    small = Bench(tmp_path, scale=0.0)
    shared = weights(9, 1e-5)
    for i in range(3):
        write(small.paths[i + 1], {name: t + shared[name] for name, t in small.base.items()})
    expert = read(small.paths[1])  # the three are one model, so that it is what they have in common
    assert measured("ours", distance(small.tangora("model_stock", 1.0), expert, small.base)) < 1e-3
    assert measured("theirs", distance(small.mergekit("model_stock"), expert, small.base)) > 0.3


def test_bfloat16_is_rounded_once(tmp_path: Path, measured: Measured) -> None:
    """Tangora writes the exact answer, rounded once; mergekit rounds every difference, product and sum."""
    half = Bench(tmp_path, torch.bfloat16)
    lambdas = [0.3, 0.5, -0.2]
    stored = [read(path) for path in half.paths]
    exact = {
        name: (b.double() + sum(w * (m[name].double() - b.double()) for w, m in zip(lambdas, stored[1:], strict=True)))
        for name, b in stored[0].items()
    }
    rounded = {name: t.to(torch.bfloat16) for name, t in exact.items()}
    for whose, found in (
        ("ours", half.tangora("task_arithmetic", lambdas)),
        ("theirs", half.mergekit("task_arithmetic", weight=lambdas)),
    ):
        wrong = sum(int((found[n] != rounded[n]).sum()) for n in rounded) / sum(t.numel() for t in rounded.values())
        measured(f"{whose}, fraction of entries that are not the nearest", wrong)
        assert (wrong < 1e-3) == (whose == "ours")
