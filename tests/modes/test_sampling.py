"""Samplers, and batches of rows of several tasks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from pydantic import ValidationError

from tangora.config.settings import SamplingSettings
from tangora.modes.mixture import Mixture, one_or_mixed
from tangora.modes.sampling import SAMPLERS, draws
from tangora.tasks.model import TaskModel
from tangora.testing._tiny import tiny_base, tiny_tasks


def test_every_sampler_is_a_setting():
    field = SamplingSettings.model_fields["by"]
    assert set(field.annotation.__args__) == set(SAMPLERS)
    with pytest.raises(ValidationError):
        SamplingSettings(by="alphabet")


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"by": "turns"}, [1 / 3, 1 / 3, 1 / 3]),
        ({"by": "uniform"}, [1 / 3, 1 / 3, 1 / 3]),
        ({"by": "proportional"}, [1 / 21, 4 / 21, 16 / 21]),
        ({"by": "temperature", "temperature": 2}, [1 / 7, 2 / 7, 4 / 7]),
    ],
    ids=lambda value: value.get("by") if isinstance(value, dict) else "",
)
def test_the_shares_of_a_sampler(settings, shares):
    count = 20_000
    drawn = Counter(draws(SamplingSettings(**settings), [100, 400, 1600], count, seed=1))
    for task, share in enumerate(shares):
        spread = (share * (1 - share) / count) ** 0.5
        assert abs(drawn[task] / count - share) <= 5 * spread  # five standard deviations of a binomial share


def test_the_same_seed_draws_the_same_tasks():
    settings = SamplingSettings(by="uniform")
    assert draws(settings, [3, 5], 50, seed=7) == draws(settings, [3, 5], 50, seed=7)
    assert draws(settings, [3, 5], 50, seed=7) != draws(settings, [3, 5], 50, seed=8)


def test_a_mixed_batch_has_the_mean_loss_of_its_rows():
    base, tasks = tiny_base(), tiny_tasks(3)
    settings = SamplingSettings(by="uniform", mixed=True)
    rows, collate, combine = one_or_mixed(base, tasks, 40, 10, 0, settings)
    models = [TaskModel(base.backbone, task, base) for task in tasks]
    mixture = combine(models)
    assert isinstance(mixture, Mixture)
    batch = [rows[i] for i in range(10)]
    assert len({row["task"] for row in batch}) > 1
    singles = []
    for row in batch:
        (part,) = collate([row])["parts"]
        singles.append(models[row["task"]](**{k: v for k, v in part.items() if k != "task"})["loss"])
    expected = torch.stack(singles).double().mean()
    got = mixture(**collate(batch))["loss"].double()
    # the same sums in another order: float32 losses of order one, ten of them, through two layers
    assert abs(float(got - expected)) <= 1e-5 * max(1.0, float(expected))


def test_each_task_sees_its_rows_in_its_own_order_whatever_the_sampler():
    base, tasks = tiny_base(), tiny_tasks(2)
    alone = one_or_mixed(base, tasks[:1], 24, 4, 0)[0]
    first = [alone[i]["input_ids"] for i in range(24)]
    for settings in (SamplingSettings(), SamplingSettings(by="uniform", mixed=True)):
        rows = one_or_mixed(base, tasks, 24, 4, 0, settings)[0]
        own = [rows[i]["input_ids"] for i in range(24) if rows[i]["task"] == 0]
        assert own
        assert all(torch.equal(a, b) for a, b in zip(own, first, strict=False))


def test_a_task_that_is_never_drawn_has_no_rows():
    base, tasks = tiny_base(), tiny_tasks(3)
    rows = one_or_mixed(base, tasks, 4, 4, 0)[0]  # one step, and so the first task alone
    assert [rows[i]["task"] for i in range(len(rows))] == [0, 0, 0, 0]
