"""What holds for any adapters: of any sites, ranks, scalings, dtypes, conventions."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tangora import methods
from tangora.adapters.adapter import Adapter, LoraDetails, load
from tangora.adapters.metadata import BaseInfo, Metadata
from tangora.fusion.fusion import fuse
from tangora.updates.task_vector import Dense, LowRank

ELEMENTWISE = sorted(n for n, m in methods.methods().items() if m.linear)
SETTINGS = settings(max_examples=40, deadline=None)
SIZES = st.integers(1, 6)
SCALES = st.sampled_from([1.0, 2.0, 0.3, -0.7, 16 / 3, 1e-3])
WEIGHTS = st.lists(st.sampled_from([0.0, 1.0, 0.3, -0.5, 2.0]), min_size=3, max_size=3)


@st.composite
def families(draw, count: int = 3) -> list[Adapter]:
    """Adapters of one base: linear layers, an embedding, a convolution, experts, biases; every one has some of them."""
    shapes: dict[str, tuple[int, int]] = {
        f"layers.{i}.up": (draw(SIZES), draw(SIZES)) for i in range(draw(SIZES) % 3 + 1)
    }
    kernels: dict[str, tuple[int, ...]] = {}
    if draw(st.booleans()):
        kernel = tuple(draw(st.lists(SIZES, min_size=2, max_size=4)))
        kernels, shapes = {"conv": kernel}, shapes | {"conv": (draw(SIZES), torch.Size(kernel).numel())}
    other = draw(st.sampled_from(["none", "embedding", "experts", "bias"]))
    if other == "embedding":
        shapes["embed"] = (draw(SIZES), draw(SIZES))
    if other == "experts":
        experts = (draw(SIZES), draw(SIZES))
        shapes |= {f"moe.experts[{e}]": experts for e in range(draw(SIZES))}
    seed = draw(st.integers(0, 2**16))
    return [_member(draw, shapes, kernels, other, seed + i, i == 0) for i in range(count)]


def _member(draw, shapes, kernels, other: str, seed: int, whole: bool) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    rank, updates = draw(SIZES), {}
    for site, (out, inside) in shapes.items():
        if not whole and updates and not site.startswith("moe") and draw(st.integers(0, 3)) == 0:
            continue
        own = rank if site.startswith("moe") or draw(st.booleans()) else draw(SIZES)
        b, a = torch.randn(out, own, generator=generator), torch.randn(own, inside, generator=generator)
        scaling = 1.0 if site.startswith("moe") else draw(SCALES)
        updates[site] = LowRank(b.to(dtype).float(), a.to(dtype).float(), scaling)
        if other == "bias" and site != "embed":
            updates[f"{site}.bias"] = Dense(torch.randn(out, generator=generator))
    config = {"peft_type": "LORA", "target_parameters": ["experts.weight"]} if other == "experts" else None
    embeddings = frozenset({"embed"}) & updates.keys()
    about = Metadata(task=f"task{seed}", base=BaseInfo(model="any"))
    kept = {s: k for s, k in kernels.items() if s in updates}
    return Adapter(updates, about, LoraDetails(config, None, embeddings, kept))


def dense(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {site: update.dense().double() for site, update in adapter.updates.items()}


def assert_close(x: dict[str, torch.Tensor], y: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """Site by site, by the norm of the largest; a site that only one has is zero in the other."""
    scale = max([float(t.norm()) for t in (*x.values(), *y.values())], default=0.0)
    for site in x.keys() | y.keys():
        one, other = x.get(site), y.get(site)
        difference = (one if other is None else other if one is None else one - other).norm()
        assert float(difference) <= tolerance * scale + 1e-12, site


def again(adapter: Adapter, dtype: torch.dtype | None = None) -> Adapter:
    """Through a folder, whose weights may be in another dtype."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "x"
        adapter.save(folder)
        if dtype is not None:
            path = folder / "adapter_model.safetensors"
            save_file({name: t.to(dtype) for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
        return load(folder)


@SETTINGS
@given(families(1), st.sampled_from(ELEMENTWISE))
def test_identity(family, method):
    fused = fuse(family, method, 1.0)
    assert_close(dense(fused), dense(family[0]), 1e-6)
    assert_close(dense(again(fused)), dense(family[0]), 1e-6)


@SETTINGS
@given(families(), WEIGHTS, WEIGHTS, st.sampled_from([0.5, -2.0, 3.0]))
def test_task_arithmetic_is_linear_in_its_weights(family, x, y, factor):
    combined = [a + factor * b for a, b in zip(x, y, strict=True)]
    one, other = dense(fuse(family, weights=x)), dense(fuse(family, weights=y))
    sums = {site: one[site] + factor * other[site] for site in one}
    assert_close(dense(fuse(family, weights=combined)), sums)


@SETTINGS
@given(families(), WEIGHTS)
def test_linear_methods_are_linear_in_the_updates(family, weights):
    doubled = [replace(a, updates={s: u * 2.0 for s, u in a.updates.items()}) for a in family]
    for method in ELEMENTWISE:
        given_ = weights if method != "average" else [abs(w) + 1 for w in weights]
        twice = {site: 2 * t for site, t in dense(fuse(family, method, given_)).items()}
        assert_close(dense(fuse(doubled, method, given_)), twice)


@SETTINGS
@given(
    families(),
    WEIGHTS,
    st.permutations(range(3)),
    st.sampled_from(["task_arithmetic", "ties", "dare", "magnitude_prune"]),
)
def test_the_order_of_tasks_does_not_matter(family, weights, order, method):
    there = fuse(family, method, weights)
    back = fuse([family[i] for i in order], method, [weights[i] for i in order])
    assert_close(dense(there), dense(back))


@SETTINGS
@given(families(), WEIGHTS, st.sampled_from(["task_arithmetic", "ties_per_tensor", "svd"]))
def test_saved_and_loaded_it_is_the_same(family, weights, method):
    fused = fuse(family, method, weights)
    found = again(fused)
    assert_close(dense(found), dense(fused), 1e-5)
    assert found.embeddings == fused.embeddings
    assert found.kernels == fused.kernels
    assert_close(dense(again(found)), dense(found), 1e-6)


@SETTINGS
@given(families(2), st.sampled_from([torch.bfloat16, torch.float16, torch.float64]))
def test_the_fusion_of_files_is_that_of_what_they_say(family, dtype):
    files = [again(adapter, dtype) for adapter in family]
    fused = fuse(files, weights=[0.5, -2.0])
    expected: dict[str, torch.Tensor] = {}
    for adapter, weight in zip(files, (0.5, -2.0), strict=True):
        for site, delta in dense(adapter).items():
            expected[site] = expected.get(site, torch.zeros_like(delta)) + weight * delta
    assert_close(dense(fused), expected)


@SETTINGS
@given(families(), st.sampled_from(["task_arithmetic", "ties_per_tensor", "average"]))
def test_compressing_to_the_full_rank_changes_nothing(family, method):
    whole = fuse(family, method, 1.0)
    rank = max(min(u.shape) for u in whole.updates.values() if len(u.shape) == 2)
    cut = fuse(family, method, 1.0, rank=rank)
    assert_close(dense(cut), dense(whole))
    assert cut.metadata.fused.truncation_error == pytest.approx(0.0, abs=1e-6)
