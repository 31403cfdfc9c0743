"""Logits by forward passes: those of the fused adapter, differentiable, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch

import toys
from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.metadata import BaseInfo, Metadata
from tangora.coefficients.descend import adamerging, learned
from tangora.coefficients.forward import ForwardLogits
from tangora.coefficients.found import as_weights
from tangora.config.recipe import BaseConfig, TaskConfig
from tangora.errors import ArgumentError, DataError, FusionError
from tangora.evaluation.evaluator import evaluate
from tangora.fusion.fusion import fuse
from tangora.tasks import load_base, load_task
from tangora.updates.task_vector import Dense, LowRank

SHAPES = {f"encoder.layer.{i}.attention.self.{k}": (32, 32) for i in range(2) for k in ("query", "value")}
EMBEDDING = "embeddings.word_embeddings"


@pytest.fixture(scope="module")
def setting(tiny_bert, text_data):
    base = load_base(BaseConfig(family="text-zero-shot", model=str(tiny_bert)))
    source = {"parquet": {s: f"{text_data}/{s}.parquet" for s in ("train", "test")}}
    names = {"labels": ["red", "green", "blue"], "validation_fraction": 0.4}
    tasks = [
        load_task(TaskConfig(name=n, source=source, templates=[t], **names), base, 0)
        for n, t in (("plain", "{}"), ("good", "good {}"))
    ]
    return base, tasks


def lora(base):
    return {f"task{i}": toys.lora(i, shapes=SHAPES) for i in (1, 2)}


def full(base):
    made = {}
    for seed in (1, 2):
        g = torch.Generator().manual_seed(seed)
        parameters = {n: p for n, p in base.backbone.named_parameters() if "layer.1" in n or "LayerNorm" in n}
        updates = {n: Dense(0.1 * torch.randn(p.shape, generator=g)) for n, p in parameters.items()}
        made[f"task{seed}"] = Adapter(updates, Metadata(kind="full", task=f"task{seed}", base=BaseInfo(model="b")))
    return made


def started(base):
    """B₀ is not zero, and an embedding is adapted too."""
    made, words = {}, base.backbone.embeddings.word_embeddings.weight.shape
    start = toys.lora(7, shapes=SHAPES, initial=False).updates
    for seed in (1, 2):
        moved = toys.lora(seed, shapes={**SHAPES, EMBEDDING: (words[1], words[0])}, initial=False).updates
        made[f"task{seed}"] = Adapter(
            moved,
            Metadata(task=f"task{seed}", base=BaseInfo(model="b")),
            LoraDetails(
                initial={site: LowRank(u.b * 0.1, u.a, u.scaling) for site, u in start.items()},
                embeddings=frozenset({EMBEDDING}),
            ),
        )
    return made


def losses(logits, coefficients):
    found = dict.fromkeys(logits.tasks, 0.0)
    for part in logits(coefficients, {task: range(n) for task, n in logits.rows.items()}):
        for task, a in part.items():
            each = torch.nn.functional.cross_entropy(a.logits, a.labels, reduction="none")
            found[task] = found[task] + a.shares.to(each) @ each
    return found


@pytest.mark.parametrize("per_site", [False, True])
@pytest.mark.parametrize("adapters", [lora, full, started])
def test_losses_are_those_of_the_fused_adapter(setting, adapters, per_site):
    base, tasks = setting
    made = adapters(base)
    logits = ForwardLogits(base, tasks, "validation", made, per_site=per_site, batch_size=7)
    coefficients = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
    weights = as_weights(coefficients, logits.sites)
    expected = evaluate(fuse(list(made.values()), weights=weights), base, tasks, split="validation", same_base=True)
    for task, loss in losses(logits, coefficients).items():
        assert float(loss) == pytest.approx(expected[task].loss, rel=1e-4)


def test_gradients_are_those_of_finite_differences(setting):
    base, tasks = setting
    logits = ForwardLogits(base, tasks, "validation", lora(base), per_site=True)
    x = torch.full(logits.shape, 0.3, requires_grad=True)
    sum(losses(logits, x).values()).backward()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        up, down = (sum(losses(logits, x + sign * 1e-2 * direction).values()) for sign in (1, -1))
    assert float((up - down) / 2e-2) == pytest.approx(float((x.grad * direction).sum()), rel=0.05)
    assert not any(p.grad is not None for p in base.backbone.parameters())


def test_the_base_is_as_before_and_half_a_batch_is_as_good_as_a_whole(setting):
    base, tasks = setting
    before = {n: p.clone() for n, p in base.backbone.named_parameters()}
    found = [
        learned(ForwardLogits(base, tasks, "validation", lora(base), batch_size=size), steps=3, rows=99)
        for size in (4, 64)
    ]
    assert found[0].weights == pytest.approx(found[1].weights, abs=1e-4)
    assert all(torch.equal(before[n], p) for n, p in base.backbone.named_parameters())


def test_searches_lower_what_they_look_at(setting):
    base, tasks = setting
    logits = ForwardLogits(base, tasks, "validation", lora(base), rows={"plain": [0, 3, 5], "good": range(8)})
    assert logits.rows == {"plain": 3, "good": 8}
    options = {"learning_rate": 0.05, "rows": 8}
    assert learned(logits, steps=15, **options).loss < learned(logits, steps=1, **options).loss
    sure = adamerging(logits, steps=15, **options)
    assert sure.loss < adamerging(logits, steps=1, **options).loss
    assert all(0 <= w <= 1 for w in sure.weights)


def test_text_to_text_has_a_line_for_every_target_token(tiny_t5, text_data):
    base = load_base(BaseConfig(family="text-to-text", model=str(tiny_t5)))
    source = {"parquet": {s: f"{text_data}/{s}.parquet" for s in ("train", "test")}}
    config = TaskConfig(name="t5", source=source, prompt="{text}", target="{name}", metric="exact_match")
    task = load_task(config, base, 0)
    shapes = {f"encoder.block.{i}.layer.0.SelfAttention.q": (32, 32) for i in range(2)}
    made = {f"task{i}": toys.lora(i, shapes=shapes) for i in (1, 2)}
    logits = ForwardLogits(base, [task], "test", made, batch_size=5)
    expected = evaluate(fuse(list(made.values()), weights=[0.5, 0.25]), base, [task], same_base=True)["t5"].loss
    assert float(losses(logits, torch.tensor([0.5, 0.25]))["t5"]) == pytest.approx(expected, rel=1e-4)


def test_what_cannot_be_searched(setting):
    base, tasks = setting
    with pytest.raises(ArgumentError, match="nothing to find coefficients for"):
        ForwardLogits(base, tasks, "validation", {})
    with pytest.raises(DataError, match="the split is missing, got 'nowhere' at task plain"):
        ForwardLogits(base, tasks, "nowhere", lora(base))
    with pytest.raises(DataError, match="no rows to find coefficients on"):
        ForwardLogits(base, tasks, "test", lora(base), rows={"plain": []})
    broken = lora(base) | {"task2": toys.lora(2, shapes=SHAPES, scaling=float("nan"))}
    with pytest.raises(FusionError, match="the loss of a fused model is not finite"):
        learned(ForwardLogits(base, tasks, "test", broken), steps=1)
    whole = {n: Adapter(a.updates, a.metadata, whole={"pooler": torch.ones(1)}) for n, a in lora(base).items()}
    with pytest.raises(FusionError, match="saved whole"):
        ForwardLogits(base, tasks, "test", whole)
