"""Gates that learn: the objective falls, a killed training resumes, and the record says on which rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mlp_experts import expert

import tangora
from tangora.adapters.adapter import load
from tangora.config.learning import LearnedSettings
from tangora.errors import DataError, ModelError
from tangora.polishing.objectives import answer_entropy
from tangora.polishing.routes import thinned
from tangora.routing.route import route
from tangora.tasks.batches import IGNORED
from tangora.tasks.contract import AnswerForm
from tangora.tasks.values import Split
from tangora.testing._tiny import tiny_base, tiny_tasks

QUICK = {"steps": 30, "rows": 12, "batch_size": 4, "learning_rate": 2e-2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def tasks():
    return tiny_tasks(2)


@pytest.fixture(scope="module")
def experts(base):
    return [expert(base, f"task{i}", i + 1, size=1.0) for i in range(2)]


def learned(experts, base, tasks, method="wemoe", **settings):
    more = {key: settings.pop(key) for key in ("scratch", "on_step", "seed") if key in settings}
    return route(experts, method, base=base, tasks=tasks, **more, **{**QUICK, **settings})


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("objective", ["entropy", "follow", "labels"])
def test_the_objective_falls(experts, base, tasks, objective, depth):
    record = learned(experts, base, tasks, objective=objective, depth=depth).metadata.fused.selection
    assert sum(record["after"].values()) < 0.98 * sum(record["before"].values())
    assert record["objective"] == objective
    assert (record["split"], record["oracle"], record["measured_on"]) == ("train", False, "the same")
    assert record["rows"] == {"task0": 12, "task1": 12}
    assert record["experts"] == {f"task{i}": one.fingerprint for i, one in enumerate(experts)}
    assert [point[0] for point in record["curve"]] == list(range(1, 31))
    assert record["curve"][-1][1] < record["curve"][0][1]


def test_the_curve_is_the_sum_over_the_tasks_of_their_mean(experts, base, tasks):
    """With all rows in a batch and no movement, every point is the sum of the objective before."""
    settings = {"steps": 2, "batch_size": 12, "learning_rate": 1e-12}
    record = learned(experts, base, tasks, **settings).metadata.fused.selection
    for _, loss in record["curve"]:
        assert loss == pytest.approx(sum(record["before"].values()), rel=1e-4)


def test_only_gates_are_trained(experts, base, tasks):
    before, after = (learned(experts, base, tasks, steps=steps).updates for steps in (0, 3))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name].dense(), after[name].dense())}
    assert moved == {"gates"}


@pytest.mark.parametrize("method", ["e-wemoe", "wemoe"])
def test_the_same_seed_gives_the_same_adapter_and_a_killed_training_resumes(experts, base, tasks, tmp_path, method):
    whole = learned(experts, base, tasks, method, steps=6)
    assert learned(experts, base, tasks, method, steps=6).fingerprint == whole.fingerprint
    assert learned(experts, base, tasks, method, steps=6, seed=1).fingerprint != whole.fingerprint

    def stop(step, total, loss):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned(experts, base, tasks, method, steps=6, scratch=tmp_path, on_step=stop)
    assert list(tmp_path.glob("*/checkpoint-4"))
    seen = []
    again = learned(
        experts, base, tasks, method, steps=6, scratch=tmp_path, on_step=lambda step, total, loss: seen.append(step)
    )
    assert seen == [5, 6]
    assert again.fingerprint == whole.fingerprint
    assert again.metadata.fused.selection["curve"] == whole.metadata.fused.selection["curve"]


def test_the_record_is_saved(experts, base, tasks, tmp_path):
    made = learned(experts, base, tasks, steps=2)
    made.save(tmp_path / "made")
    assert load(tmp_path / "made").metadata.fused.selection == made.metadata.fused.selection


@pytest.mark.parametrize("objective", ["entropy", "follow"])
def test_labels_are_not_read(experts, base, tasks, objective):
    lied = [replace(t, splits={n: Split(s.inputs, [2] * len(s)) for n, s in t.splits.items()}) for t in tasks]
    one, other = (learned(experts, base, which, objective=objective, steps=3) for which in (tasks, lied))
    assert one.fingerprint == other.fingerprint


def test_the_best_step_on_held_out_rows_is_kept(experts, base, tasks):
    settings = {"held_out": 0.25, "evaluate_every": 5, "learning_rate": 1.0}
    record = learned(experts, base, tasks, objective="labels", **settings).metadata.fused.selection
    assert record["measured_on"] == "held-out"
    assert [step for step, _ in record["validation"]] == list(range(5, 31, 5))
    means = dict(record["validation"])
    kept = sum(record["after"].values()) / 2
    assert kept <= min(means.values()) + 1e-6
    assert record["step"] == (0 if record["before"] == record["after"] else min(means, key=means.get))


def test_no_step_is_kept_if_all_are_worse(experts, base, tasks):
    settings = {"held_out": 0.25, "evaluate_every": 1, "learning_rate": 1e3, "steps": 2, "objective": "labels"}
    made = learned(experts, base, tasks, **settings)
    record = made.metadata.fused.selection
    if record["step"] == 0:
        start = learned(experts, base, tasks, **{**settings, "steps": 0})
        assert all(torch.equal(u.dense(), start.updates[n].dense()) for n, u in made.updates.items())
        assert record["after"] == record["before"]
    else:
        assert sum(record["after"].values()) <= sum(record["before"].values())


def test_test_rows_are_used_by_name_only(experts, base, tasks):
    record = learned(experts, base, tasks, split="oracle", steps=1).metadata.fused.selection
    assert (record["split"], record["oracle"], record["rows"]) == ("oracle", True, {"task0": 9, "task1": 9})
    same = [replace(t, splits={**t.splits, "train": t.splits["test"]}) for t in tasks]
    with pytest.raises(DataError, match="among the task's test rows"):
        learned(experts, base, same, steps=1)


def test_validation_rows(experts, base, tasks):
    record = learned(experts, base, tasks, split="validation", steps=1).metadata.fused.selection
    assert record["rows"] == {"task0": 6, "task1": 6}


def test_numbers_have_no_entropy(experts, base, tasks):
    odd = replace(tasks[1], form=AnswerForm("number", None))
    with pytest.raises(ModelError, match="entropy of these answers is not defined"):
        learned(experts, base, [tasks[0], odd])


def test_a_loss_that_is_not_finite_is_refused_and_the_base_is_as_before(experts, base, tasks):
    before = {name: value.clone() for name, value in base.backbone.state_dict().items()}
    with pytest.raises(ModelError, match="not finite"):
        learned(experts, base, tasks, objective="labels", learning_rate=1e30, steps=20)
    after = base.backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_entropies_of_every_form():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    p = logits.softmax(-1)
    each = -(p * p.log()).sum(-1)
    assert torch.allclose(answer_entropy(logits[:, 0], torch.zeros(2), "classes"), each[:, 0])
    labels = torch.tensor([[1, IGNORED, 2], [IGNORED, IGNORED, 0]])
    wanted = torch.stack([(each[0, 0] + each[0, 2]) / 2, each[1, 2]])
    assert torch.allclose(answer_entropy(logits, labels, "tokens"), wanted)
    assert torch.allclose(answer_entropy(logits, labels, "tags"), wanted)
    q = logits[:, 0].sigmoid()
    binary = -(q * q.log() + (1 - q) * (1 - q).log()).sum(-1)
    assert torch.allclose(answer_entropy(logits[:, 0], labels, "labels"), binary)
    sure = torch.tensor([[200.0, 0.0, -200.0]])
    assert float(answer_entropy(sure, torch.zeros(1), "classes")) == 0.0


def test_a_curve_is_thinned_to_means():
    assert thinned([], [], 5) == []
    assert thinned(list(range(1, 8)), [float(i) for i in range(7)], 3) == [[3, 1.0], [6, 4.0], [7, 6.0]]


def test_passes_count_rows_through_the_model():
    settings = LearnedSettings(name="any", rows=10, steps=5, batch_size=2)
    assert settings.passes([20, 4]) == 3 * 5 * 2 * 2 + 2 * 14
    follow = settings.model_copy(update={"objective": "follow"})
    assert follow.passes([20, 4]) == settings.passes([20, 4]) + 14


def test_an_adapter_answers_by_its_commands(experts, base, tasks):
    made = learned(experts, base, tasks, steps=2)
    scores = tangora.evaluate(made, base, tasks)
    assert set(scores) == {"task0", "task1"}
