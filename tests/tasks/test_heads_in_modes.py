"""Trained heads in every mode, for every problem: they are learned, travel with the adapter, and expand linearly."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import tangora
from tangora.adapters.adapter import load
from tangora.coefficients.searching import search
from tangora.errors import DataError, FusionError
from tangora.evaluation.evaluator import answering
from tangora.modes.contract import mode_of
from tangora.tangent.columns import make_columns, site_columns
from tangora.tasks.lines import lines_of
from tangora.tasks.splits import sample
from tangora.tasks.values import evaluating

PROBLEMS = {
    "pair": {"text_pair": "pair", "label": "same"},
    "multi": {"problem": "multi", "label": "colors"},
    "regression": {"problem": "regression", "label": "count"},
    "tags": {},
}
RATES = {"lora": 2e-2, "l-lora": 3e-2, "tangent": 2e-2, "full": 3e-3, "full-tangent": 3e-3}


@pytest.fixture(scope="session")
def problems(tiny_bert, several_data):
    """Problem -> base and task; the tasks with a target per row share their base."""
    files = {split: several_data / f"{split}.jsonl" for split in ("train", "test")}
    rows = tangora.load_base(tiny_bert, family="text-classification", max_length=16)
    words = tangora.load_base(tiny_bert, family="token-classification", max_length=16)
    bases = {name: words if name == "tags" else rows for name in PROBLEMS}
    return {n: (bases[n], tangora.load_task(n, bases[n], files, **PROBLEMS[n])) for n in PROBLEMS}


def trained(base, task, mode, steps=6, **changes):
    training = {"steps": steps, "batch_size": 12, "learning_rate": RATES[mode], "checkpoint_every": None}
    lora = {"r": 2, "target_modules": ["query", "value"]}
    return tangora.FinetuneConfig(mode=mode, train=mode, lora=lora, training=training, **changes)


@torch.no_grad()
def logits(adapter, base, task, split="test"):
    """The logits of an adapter as lines, in the order of the rows."""
    found = {}
    with answering(adapter, base) as model_of:
        model = model_of(task)
        with evaluating(model):
            for rows, padded in task.splits[split].batches(5, model.collator):
                batch = dict(padded)
                labels = batch.pop("labels")
                made = model.logits(batch, labels)
                over = task.form.logits_over
                if over is None:
                    found |= dict(zip(rows, made, strict=True))
                    continue
                lines = lines_of(over, labels, made.shape[-1])
                for place, row in enumerate(rows):
                    found[row] = lines.of(made)[lines.rows == place]
    return torch.cat([found[row] for row in sorted(found)])


@pytest.mark.parametrize("mode", RATES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_head_is_trained_and_travels(problems, tmp_path, mode, problem):
    base, task = problems[problem]
    adapter = tangora.finetune(base, task, trained(base, task, mode), out=tmp_path / "a")
    losses = json.loads((tmp_path / "a" / "training.json").read_text())["loss"]
    assert min(losses[-2:]) < losses[0]
    head = adapter.heads[problem]
    assert set(head) == {"classifier.weight", "classifier.bias"}
    assert head["classifier.weight"].any(), "trained from zero"
    read = load(tmp_path / "a")
    before, after = (tangora.evaluate(one, base, task)[problem] for one in (adapter, read))
    assert before == after
    if not mode_of(adapter).linear_in_coefficients:
        return
    parts = [{site: update * c for site, update in adapter.updates.items()} for c in (0.0, 1.0, 0.5)]
    origin, moved, half = (logits(replace(adapter, updates=part), base, task) for part in parts)
    assert torch.allclose(half, (origin + moved) / 2, atol=1e-5), "linear in φ, with the head fixed"
    assert (moved - origin).abs().max() > 1e-3
    if task.form.logits_over is not None:
        columns = make_columns(base, task, "test", {"one": adapter}, batch_size=5)
        assert torch.allclose(columns.logits(torch.tensor([0.5])), half, atol=1e-5)
        assert columns.examples.tolist() == sorted(columns.examples.tolist())


@pytest.fixture(scope="session")
def experts(problems):
    """Problem -> a tangent and a LoRA expert."""
    made = {}
    for problem, (base, task) in problems.items():
        made[problem] = {m: tangora.finetune(base, task, trained(base, task, m, 8)) for m in ("tangent", "lora")}
    return made


@pytest.mark.parametrize("problem", ["pair", "multi", "tags"])
def test_a_search_minimizes_the_loss_of_the_task(problems, experts, problem):
    base, task = problems[problem]
    for mode, name in (("tangent", "convex"), ("lora", "learned"), ("lora", "lorahub")):
        adapter = experts[problem][mode]
        settings = {"steps": 2} if name == "learned" else {"budget": 2} if name == "lorahub" else {}
        found = search([adapter], base, [task], name, split="train", **settings)
        fused = tangora.fuse([adapter], weights=found.weights)
        loss = tangora.evaluate(fused, base, task, split="train")[problem].loss
        # the loss of the lines is that of the task: float32 sums of at most 36 rows of 12 lines
        assert found.loss == pytest.approx(loss, rel=1e-4), (mode, name)
    by_site = site_columns(base, task, "test", {"one": experts[problem]["tangent"]})
    whole = make_columns(base, task, "test", {"one": experts[problem]["tangent"]})
    assert torch.allclose(by_site.columns.sum(1), whole.columns, atol=1e-4)
    assert torch.equal(by_site.labels, whole.labels)


def test_a_regression_has_no_distribution_to_search_by(problems, experts):
    base, task = problems["regression"]
    with pytest.raises(FusionError, match="no search by gradients"):
        search([experts["regression"]["lora"]], base, [task], "learned", split="train", steps=1)
    with pytest.raises(DataError, match="columns need logits that are a distribution"):
        make_columns(base, task, "test", {"one": experts["regression"]["tangent"]})
    found = search([experts["regression"]["lora"]], base, [task], "lorahub", split="train", budget=3)
    fused = tangora.fuse([experts["regression"]["lora"]], weights=found.weights)
    assert found.loss == pytest.approx(tangora.evaluate(fused, base, task, split="train")["regression"].loss, rel=1e-5)


@pytest.mark.parametrize("problem", ["multi", "regression", "tags"])
def test_fisher_information_is_that_of_the_predictions(problems, experts, problem):
    base, task = problems[problem]
    adapter, site = experts[problem]["lora"], "encoder.layer.1.attention.self.value"
    found = tangora.collect_statistics(base, task, adapter, kinds=["fisher"], rows=4, seed=1).tensors[f"{site}.fisher"]
    if problem == "tags":  # drawn: positive, of the right shape, and the same every time
        again = tangora.collect_statistics(base, task, adapter, kinds=["fisher"], rows=4, seed=1).tensors
        assert torch.equal(found, again[f"{site}.fisher"])
        assert found.min() >= 0 < found.max()
        return
    weight = base.backbone.get_submodule(site).weight
    expected = torch.zeros_like(weight, dtype=torch.float64)
    rows = sample(len(task.splits["train"]), 4, 1)
    weight.requires_grad_(True)
    try:
        with answering(adapter, base) as model_of:
            model, data = model_of(task), task.splits["train"].dataset()
            with evaluating(model):
                for row in rows:
                    batch = model.collator([data[row]])
                    batch.pop("labels")
                    for z in model.logits(batch)[0]:
                        (gradient,) = torch.autograd.grad(z, weight, retain_graph=True)
                        p = z.detach().double().sigmoid()
                        expected += (p * (1 - p) if problem == "multi" else 1.0) * gradient.double().square()
    finally:
        weight.requires_grad_(False)
    # float32 gradients, squared: 1e-5 of the largest is far above rounding
    assert torch.allclose(found.double(), expected / 4, rtol=1e-3, atol=1e-5 * float(expected.max()))


def test_one_student_follows_experts_of_every_problem(problems, experts):
    names = ["pair", "multi", "regression"]
    base, tasks = problems["pair"][0], [problems[name][1] for name in names]
    settings = {"rank": 6, "rows": 24, "recombined": 30, "steps": 15, "batch_size": 6, "learning_rate": 1e-2}
    chosen = [experts[name]["lora"] for name in names]
    adapter = tangora.polish(chosen, base, tasks, **settings, weights=0.3)
    info = adapter.metadata.polished
    assert info.recombined == {"pair": 6, "multi": 6, "regression": 6}
    assert sum(info.after.values()) < sum(info.before.values())
    assert set(adapter.heads) == set(names)


def test_a_student_follows_tags(problems, experts):
    base, task = problems["tags"]
    settings = {"rank": 2, "rows": 16, "steps": 10, "batch_size": 6, "learning_rate": 1e-2, "student": "tangent"}
    adapter = tangora.polish([experts["tags"]["lora"]], base, [task], **settings, weights=0.3)
    info = adapter.metadata.polished
    assert info.after["tags"] < info.before["tags"]


def test_rows_without_labels_are_answered_by_the_folder(problems, experts, tmp_path):
    for problem, rows in (
        ("multi", ["this photo red blue zero"]),
        ("pair", [{"text": "red", "pair": "yes"}]),
        ("regression", ["this photo red blue zero"]),
        ("tags", [["this", "photo", "red", "zero"]]),
    ):
        experts[problem]["lora"].save(tmp_path / problem)
        base, task = problems[problem]
        answers = tangora.predictor(tmp_path / problem)(rows)
        here = tangora.predict(experts[problem]["lora"], base, task, rows)
        assert answers.answers == here.answers
        if problem == "multi":
            assert torch.allclose(answers.probabilities, here.probabilities, atol=1e-6)
            expected = [[n for n, p in zip(answers.labels, answers.probabilities[0], strict=True) if p >= 0.5]]
            assert answers.answers == expected
            assert answers.probability is None
        if problem == "tags":
            assert len(answers[0]) == 4
            assert answers.probabilities is None
        if problem == "regression":
            assert isinstance(answers[0], float)
