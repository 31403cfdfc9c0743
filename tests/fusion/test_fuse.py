from __future__ import annotations

import json
import math
import sys
import warnings
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from tangora import methods
from tangora.adapters.adapter import Adapter, LoraDetails, load
from tangora.adapters.metadata import BaseInfo, InitialInfo, Metadata
from tangora.errors import ArgumentError, FileError, FusionError, PluginError
from tangora.fusion.fusion import Fusion, fuse
from tangora.methods import fusion_method
from tangora.updates.task_vector import Dense, LowRank

FINITE = st.floats(-2, 2, allow_nan=False, width=32)
BUILT_IN = ["average", "task_arithmetic", "ties", "ties_per_tensor", "dare", "dare_ties", "magnitude_prune"]


def dense(adapter: Adapter) -> dict[str, torch.Tensor]:
    return adapter.task_vector.dense()


def assert_same(x: dict[str, torch.Tensor], y: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """Equal up to float32's rounding of up to ten products, which are under 10 together: ten times 6e-8 of that."""
    assert x.keys() == y.keys()
    for site in x:
        torch.testing.assert_close(x[site], y[site], rtol=tolerance, atol=tolerance)


def three(**settings) -> list[Adapter]:
    return [toys.lora(seed, **settings) for seed in (1, 2, 3)]


def full(seed: int) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    shapes = {"bias": (4,), "weight": (4, 3), "scale": ()}
    return Adapter({k: Dense(torch.randn(s, generator=g)) for k, s in shapes.items()}, Metadata(kind="full"))


@pytest.mark.parametrize("space", ["delta", "factors"])
@pytest.mark.parametrize("method", ["task_arithmetic", "average"])
def test_one_adapter_with_weight_one_is_itself_bit_for_bit(tmp_path, method, space):
    adapter = toys.lora(1)
    fused = fuse([adapter], method, 1.0, space=space)
    if space == "delta":
        assert fused.fingerprint == adapter.fingerprint
        fused.save(tmp_path / "x")
        assert load(tmp_path / "x").fingerprint == adapter.fingerprint
    assert_same(dense(fused), dense(adapter))
    assert fused.metadata.task == "task1"


@pytest.mark.parametrize("method", BUILT_IN)
@pytest.mark.parametrize("make", [three, lambda: [full(1), full(2), full(3)]])
def test_one_adapter_at_density_one_is_itself(method, make):
    adapter = make()[0]
    parameters = {"density": 1.0} if "density" in methods.get(method).parameters else {}
    assert_same(dense(fuse([adapter], method, 1.0, **parameters)), dense(adapter))


@settings(max_examples=30, deadline=None)
@given(st.lists(FINITE, min_size=3, max_size=3), st.integers(1, 4), st.booleans())
def test_task_arithmetic_is_the_weighted_sum(weights, rank, shared_a):
    adapters = [toys.lora(seed, rank, scaling=seed / 2, shared_a=shared_a) for seed in (1, 2, 3)]
    fused = fuse(adapters, weights=weights)
    expected = {s: sum(w * dense(a)[s] for w, a in zip(weights, adapters, strict=True)) for s in ("up", "down")}
    assert_same(dense(fused), expected, 1e-4)
    ranks = {u.rank for u in fused.updates.values()}
    assert ranks == ({rank} if shared_a else {rank * max(1, sum(w != 0 for w in weights))})


def test_average_and_defaults():
    adapters = three()
    assert_same(dense(fuse(adapters, "average")), {s: sum(dense(a)[s] for a in adapters) / 3 for s in ("up", "down")})
    assert_same(dense(fuse(adapters)), dense(fuse(adapters, weights=methods.get("task_arithmetic").default_weight)))


def test_a_coefficient_that_float32_cannot_hold_is_kept():
    assert fuse([toys.lora(1, scaling=1.0)], weights=0.3).updates["up"].scaling == 0.3


def test_negative_weights_forget():
    x, y = toys.lora(1), toys.lora(2)
    both = fuse([x, y], weights=1.0)
    assert_same(dense(fuse([both, y], weights=[1.0, -1.0], same_base=True)), dense(x), 1e-5)


@pytest.mark.parametrize("space", ["delta", "factors"])
@pytest.mark.parametrize("method", BUILT_IN)
def test_order_does_not_matter(method, space):
    x, y, z = three()
    there = fuse([x, y, z], method, [0.5, 1.0, -0.25], space=space)
    back = fuse([z, x, y], method, [-0.25, 0.5, 1.0], space=space)
    assert_same(dense(there), dense(back))


@pytest.mark.parametrize("method", BUILT_IN)
def test_one_weight_is_the_same_as_one_each_and_as_one_per_site(method):
    adapters = three()
    one = fuse(adapters, method, 0.4)
    each = fuse(adapters, method, [0.4, 0.4, 0.4])
    sites = fuse(adapters, method, {"up": [0.4] * 3, "down": 0.4})
    tensor = fuse(adapters, method, torch.tensor([0.4] * 3, dtype=torch.float64))
    for other in (each, sites, tensor):
        assert_same(dense(one), dense(other), 1e-6)
    assert each.metadata.fused.weights == [0.4, 0.4, 0.4]
    assert sites.metadata.fused.weights == {"up": [0.4] * 3, "down": [0.4] * 3}


@pytest.mark.parametrize("method", ["task_arithmetic", "ties_per_tensor", "dare"])
@pytest.mark.parametrize("space", ["delta", "factors"])
def test_weights_per_site(method, space):
    adapters = three()
    fused = fuse(adapters, method, {"up": [1.0, 0.0, 0.5], "down": [0.0, 2.0, -1.0]}, space=space)
    up = fuse(adapters, method, [1.0, 0.0, 0.5], space=space)
    down = fuse(adapters, method, [0.0, 2.0, -1.0], space=space)
    assert_same(dense(fused), {"up": dense(up)["up"], "down": dense(down)["down"]}, 1e-6)


def test_global_and_per_tensor_ties_agree_with_the_methods_themselves():
    adapters = [full(1), full(2)]
    flat = torch.stack([torch.cat([dense(a)[n].flatten() for n in ("bias", "scale", "weight")]) for a in adapters])
    expected = methods.get("ties").function(flat, weights=torch.tensor([[0.5], [0.25]]), density=0.3)
    fused = dense(fuse(adapters, "ties", [0.5, 0.25], density=0.3))
    torch.testing.assert_close(torch.cat([fused[n].flatten() for n in ("bias", "scale", "weight")]), expected)
    weights = {"bias": [1.0, 0.0], "weight": [0.5, 2.0], "scale": [0.0, 1.0]}
    row = torch.cat(
        [torch.tensor(weights[n])[:, None].expand(2, k) for n, k in (("bias", 4), ("scale", 1), ("weight", 12))], 1
    )
    expected = methods.get("ties").function(flat, weights=row, density=0.3)
    fused = dense(fuse(adapters, "ties", weights, density=0.3))
    torch.testing.assert_close(torch.cat([fused[n].flatten() for n in ("bias", "scale", "weight")]), expected)
    per_tensor = dense(fuse(adapters, "ties_per_tensor", 1.0, density=0.3))
    stack = torch.stack([dense(a)["weight"] for a in adapters])
    expected = methods.get("ties_per_tensor").function(stack, weights=torch.ones(2, 1, 1), density=0.3)
    torch.testing.assert_close(per_tensor["weight"], expected)


def test_a_site_that_one_does_not_have_is_zero_there():
    x = toys.lora(1)
    y = replace(toys.lora(2), updates={"up": toys.lora(2).updates["up"]}).with_details(initial=None)
    fused = dense(fuse([x, y], weights=[0.5, 2.0]))
    assert_same(fused, {"up": 0.5 * dense(x)["up"] + 2 * dense(y)["up"], "down": 0.5 * dense(x)["down"]})
    ties = dense(fuse([x, y], "ties_per_tensor", density=1.0))
    torch.testing.assert_close(ties["down"], dense(x)["down"])


def test_factors_are_updates_only_when_a_is_shared():
    shared = three(shared_a=True)
    assert_same(dense(fuse(shared, weights=0.7)), dense(fuse(shared, weights=0.7, space="factors")))
    adapters = three()
    fused = fuse(adapters, weights=[0.5, 0.5, 0.5], space="factors")
    for site, update in fused.updates.items():
        start = adapters[0].initial[site]
        a = start.a + 0.5 * sum(x.updates[site].a - start.a for x in adapters)
        b = 0.5 * sum(x.updates[site].b for x in adapters)
        torch.testing.assert_close(update.dense(), 2.0 * b @ a, rtol=1e-5, atol=1e-5)
        assert update.rank == 2
    difference = fused.task_vector - fuse(adapters, weights=0.5).task_vector
    assert difference.norm() > 0.1 * fused.task_vector.norm()


def test_the_fused_of_shared_a_is_again_one_of_the_family():
    x, y, z = three(shared_a=True)
    both = fuse([x, y], weights=[0.5, 0.5])
    assert both.initial is not None
    again = fuse([both, z], weights=1.0, space="factors")
    assert_same(dense(again), dense(fuse([x, y, z], weights=[0.5, 0.5, 1.0])))
    assert fuse(three()[:2], weights=0.5).initial is None


def linearized(seed: int) -> Adapter:
    """An export of L-LoRA with B₀ ≠ 0: s·[B | B₀] @ [A₀ ; A − A₀]."""
    start, moved = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    updates, initial = {}, {}
    for site, (out, inside) in {"up": (10, 6), "down": (6, 10)}.items():
        b0, a0 = torch.randn(out, 2, generator=start), torch.randn(2, inside, generator=start)
        b = b0 + torch.randn(out, 2, generator=moved)
        delta_a = torch.randn(2, inside, generator=moved)
        updates[site] = LowRank(torch.cat([b, b0], 1), torch.cat([a0, delta_a], 0), 0.5)
        initial[site] = LowRank(b0, a0, 0.5)
    return Adapter(updates, Metadata(linearize="module"), LoraDetails(initial=initial))


def test_linearized_adapters_with_b0_stay_at_twice_the_rank(tmp_path):
    adapters = [linearized(seed) for seed in (1, 2, 3)]
    weights = [0.5, 1.0, -0.25]
    fused = fuse(adapters, weights=weights)
    expected = {s: sum(w * dense(a)[s] for w, a in zip(weights, adapters, strict=True)) for s in ("up", "down")}
    assert_same(dense(fused), expected)
    start = {site: u.dense() for site, u in adapters[0].start.items()}
    assert_same({s: u.dense() for s, u in fused.updates.items()}, {s: expected[s] + start[s] for s in start})
    assert {u.rank for u in fused.updates.values()} == {4}
    assert_same(dense(fuse(adapters, weights=weights, space="factors")), expected)
    fused.save(tmp_path / "x")
    assert_same(dense(load(tmp_path / "x")), expected)
    assert_same(dense(fuse([load(tmp_path / "x")], weights=2.0)), {s: 2 * d for s, d in expected.items()})
    pruned = fuse(adapters, "magnitude_prune", 1.0, density=1.0)
    assert_same(dense(pruned), {s: sum(dense(a)[s] for a in adapters) for s in start}, 1e-4)
    with pytest.raises(FusionError, match="different functions"):
        fuse([adapters[0], adapters[1].with_details(initial=None)])
    cut = fuse(adapters, weights=weights, rank=4)
    assert cut.metadata.fused.truncation_error == 0.0
    with pytest.raises(FusionError, match=r"the rank is 3, that of φ₀ 2"):
        fuse([fuse(adapters, weights=weights, rank=3)], space="factors")


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_draws_depend_on_seed_tensor_and_adapter_alone(method):
    x, y, z = three()
    assert_same(dense(fuse([x, y], method, seed=3)), dense(fuse([x, y], method, seed=3)), 0.0)
    different = fuse([x, y], method, seed=4).task_vector - fuse([x, y], method, seed=3).task_vector
    assert different.norm() > 0
    # another adapter of weight 0 beside it changes no draw
    alone = dense(fuse([x, y], "dare", [1.0, 0.5], seed=3, density=0.4))
    assert_same(dense(fuse([z, x, y], "dare", [0.0, 1.0, 0.5], seed=3, density=0.4)), alone, 1e-6)


def test_random_model_wide_methods_get_one_row_of_numbers_each(monkeypatch):
    from tangora.methods import _registry

    monkeypatch.setattr(_registry, "_METHODS", dict(_registry.methods()))

    @fusion_method("drawn", granularity="model", reference="none", default_weight=1.0, random=True)
    def drawn(deltas, *, weights, uniforms):
        """The numbers themselves."""
        return uniforms.sum(0)

    x, y = three()[:2]
    both = dense(fuse([x, y], "drawn"))
    assert_same(both, {s: dense(fuse([x], "drawn"))[s] + dense(fuse([y], "drawn"))[s] for s in both}, 1e-6)
    assert all(0 < float(t.mean()) < 2 for t in both.values())
    assert not torch.allclose(both["up"], both["down"].T)


def test_homogeneous_methods_are_computed_once_along_a_grid(monkeypatch):
    from tangora.methods import _registry

    monkeypatch.setattr(_registry, "_METHODS", dict(_registry.methods()))
    calls = []
    ties = methods.get("ties")

    def counting(*args, **kwargs):
        calls.append(kwargs)
        return ties.function(*args, **kwargs)

    _registry._METHODS["ties"] = replace(ties, function=counting)
    fusion = Fusion(three())
    for weight in (0.1, 0.5, 1.0):
        merged = fusion.merge("ties", [weight] * 3, {"density": 0.5})
        direct = ties.function(
            torch.stack([torch.cat([dense(a)[s].flatten() for s in ("down", "up")]) for a in fusion.adapters]),
            weights=torch.full((3, 1), weight),
            density=0.5,
        )
        found = torch.cat([dense(merged)[s].flatten() for s in ("down", "up")])
        torch.testing.assert_close(found, direct, rtol=1e-6, atol=1e-6)
    assert len(calls) == 1
    fusion.merge("ties", 1.0, {"density": 0.25})
    fusion.merge("ties", -1.0, {"density": 0.25})
    fusion.merge("ties", [1.0, 2.0, 3.0], {"density": 0.25})
    assert len(calls) == 4


def test_a_subset_is_the_fusion_of_those():
    adapters = three()
    whole = Fusion(adapters, "factors", seed=5, names=["x", "y", "z"])
    part = whole.subset([2, 0]).merge("dare", [0.5, 1.0], {"density": 0.5})
    assert (
        part.fingerprint
        == fuse([adapters[2], adapters[0]], "dare", [0.5, 1.0], space="factors", seed=5, density=0.5).fingerprint
    )
    assert [p.name for p in part.metadata.fused.parents] == ["z", "x"]
    with pytest.raises(ArgumentError, match="nothing to fuse"):
        whole.subset([])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.sampled_from(["task_arithmetic", "ties", "ties_per_tensor", "dare"]))
def test_the_rank_is_cut_as_well_as_can_be(rank, method):
    fused = fuse(three(), method, weights=0.5)
    cut = fuse(three(), method, weights=0.5, rank=rank)
    info = cut.metadata.fused
    assert info.rank == rank
    total, lost = 0.0, 0.0
    for site, update in fused.updates.items():
        s = torch.linalg.svdvals(update.dense().double())
        total, lost = total + float((s**2).sum()), lost + float((s[rank:] ** 2).sum())
        assert info.site_errors[site] == pytest.approx(float(s[rank:].norm() / s.norm()), abs=1e-5)
        assert cut.updates[site].rank <= rank
    assert info.truncation_error == pytest.approx(math.sqrt(lost / total), abs=1e-5)
    actual = (cut.task_vector - fused.task_vector).norm() / fused.task_vector.norm()
    assert actual == pytest.approx(info.truncation_error, abs=1e-5)


def test_a_site_is_cut_before_the_next_one_is_dense(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # several threads take a site each
    events = []
    compress = Dense.compress
    monkeypatch.setattr(Dense, "compress", lambda self, rank: events.append("cut") or compress(self, rank))
    method = methods()["ties_per_tensor"]

    def spied(deltas, **given):
        events.append("dense")
        return method.function(deltas, **given)

    monkeypatch.setattr(sys.modules["tangora.fusion.fusion"], "get", lambda name: replace(method, function=spied))
    fuse(three(), "ties_per_tensor", rank=2)
    assert events == ["dense", "cut"] * (len(events) // 2)
    assert len(events) > 2


def test_what_was_cut_does_not_pass_for_factors_of_the_common_start():
    adapters = three()
    rank = next(iter(adapters[0].updates.values())).rank
    assert adapters[0].initial is not None
    assert fuse(adapters, "ties_per_tensor", rank=rank).initial is None


def test_lineage(tmp_path):
    x = toys.lora(1, mode="lora", base=BaseInfo(model="toy", fingerprint="f" * 64))
    y = toys.lora(2, mode="lora")
    x.save(tmp_path / "first")
    fused = fuse([tmp_path / "first", y], "ties", [0.5, np.float64(1.0)], density=np.float32(0.25), rank=3, seed=9)
    info = fused.metadata.fused
    assert [(p.name, p.task, p.fingerprint) for p in info.parents] == [
        ("first", "task1", x.fingerprint),
        ("task2", "task2", y.fingerprint),
    ]
    assert (info.method, info.space, info.weights, info.parameters) == ("ties", "delta", [0.5, 1.0], {"density": 0.25})
    assert (info.seed, info.rank) == (9, 3)
    assert (fused.metadata.mode, fused.metadata.task) == ("lora", None)
    assert fused.metadata.base.fingerprint == "f" * 64
    fused.save(tmp_path / "fused")
    assert load(tmp_path / "fused").metadata == fused.metadata


def test_what_is_fused_can_be_made_again_from_its_metadata():
    adapters = three()
    fused = fuse(adapters, "dare_ties", [0.5, 1.0, 0.2], space="factors", seed=4, density=0.3)
    info = json.loads(fused.metadata.model_dump_json())["fused"]
    again = fuse(
        adapters, info["method"], info["weights"], space=info["space"], seed=info["seed"], **info["parameters"]
    )
    assert again.fingerprint == fused.fingerprint


@pytest.mark.parametrize("space", ["delta", "factors"])
@pytest.mark.parametrize(("method", "parameters"), [("task_arithmetic", {}), ("ties", {"density": 0.3})])
def test_stock_peft_loads_what_was_fused(tmp_path, space, method, parameters):
    configs = [{"r": 3, "lora_alpha": 6}, {"r": 3, "lora_alpha": 6}]
    if space == "delta":
        configs[1] = {"r": 5, "lora_alpha": 7, "use_rslora": True, "alpha_pattern": {"up": 3}}
    sites = ["embed", "up", "down"] if space == "delta" else ["up", "down"]
    parents = []
    for i, config in enumerate(configs):
        targets = sites[: 3 - i] if space == "delta" else sites
        wrapped = toys.trained(toys.toy(), peft.LoraConfig(target_modules=targets, **config), i)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped.save_pretrained(tmp_path / str(i))
        parents.append(load(tmp_path / str(i)))
    if space == "factors":
        first = parents[0].updates
        start = {s: LowRank(torch.zeros_like(u.b), torch.zeros_like(u.a), u.scaling) for s, u in first.items()}
        parents = [p.with_details(initial=start) for p in parents]
    fused = fuse(parents, method, [0.7, 0.4], space=space, **parameters)
    fused.save(tmp_path / "fused")
    model, ids = toys.toy(), torch.tensor([[1, 2, 3], [4, 5, 10]])
    fused.apply_(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = peft.PeftModel.from_pretrained(toys.toy(), tmp_path / "fused").eval()
    torch.testing.assert_close(loaded(ids), model(ids), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(loaded(ids), toys.toy()(ids), atol=1e-4)
    config = json.loads((tmp_path / "fused/adapter_config.json").read_text())
    assert config["use_rslora"] is False
    assert sorted(config["target_modules"]) == sorted(sites)


def test_full_adapters():
    adapters = [full(1), full(2)]
    expected = {n: 0.5 * dense(adapters[0])[n] + 2 * dense(adapters[1])[n] for n in adapters[0].updates}
    assert_same(dense(fuse(adapters, weights=[0.5, 2.0])), expected)
    fused = fuse(adapters, "dare", 1.0)
    assert fused.metadata.kind == "full"
    with pytest.raises(ArgumentError, match="rank is for low-rank adapters"):
        fuse(adapters, rank=2)
    with pytest.raises(FusionError, match="needs φ₀"):
        fuse(adapters, space="factors")


def test_bases():
    def on(model, fingerprint=None, revision=None):
        return toys.lora(1, base=BaseInfo(model=model, fingerprint=fingerprint, revision=revision))

    assert fuse([on("a", "x"), on("b", "x")], weights=0.5)
    assert fuse([on(None), on(None)], weights=0.5)
    assert fuse([on("a"), on("b")], weights=0.5, same_base=True)
    for x, y in [
        (on("a"), on("b")),
        (on("a"), on(None)),
        (on("a", "x"), on("a", "y")),
        (on("a", "x"), on("b")),
        (on("a", revision="1"), on("a", revision="2")),
    ]:
        with pytest.raises(FusionError, match="same_base=True"):
            fuse([x, y])
    with pytest.raises(FusionError, match=r"task1 has a, weights x, task1 \(3\) has a, weights z"):
        fuse([on("a", "x"), on("a"), on("a", "z")])


def other_scaling() -> Adapter:
    return toys.lora(2, scaling=3.0)


def without_site(name: str) -> Adapter:
    adapter = toys.lora(2)
    return replace(adapter, updates={s: u for s, u in adapter.updates.items() if s != name})


def other_start() -> Adapter:
    adapter = toys.lora(2)
    return adapter.with_details(initial={s: LowRank(u.b, u.a + 1, u.scaling) for s, u in adapter.initial.items()})


def half_embedding() -> Adapter:
    return toys.lora(2).with_details(embeddings=frozenset({"up"}))


def dense_up() -> Adapter:
    return replace(GOOD, updates={**GOOD.updates, "up": Dense(torch.ones(10, 6))})


def full_toy() -> Adapter:
    return replace(full(1), metadata=Metadata(kind="full", base=BaseInfo(model="toy")))


def with_good(*others: Adapter, **options):
    return lambda: fuse([GOOD, *others], **options)


GOOD = toys.lora(1)
IN_FACTORS = {"space": "factors"}
ARGUMENTS = [
    (lambda: fuse([]), "nothing to fuse"),
    (lambda: fuse("adapter"), "adapters must be a list, got 'str'"),
    (with_good(toys.lora(2), weights=[1.0]), "2 adapters need 2 weights, got 1"),
    (with_good(weights=[math.nan]), "weights must be finite"),
    (with_good(weights=-math.inf), "weights must be finite"),
    (with_good(weights="much"), "weights must be numbers"),
    (with_good(weights={"upp": [1.0], "down": [1.0]}), "no such site, got 'upp'.*Did you mean 'up'"),
    (with_good(weights={"up": [1.0]}), "a site has no weights, got 'down'"),
    (with_good(weights={"up": [1.0, 2.0], "down": 1.0}), r"fuse\.weights\.up"),
    (with_good(method="ties", densty=0.2), "unknown parameter 'densty'.*Did you mean 'density'"),
    (with_good(method="ties", density=20), r"[Dd]id you mean 0\.20"),
    (with_good(rank=0), "rank must be a whole number of at least 1, or auto, got 0"),
    (with_good(rank=2.5), "got 2.5"),
    (lambda: Fusion([GOOD], names=["a", "b"]), "one name per adapter, got 2"),
    (with_good(toys.lora(2), method="average", weights=[1.0, -1.0]), "must not sum to zero"),
]
PLUGINS = [
    (with_good(method="tise"), "no such fusion method, got 'tise'.*Did you mean 'ties'"),
    (with_good(space="factor"), "no such space, got 'factor'.*Did you mean 'factors'"),
]
UNLIKE = [
    (with_good(full_toy()), "task1 is of kind lora, adapter 2 of kind full"),
    (
        with_good(toys.lora(2, shapes={"up": (10, 7)})),
        r"widths differ: task1 has \(10, 6\), task2 has \(10, 7\) at up",
    ),
    (with_good(half_embedding()), "the site is an embedding in only one of task1 and task2 at up"),
    (with_good(toys.lora(2, initial=False), **IN_FACTORS), "needs φ₀, which task2 does not record"),
    (
        with_good(other_start(), **IN_FACTORS),
        "task1 and task2 started from different φ₀, with fingerprints [0-9a-f]{12} and [0-9a-f]{12} at up",
    ),
    (with_good(toys.lora(2, 4), **IN_FACTORS), "the ranks differ: task1 has 2, task2 has 4"),
    (with_good(other_scaling(), **IN_FACTORS), "the scalings differ: task1 has 2, task2 has 3"),
    (with_good(without_site("up"), **IN_FACTORS), "task1 and task2 differ at up"),
    (lambda: fuse([dense_up()], **IN_FACTORS), "needs a low-rank update at task1 at up"),
]
BAD = [
    *((call, message, ArgumentError) for call, message in ARGUMENTS),
    *((call, message, PluginError) for call, message in PLUGINS),
    *((call, message, FusionError) for call, message in UNLIKE),
]


@pytest.mark.parametrize(("call", "message", "error"), BAD, ids=[message[:24] for _, message, _ in BAD])
def test_bad_input(call, message, error):
    with pytest.raises(error, match=message):
        call()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileError, match="no such folder"):
        fuse([tmp_path / "nowhere"])


def test_nothing_is_changed_by_fusing():
    adapters = three()
    before = [a.fingerprint for a in adapters]
    tensors = [u.a.clone() for a in adapters for u in a.updates.values()]
    for method in BUILT_IN:
        fuse(adapters, method, 0.5)
        fuse(adapters, method, 0.5, space="factors", rank=1)
    assert [replace(a).fingerprint for a in adapters] == before
    assert all(
        torch.equal(t, u) for t, u in zip(tensors, (u.a for a in adapters for u in a.updates.values()), strict=True)
    )


def test_shared_phi0_stays_redrawable(tmp_path):
    from tangora.adapters.initial import draw_factors, fingerprint

    adapters = three(shared_a=True)
    start = {s: draw_factors(3, s, u.rank, u.shape, scaling=2.0) for s, u in adapters[0].updates.items()}
    info = InitialInfo(seed=3, fingerprint=fingerprint(start))
    adapters = [
        Adapter(
            {s: LowRank(u.b, start[s].a, 2.0) for s, u in a.updates.items()},
            Metadata(initial=info),
            LoraDetails(initial=start),
        )
        for a in adapters
    ]
    for weights in ([0.3, 0.3, 0.3], [0.5, 0.0, 0.0]):
        fused = fuse(adapters, weights=weights)
        fused.save(tmp_path / "x", overwrite=True)
        assert not (tmp_path / "x/tangora_initial.safetensors").exists()
        assert torch.equal(load(tmp_path / "x").initial["up"].a, start["up"].a)
    stacked = fuse([adapters[0], replace(toys.lora(4), metadata=Metadata())], weights=1.0)
    assert stacked.metadata.initial is None


def test_the_package_keeps_the_function_after_its_module_is_imported():
    import tangora
    import tangora.fusion.fusion

    assert tangora.fuse is fuse
    assert tangora.fuse([GOOD], weights=1.0).fingerprint == GOOD.fingerprint


@pytest.mark.parametrize("method", ["average", "task_arithmetic"])
def test_cores_lose_nothing(method):
    assert_same(dense(fuse(three(), method, weights=[0.5, 1.0, -0.25], space="core")),
                dense(fuse(three(), method, weights=[0.5, 1.0, -0.25])))  # fmt: skip


def test_a_method_on_cores_is_the_method_between_common_bases():
    """Against dense SVDs of the updates side by side, and one above the other."""
    adapters = three()
    fused = fuse(adapters, "magnitude_prune", weights=1.0, space="core", density=0.3)
    for site in adapters[0].updates:
        deltas = torch.stack([a.updates[site].dense().double() for a in adapters])
        u, s, _ = torch.linalg.svd(torch.cat(list(deltas), 1), full_matrices=False)
        _, z, vh = torch.linalg.svd(torch.cat(list(deltas), 0), full_matrices=False)
        u, vh = u[:, s > 1e-6 * s[0]], vh[z > 1e-6 * z[0]]
        kept = methods()["magnitude_prune"](u.T @ deltas @ vh.T, weights=torch.ones(3, 1, 1), density=0.3)
        torch.testing.assert_close(fused.updates[site].dense().double(), u @ kept @ vh, rtol=1e-4, atol=1e-5)
        assert fused.updates[site].rank <= sum(a.updates[site].rank for a in adapters)


def test_cores_do_not_depend_on_how_an_update_is_factored():
    adapters, turned = three(), []
    for seed, adapter in enumerate(adapters):
        g = torch.Generator().manual_seed(seed)
        updates = {}
        for site, u in adapter.updates.items():
            m = torch.linalg.qr(torch.randn(u.rank, u.rank, generator=g))[0] * 2
            updates[site] = LowRank(u.b @ m, torch.linalg.inv(m) @ u.a, u.scaling)
        turned.append(Adapter(updates, Metadata()))
    plain = [Adapter(a.updates, Metadata()) for a in adapters]
    options = {"method": "ties", "space": "core", "density": 0.4}
    assert_same(dense(fuse(plain, **options)), dense(fuse(turned, **options)), 1e-4)


def test_cores_of_a_subset_have_bases_of_their_own():
    whole = Fusion(three(), "core")
    part = whole.subset([2, 0]).merge("ties_per_tensor", 1.0, {"density": 0.5})
    assert_same(dense(part), dense(fuse([three()[2], three()[0]], "ties_per_tensor", 1.0, space="core", density=0.5)))


def test_cores_of_shared_factors_are_as_small_as_the_shared_rank():
    shared = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    adapters = [
        Adapter({"x": LowRank(torch.randn(12, 3, generator=torch.Generator().manual_seed(i)), shared)})
        for i in (1, 2, 3)
    ]
    assert fuse(adapters, "ties", space="core").updates["x"].rank == 3


def test_cores_need_factors():
    with pytest.raises(FusionError, match=r"space 'core' needs low-rank updates.*dense"):
        fuse([full(1), full(2)], space="core")


def test_zero_updates_have_cores_too():
    nothing = Adapter({"x": LowRank(torch.zeros(5, 2), torch.ones(2, 4))})
    assert not fuse([nothing, nothing], "ties", space="core").updates["x"].dense().any()
