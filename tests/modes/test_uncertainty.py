"""Uncertainty sampling: scores by hand, shares of tasks without entropies, and trainings that resume."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

import tangora
from tangora.config.settings import SamplingSettings
from tangora.errors import ModelError
from tangora.modes.contract import Bench
from tangora.modes.finetuning import finetune
from tangora.modes.mixture import Mixture, TaskMeans, one_or_mixed
from tangora.modes.uncertainty import Candidates, Choosing, entropies, kept, refuse_packed, scores
from tangora.support.seams import MODES
from tangora.tasks.contract import AnswerForm
from tangora.tasks.language.collation import LanguageCollator
from tangora.tasks.model import TaskModel
from tangora.testing import check_mode
from tangora.testing._tiny import tiny_base, tiny_tasks

CLASSES, TAGS = AnswerForm("classes", "classes"), AnswerForm("tags", "tags")
NUMBER, LABELS = AnswerForm("number", None), AnswerForm("labels", "labels")
UNCERTAIN = SamplingSettings(by="uncertainty")


def test_entropies_of_hand_made_logits():
    sure, even = [100.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    half = [0.0, 0.0, -100.0]
    found = entropies(torch.tensor([sure, even, half]), torch.zeros(3), CLASSES)
    expected = torch.tensor([0.0, math.log(3), math.log(2)]) / (math.log(3) + 1e-5)  # uniform logits have H_max
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_entropy_of_a_row_of_words_is_the_mean_over_those_that_count():
    logits = torch.tensor([[[0.0, 0.0], [50.0, 0.0], [0.0, 0.0]]])
    labels = torch.tensor([[1, 0, -100]])
    expected = torch.tensor([0.5 * math.log(2) / (math.log(2) + 1e-5)])
    torch.testing.assert_close(entropies(logits, labels, TAGS), expected, atol=1e-6, rtol=0)
    assert entropies(logits, torch.full((1, 3), -100), TAGS).tolist() == [0.0]


def test_the_entropy_of_independent_labels_is_the_mean_over_them():
    found = entropies(torch.tensor([[0.0, 80.0], [0.0, 0.0]]), torch.zeros(2, 1), LABELS)
    full = math.log(2) / (math.log(2) + 1e-5)
    torch.testing.assert_close(found, torch.tensor([full / 2, full]), atol=1e-6, rtol=0)


def test_scores_weigh_the_task_by_its_mean():
    measured = [torch.tensor([0.8, 0.4]), torch.tensor([0.2, 0.4])]  # means .6 and .3
    first, second = scores(measured)
    torch.testing.assert_close(first, torch.tensor([0.8, 0.4]))
    torch.testing.assert_close(second, torch.tensor([0.1, 0.2]))
    assert [row.tolist() for row in kept(measured, 0, 2)] == [[True, True], [False, False]]
    assert [values.tolist() for values in scores([torch.zeros(2), torch.zeros(2)])] == [[0.0, 0.0]] * 2
    assert scores([]) == []


def test_of_equal_scores_any_are_kept():
    chosen = kept([torch.full((4,), 0.5)] * 3, 0, 4)
    assert sum(int(rows.sum()) for rows in chosen) == 4
    best = kept([torch.tensor([0.1, 0.9, 0.2, 0.3]), torch.tensor([0.4, 0.1, 0.8, 0.1])], 0, 4)
    # scores: means .375 and .35, so that the second task's count .933 as much
    assert [rows.nonzero().flatten().tolist() for rows in best] == [[1, 3], [0, 2]]


@pytest.mark.parametrize(("tasks", "count"), [(3, 4), (8, 2), (2, 5)])
@pytest.mark.parametrize("without", [1, 2])
def test_a_regression_keeps_its_share(tasks, count, without):
    measured = [None] * without + [torch.rand(count) for _ in range(tasks - without)]
    sums = torch.zeros(tasks)
    for number in range(tasks * 3):
        rows = kept(measured, number, count)
        assert sum(int(one.sum()) for one in rows) == count
        sums += torch.tensor([float(one.sum()) for one in rows])
    if without < tasks:
        assert sums[:without].tolist() == [3.0 * count] * without, "count / tasks in each batch, on average"
    else:
        assert sums.sum() == tasks * 3 * count


def test_as_released_a_regression_borrows_scores_by_position():
    measured = [torch.tensor([0.9, 0.1]), None, torch.tensor([0.3, 0.2])]
    chosen = kept(measured, 0, 2, released=True)
    assert [rows.tolist() for rows in chosen] == [[True, False], [True, False], [False, False]]
    assert [rows.tolist() for rows in kept([None, None], 0, 2, released=True)] == [[True, False], [True, False]]


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="mixes tasks anyway"):
        SamplingSettings(by="uncertainty", mixed=True)
    with pytest.raises(ValidationError, match="scored is for by: uncertainty"):
        SamplingSettings(scored="released")


def test_packed_rows_are_refused():
    (task,) = tiny_tasks(1)
    refuse_packed([task], [LanguageCollator()])
    with pytest.raises(ModelError, match=r"packed batch cannot be chosen, got 'task0'.*base\.packing: false"):
        refuse_packed([task], [LanguageCollator(packing=True)])


def test_every_batch_has_candidates_of_every_task_and_trains_on_the_least_certain():
    base, tasks = tiny_base(), tiny_tasks(3)
    rows, collate, combine = one_or_mixed(base, tasks, 8, 4, 0, UNCERTAIN)
    assert isinstance(rows, Candidates)
    assert len(rows) == 8
    alone = [one_or_mixed(base, [task], 8, 4, 0)[0] for task in tasks]
    for position in range(8):
        for task in range(3):
            assert torch.equal(rows[position]["rows"][task]["input_ids"], alone[task][position]["input_ids"])
    batch = collate([rows[i] for i in range(4, 8)])
    assert int(batch["number"]) == 1
    assert [len(part["task"]) for part in batch["parts"]] == [4, 4, 4]
    models = [TaskModel(base.backbone, task, base) for task in tasks]
    choosing = combine(models)
    assert isinstance(choosing, Choosing)
    with torch.no_grad():
        logits = [
            model.logits({k: v for k, v in part.items() if k not in ("task", "labels")})
            for model, part in zip(models, batch["parts"], strict=True)
        ]
        chosen = kept([entropies(one, one, CLASSES) for one in logits], 1, 4)
        losses = [
            model.readout.losses(one, part["labels"])[rows]
            for model, one, part, rows in zip(models, logits, batch["parts"], chosen, strict=True)
        ]
    expected = torch.cat(losses).mean()
    assert abs(float(choosing(**batch)["loss"]) - float(expected)) <= 1e-5 * max(1.0, float(expected))
    by_task = one_or_mixed(base, tasks, 8, 4, 0, UNCERTAIN, TaskMeans)[2](models)
    means = torch.stack([one.mean() for one in losses if len(one)]).mean()
    assert abs(float(by_task(**batch)["loss"]) - float(means)) <= 1e-5 * max(1.0, float(means))


def test_rows_are_scored_without_dropout_unless_as_released():
    base, tasks = tiny_base(), tiny_tasks(2)
    base.backbone.config.hidden_dropout_prob = 0.1
    models = [TaskModel(base.backbone, task, base).train() for task in tasks]
    rows, collate, _ = one_or_mixed(base, tasks, 4, 4, 0, UNCERTAIN)
    part = collate([rows[i] for i in range(4)])["parts"][0]
    plain, released = (Choosing(Mixture(models), [CLASSES] * 2, flag) for flag in (False, True))
    assert torch.equal(plain._entropies(part), plain._entropies(part))
    assert not torch.equal(released._entropies(part), released._entropies(part))
    assert all(module.training for module in models[0].modules()), "the mode is as before"


TRAINING = {"steps": 6, "batch_size": 3, "learning_rate": 0.02, "checkpoint_every": 2}


def config(mode, **more):
    sampling = {"by": "uncertainty", **more.pop("sampling", {})}
    lora = {"lora": {"r": 2, "target_modules": ["query"], "dropout": 0.1}} if mode == "joint-lora" else {}
    return tangora.FinetuneConfig(mode="m", train=mode, training={**TRAINING, **more}, sampling=sampling, **lora)


@pytest.mark.parametrize("mode", ["ca-mtl", "joint-lora"])
@pytest.mark.parametrize("scored", ["plain", "released"])
def test_a_training_that_is_killed_ends_with_the_same_adapters(mode, scored, tmp_path):
    settings = config(mode, sampling={"scored": scored})

    def kill(step, total, loss):
        if step == 5:
            raise KeyboardInterrupt

    base, tasks = tiny_base(), tiny_tasks(2)
    whole = finetune(base, tasks, settings)
    with pytest.raises(KeyboardInterrupt):
        finetune(base, tasks, settings, scratch=tmp_path / "s", out=tmp_path / "o", on_step=kill)
    assert list(tmp_path.glob("s/*/checkpoint-4/trainer_state.json"))
    steps = []
    again = finetune(
        base, tasks, settings, scratch=tmp_path / "s", out=tmp_path / "o", on_step=lambda step, *_: steps.append(step)
    )
    assert steps == [5, 6]
    assert {n: a.fingerprint for n, a in again.items()} == {n: a.fingerprint for n, a in whole.items()}


def test_it_chooses_other_rows_than_turns_do():
    base, tasks = tiny_base(), tiny_tasks(2)
    one, other = (
        MODES.get("joint-lora").train(Bench(base), tasks, config("joint-lora", sampling={"by": by}))["task0"]
        for by in ("uncertainty", "turns")
    )
    assert one.fingerprint != other.fingerprint


def test_accumulated_batches_are_chosen_one_by_one():
    base, tasks = tiny_base(), tiny_tasks(2)
    bench = Bench(base)
    MODES.get("joint-lora").train(bench, tasks, config("joint-lora", gradient_accumulation=2))
    assert len(bench.records["task0"]["loss"]) == 6


def test_target_tokens_have_entropies_too(tiny_llama, sum_data):
    base = tangora.load_base(tiny_llama, family="causal-lm", max_length=64)
    files = {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}
    tasks = [tangora.load_task(name, base, files, **more) for name, more in (("sums", {}), ("texts", {"text": "text"}))]
    lora = {"r": 2, "target_modules": ["q_proj"]}
    settings = tangora.FinetuneConfig(
        train="joint-lora", lora=lora, training={**TRAINING, "steps": 1}, sampling={"by": "uncertainty"}
    )
    bench = Bench(base)
    MODES.get("joint-lora").train(bench, tasks, settings)
    assert all(math.isfinite(loss) for loss in bench.records["sums"]["loss"])


JOINT = sorted(name for name in MODES if MODES.get(name).joint and "sampling" in MODES.get(name).settings.model_fields)


@pytest.mark.parametrize("name", JOINT)
def test_every_joint_mode_can_train_on_the_least_certain_rows(name):
    check_mode(MODES.get(name), sampling={"by": "uncertainty"})
