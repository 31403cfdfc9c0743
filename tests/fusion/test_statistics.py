"""Statistics: what they are, that their files are checked, and fusions that use them."""

from __future__ import annotations

import json
import re

import pytest
import torch

import toys
from tangora.adapters.adapter import Adapter, LoraDetails, load
from tangora.adapters.application import applied
from tangora.adapters.metadata import BaseInfo, Metadata
from tangora.checkpoints.steps import check_method
from tangora.errors import ArgumentError, DataError, FileError, FusionError, ModelError, OutputError
from tangora.evaluation.collection import collect_statistics
from tangora.fusion.fusion import Fusion, fuse
from tangora.fusion.statistics import About, Statistics
from tangora.fusion.statistics import load as load_statistics
from tangora.methods import get
from tangora.tasks import TaskModel
from tangora.updates.task_vector import Dense, LowRank

QUERY, VALUE = (f"encoder.layer.1.attention.self.{kind}" for kind in ("query", "value"))


def adapter_for(
    base, *sites: str, seed: int = 0, kind: str = "lora", embeddings: frozenset[str] = frozenset()
) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    parameters = dict(base.backbone.named_parameters())
    updates = {}
    for site in sites:
        shape = parameters[site if kind == "full" else f"{site}.weight"].shape
        if kind == "full":
            updates[site] = Dense(torch.randn(shape, generator=g) * 0.05)
        else:
            out, inside = shape[::-1] if site in embeddings else shape
            b, a = torch.randn(out, 2, generator=g), torch.randn(2, inside, generator=g)
            updates[site] = LowRank(b, a, 0.1)
    about = Metadata(kind=kind, base=BaseInfo(fingerprint=base.fingerprint))
    return Adapter(updates, about, LoraDetails(embeddings=embeddings))


def one_by_one(base, task, adapter, split):
    """Inputs of every row by a hook, and the Fisher information by autograd, a row and a class at a time."""
    inputs: dict[str, list[torch.Tensor]] = {}
    fisher: dict[str, torch.Tensor] = {}
    parameters = dict(base.backbone.named_parameters())
    with applied(base.backbone, adapter):
        model = TaskModel(base.backbone, task, base).eval()
        for item in task.splits[split].dataset():
            batch = model.collator([item])
            for site in adapter.updates:
                module = base.backbone.get_submodule(site)
                hook = module.register_forward_hook(
                    lambda m, x, y, site=site: inputs.setdefault(site, []).append(x[0].detach()[0])
                )
                weight = parameters[f"{site}.weight"].requires_grad_(True)
                logs = model(**batch)["logits"].log_softmax(-1)[0]
                for c in range(len(logs)):
                    (gradient,) = torch.autograd.grad(logs[c], weight, retain_graph=True)
                    fisher[site] = fisher.get(site, 0) + logs[c].exp().detach() * gradient**2
                weight.requires_grad_(False)
                hook.remove()
    rows = {site: torch.cat(parts) for site, parts in inputs.items()}
    grams = {site: x.T @ x / len(x) for site, x in rows.items()}
    return grams, {site: total / len(task.splits[split]) for site, total in fisher.items()}


def near(found, expected):
    """Up to float32's rounding of inputs and gradients, some 1e-6 of the largest, in sums of a hundred squares."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("family", ["text", "image"])
def test_they_are_what_single_rows_give(family, request):
    base, task = (request.getfixturevalue(f"{family}_{what}") for what in ("base", "task"))
    sites = [n for n, m in base.backbone.named_modules() if isinstance(m, torch.nn.Linear) and ".1." in n][:2]
    adapter = adapter_for(base, *sites)
    grams, fisher = one_by_one(base, task, adapter, "validation")
    for size in (1, 16):
        found = collect_statistics(base, task, adapter, split="validation", batch_size=size)
        for site in sites:
            near(found.get(site, "gram"), grams[site])
            near(found.get(site, "fisher"), fisher[site])
    assert found.about.model_dump(include={"split", "rows", "labels", "averaged"}) == {
        "split": "validation", "rows": len(task.splits["validation"]), "labels": "every", "averaged": [],
    }  # fmt: skip
    assert not any(p.requires_grad for p in base.backbone.parameters())


def test_a_watched_collection_shows_how_far_it_is(text_base, text_task, monkeypatch, capsys):
    collect = lambda **options: collect_statistics(  # noqa: E731
        text_base, text_task, adapter_for(text_base, QUERY), kinds=["gram"], rows=8, batch_size=4, **options
    )
    collect()
    assert not capsys.readouterr().err
    monkeypatch.setattr("tangora.progress.watched", lambda: True)
    collect(progress=False)
    assert not capsys.readouterr().err
    collect()
    assert re.search(r"gram · colors \[#+\] (\d+)/\1 \n$", capsys.readouterr().err)


def test_rows_one_by_one_and_layers_give_the_same(text_base, text_task):
    """With an embedding among the sites, gradients are taken by parameter."""
    words = "embeddings.word_embeddings"
    plain = adapter_for(text_base, QUERY)
    other = adapter_for(text_base, words, embeddings=frozenset({words}))
    by_layer = collect_statistics(text_base, text_task, plain, kinds=["fisher"], rows=10)
    by_row = collect_statistics(text_base, text_task, plain, rows=10, also=[other])
    near(by_row.get(QUERY, "fisher"), by_layer.get(QUERY, "fisher"))
    assert by_row.about.averaged == [words]
    assert by_row.get(words, "gram") is None
    known = by_row.get(words, "fisher")
    assert known is not None
    assert known.shape == other.updates[words].shape
    seen = {int(i) for row in text_task.splits["train"].inputs["input_ids"] for i in row}
    assert not known[:, [i for i in range(known.shape[1]) if i not in seen]].any()


def test_text_is_drawn_and_a_seed_decides(answer_base, answer_task):
    site = "decoder.block.1.layer.0.SelfAttention.q"
    adapter = adapter_for(answer_base, site)
    first, same, other = (collect_statistics(answer_base, answer_task, adapter, rows=6, seed=s) for s in (1, 1, 2))
    assert first.about.labels == "drawn"
    assert torch.equal(first.get(site, "fisher"), same.get(site, "fisher"))
    assert not torch.equal(first.get(site, "fisher"), other.get(site, "fisher"))
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_whole_parameters(text_base, text_task, tmp_path):
    """Full fine-tuning: matrices have a Gram, the rest is averaged; both methods fuse it."""
    names = [f"{QUERY}.weight", f"{QUERY}.bias", "embeddings.LayerNorm.weight"]
    pair = [adapter_for(text_base, *names, kind="full", seed=s) for s in (1, 2)]
    known = [collect_statistics(text_base, text_task, a, rows=8) for a in pair]
    assert known[0].about.averaged == sorted(names[1:])
    for method in ("regmean", "fisher"):
        fused = fuse(pair, method, statistics=known)
        assert all(torch.isfinite(u.dense()).all() for u in fused.updates.values())
    mean = (pair[0].updates[names[1]].dense() + pair[1].updates[names[1]].dense()) / 2
    torch.testing.assert_close(fuse(pair, "regmean", statistics=known).updates[names[1]].dense(), mean)


def made(adapter: Adapter, seed: int = 0, kinds=("gram", "fisher"), **about) -> Statistics:
    """Statistics of random data."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for site, update in adapter.updates.items():
        x = torch.randn(20, update.shape[1], generator=g)
        made_here = {"gram": x.T @ x / 20, "fisher": torch.rand(update.shape, generator=g)}
        tensors |= {f"{site}.{kind}": made_here[kind] for kind in kinds}
    provenance = {"task": "toy", "task_fingerprint": "0", "split": "train", "rows": 20, "seed": seed, **about}
    return Statistics(About(kinds=list(kinds), adapter=adapter.fingerprint, **provenance), tensors)


@pytest.fixture
def pair():
    adapters = [toys.lora(1), toys.lora(2, rank=3)]
    return adapters, [made(a, seed) for seed, a in enumerate(adapters)]


def test_regmean_of_low_rank_updates_is_exact_and_low_rank(pair):
    adapters, known = pair
    fused = fuse(adapters, "regmean", [0.5, -0.25], statistics=known, off_diagonal=0.5)
    for site, update in fused.updates.items():
        assert isinstance(update, LowRank)
        assert update.rank == 5
        grams = [0.5 * g + 0.5 * g.diag().diag() for s in known if (g := s.get(site, "gram").double()) is not None]
        grams = [g + 1e-6 * sum(h.trace() for h in grams) / (2 * len(g)) * torch.eye(len(g)) for g in grams]
        deltas = [a.updates[site].dense().double() for a in adapters]
        expected = (0.5 * deltas[0] @ grams[0] - 0.25 * deltas[1] @ grams[1]) @ torch.linalg.inv(sum(grams))
        torch.testing.assert_close(update.dense().double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_order_grid_and_rank(pair, method, tmp_path):
    adapters, known = pair
    fused = fuse(adapters, method, statistics=known)
    turned = fuse(adapters[::-1], method, statistics=known)
    fusion = Fusion(adapters, statistics=known)
    half = fusion.merge(method, 0.5)
    for site, update in fused.updates.items():
        torch.testing.assert_close(turned.updates[site].dense(), update.dense(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(half.updates[site].dense(), update.dense() / 2, rtol=1e-4, atol=1e-5)
    cut = fuse(adapters, method, statistics=known, rank=2)
    assert {u.rank for u in cut.updates.values()} == {2}
    assert 0 < cut.metadata.fused.truncation_error < 1
    fused.save(tmp_path / "fused")
    recorded = load(tmp_path / "fused").metadata.fused.statistics
    assert [(t.kind, t.split, t.rows, t.fingerprint) for t in recorded] == [
        ({"regmean": "gram"}.get(method, method), "train", 20, k.fingerprint) for k in known
    ]


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_one_adapter_is_itself(pair, method):
    adapter, known = pair[0][0], pair[1][0]
    fused = fuse([adapter], method, statistics=[known])
    for site, update in adapter.updates.items():
        torch.testing.assert_close(fused.updates[site].dense(), update.dense(), rtol=1e-4, atol=1e-5)


def test_a_subset_keeps_its_statistics(pair):
    adapters, known = pair
    part = Fusion(adapters, statistics=known).subset([1]).merge("regmean")
    whole = fuse(adapters[1:], "regmean", statistics=known[1:])
    assert part.fingerprint == whole.fingerprint


def test_files_give_the_same_bits_lazily(pair, tmp_path):
    adapters, known = pair
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for one, path in zip(known, paths, strict=True):
        one.save(path)
    again = load_statistics(paths[0])
    assert again.about.model_dump(exclude={"sha256"}) == known[0].about.model_dump(exclude={"sha256"})
    assert len(again.tensors) == len(list(again.tensors)) == 4
    for method in ("regmean", "fisher"):
        from_files = fuse(adapters, method, statistics=paths)
        assert from_files.fingerprint == fuse(adapters, method, statistics=known).fingerprint
    with pytest.raises(OutputError, match="exists"):
        known[0].save(paths[0])


def test_a_site_that_one_adapter_lacks(pair):
    full, lacking = toys.lora(1), toys.lora(2, shapes={"up": (10, 6)})
    known = [made(full), made(lacking)]
    with pytest.raises(FusionError, match=r"no gram of a site, got 'down' .*--also"):
        fuse([full, lacking], "regmean", statistics=known)
    covered = Statistics(known[1].about, {**known[1].tensors, "down.gram": torch.eye(10)})
    fused = fuse([full, lacking], "regmean", statistics=[known[0], covered], off_diagonal=1.0, ridge=0.0)
    gram = known[0].get("down", "gram").double()
    expected = full.updates["down"].dense().double() @ gram @ torch.linalg.inv(gram + torch.eye(10))
    torch.testing.assert_close(fused.updates["down"].dense().double(), expected, rtol=1e-4, atol=1e-4)


def test_wrong_statistics_are_refused_with_fingerprints(pair):
    adapters, known = pair
    other = made(toys.lora(3))
    with pytest.raises(FusionError, match=r"regmean needs gram statistics of task1.*none were given"):
        fuse(adapters, "regmean")
    with pytest.raises(FusionError) as caught:
        fuse(adapters, "fisher", statistics=[known[0], other])
    for one in (adapters[1], toys.lora(3)):
        assert one.fingerprint[:12] in str(caught.value)
    with pytest.raises(FusionError, match=f"not fused, fingerprint {other.about.adapter[:12]}"):
        fuse(adapters, "fisher", statistics=[*known, other])
    with pytest.raises(ArgumentError, match="average needs no statistics, got 2"):
        fuse(adapters, "average", statistics=known)
    with pytest.raises(FusionError, match="needs fisher statistics, got 'gram'"):
        fuse(adapters, "fisher", statistics=[made(a, kinds=["gram"]) for a in adapters])
    for space in ("factors", "core"):
        pair_of_one_start = [toys.lora(1), toys.lora(2)]
        with pytest.raises(FusionError, match=f"statistics, which apply to changes of weights only, got '{space}'"):
            fuse(pair_of_one_start, "regmean", statistics=[made(a) for a in pair_of_one_start], space=space)


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_checkpoints_have_none(method):
    with pytest.raises(
        FusionError, match=f"{method} needs statistics, which only adapters have.*Fuse the adapters first"
    ):
        check_method(get(method))


def test_wrong_numbers_are_refused(pair):
    adapters, known = pair
    odd = Statistics(known[0].about, {**known[0].tensors, "up.gram": torch.eye(5)})
    with pytest.raises(FusionError, match=r"the gram of up must be \(6, 6\), got \(5, 5\)"):
        fuse(adapters, "regmean", statistics=[odd, known[1]])
    bad = Statistics(known[0].about, {**known[0].tensors, "up.gram": torch.full((6, 6), torch.nan)})
    with pytest.raises(FileError, match=r"not finite at up\.gram"):
        fuse(adapters, "regmean", statistics=[bad, known[1]])


def test_wrong_files_are_refused(pair, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileError, match="file not found"):
        load_statistics(path)
    with pytest.raises(ArgumentError, match=r"a \.safetensors file, got .*a\.pt"):
        pair[1][0].save(tmp_path / "a.pt")
    pair[1][0].save(path)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    for change, message in (({"format": 2}, "format"), ({"rows": 0}, "rows"), ({"extra": 1}, "unknown key 'extra'")):
        path.with_suffix(".json").write_text(json.dumps(sidecar | change))
        with pytest.raises(FileError, match=message):
            load_statistics(path)
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileError, match=r"sha-256 .*do not belong together"):
        load_statistics(path)
    path.unlink()
    with pytest.raises(FileError, match="cannot be read"):
        load_statistics(path)


def test_collecting_refuses(text_base, text_task):
    adapter = adapter_for(text_base, QUERY)
    collect = lambda **options: collect_statistics(text_base, text_task, adapter, **options)  # noqa: E731
    with pytest.raises(ArgumentError, match=r"no such statistics, got 'grams' .*Did you mean 'gram'"):
        collect(kinds=["grams"])
    with pytest.raises(DataError, match="the split is missing, got 'dev'"):
        collect(split="dev")
    with pytest.raises(ArgumentError, match="rows must be at least 1, got 0"):
        collect(rows=0)
    stranger = Adapter(adapter.updates, Metadata(base=BaseInfo(fingerprint="f" * 64)))
    with pytest.raises(
        ModelError, match=f"base with fingerprint ffffffffffff, this one has {text_base.fingerprint[:12]}"
    ):
        collect_statistics(text_base, text_task, stranger)
