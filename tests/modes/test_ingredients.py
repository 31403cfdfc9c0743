"""Settings of a training whose adapters are to be fused: what each does to a step, and that nothing of it stays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import tangora
from tangora.config.recipe import FinetuneConfig, LoraSettings, TrainingSettings
from tangora.modes.finetuning import finetune
from tangora.modes.ingredients import distance_from_orthogonal, ingredients_of, sharpest, taking_part
from tangora.support.files import read_json
from tangora.tasks.base import weights_fingerprint

ALL = {"sharpness": 0.05, "orthogonality": 1e-3, "progressive": 0.75, "averaged": 0.5}


def config(train="lora", **training):
    training = {"steps": 6, "batch_size": 8, "checkpoint_every": 2, **training}
    lora = LoraSettings(r=4, target_modules=["query", "value"])
    return FinetuneConfig(train=train, lora=lora, training=TrainingSettings(**training))


def test_the_penalty_is_the_distance_of_the_update_from_orthogonality():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 7, generator=generator).double(), torch.randn(5, 3, generator=generator).double()
    update = 0.4 * b @ a
    whole = (update.T @ update - torch.eye(7)).square().sum()
    assert float(distance_from_orthogonal(a, b, 0.4)) == pytest.approx(float(whole) - (7 - 3), rel=1e-12)
    singular = torch.linalg.svdvals(update)[:3]
    assert float((singular.square() - 1).square().sum()) == pytest.approx(float(whole) - 4, rel=1e-12)


def test_gradients_are_those_of_the_worst_point_at_the_radius_and_the_parameters_come_back():
    """Of (x² + 4y²)/2 at (1, 1), the gradient is (1, 4): the worst point at distance ρ is (1, 1) + ρ (1, 4)/√17."""
    x, y, unused = (nn.Parameter(torch.tensor(1.0)) for _ in range(3))

    def loss():
        return (x**2 + 4 * y**2) / 2

    with sharpest([x, y, unused], loss, 0.5):
        assert (x.item(), y.item()) == pytest.approx((1 + 0.5 / math.sqrt(17), 1 + 2 / math.sqrt(17)))
        assert unused.item() == 1.0
        loss().backward()
    assert (x.item(), y.item()) == (1.0, 1.0)
    assert float(y.grad) == pytest.approx(4 * (1 + 2 / math.sqrt(17)))


def test_without_a_radius_no_loss_is_computed_and_an_error_puts_the_parameters_back():
    def never():
        raise AssertionError

    with sharpest([], never, 0.0):
        pass
    x = nn.Parameter(torch.tensor(2.0))
    with pytest.raises(RuntimeError), sharpest([x], lambda: x**2, 1.0):
        raise RuntimeError
    assert x.item() == 2.0


def test_layers_take_part_more_and_more_and_are_as_before_after_the_step(text_base):
    import peft

    from tangora.modes.preparation import as_before

    with as_before(text_base.backbone, values=False):
        model = peft.get_peft_model(text_base.backbone, peft.LoraConfig(r=2, lora_alpha=8, target_modules=["query"]))
        settings = TrainingSettings(steps=40, progressive=0.5)
        found = ingredients_of(model, settings, seed=1)
        assert found.layers
        on = []
        for step in range(40):
            with found.step(step, [], lambda: torch.tensor(0.0)):
                scalings = [one.scaling["default"] for one in found.layers]
            assert set(scalings) <= {0.0, 4.0}
            on.append(sum(s > 0 for s in scalings) / len(scalings))
            assert {one.scaling["default"] for one in found.layers} == {4.0}
    assert on[0] == 1 / len(found.layers)  # the chance is 0, and one learns all the same
    assert sum(on[10:20]) > sum(on[:10])
    assert on[20:] == [1.0] * 20
    assert taking_part(0, 40, 0.0) == 1.0


@pytest.mark.parametrize("setting", [{name: value} for name, value in ALL.items()], ids=list(ALL))
def test_each_changes_the_adapter_and_not_the_base(text_base, text_task, setting):
    plain = finetune(text_base, text_task, config())
    changed = finetune(text_base, text_task, config(**setting))
    assert changed.fingerprint != plain.fingerprint
    assert changed.updates.keys() == plain.updates.keys()
    assert weights_fingerprint(text_base.backbone) == text_base.fingerprint


def test_the_mean_is_that_of_the_last_steps(text_base, text_task):
    """Weights after k steps are those of a training that ends there, with a rate that does not fall."""
    constant = {"schedule": "constant_with_warmup", "warmup": 0.0}
    ends = [finetune(text_base, text_task, config(steps=k, **constant)) for k in (4, 5, 6)]
    averaged = finetune(text_base, text_task, config(averaged=0.5, **constant))
    for site, update in averaged.updates.items():
        parts = [end.updates[site].factors() for end in ends]
        found = update.factors()
        for name in ("a", "b"):
            mean = torch.stack([getattr(part, name).double() for part in parts]).mean(0)
            torch.testing.assert_close(getattr(found, name), mean.float(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dies_at", [3, 5])
def test_a_killed_training_with_all_of_them_gives_the_same_bytes(text_base, text_task, tmp_path, dies_at):
    class Died(Exception):
        pass

    def dies(step, total, loss):
        if step == dies_at:
            raise Died

    whole = finetune(text_base, text_task, config(**ALL), out=tmp_path / "whole")
    where = {"out": tmp_path / "out", "scratch": tmp_path / "scratch"}
    with pytest.raises(Died):
        finetune(text_base, text_task, config(**ALL), on_step=dies, **where)
    again = finetune(text_base, text_task, config(**ALL), **where)
    assert again.fingerprint == whole.fingerprint
    losses = [read_json(tmp_path / name / "training.json")["loss"] for name in ("out", "whole")]
    assert losses[0] == losses[1]


def test_the_mean_stands_for_election_beside_the_best_step(text_base, text_task, tmp_path):
    settings = {"averaged": 0.5, "evaluate_every": 2, "early_stopping": 6}
    made = finetune(text_base, text_task, config(**settings), out=tmp_path / "made")
    validations = read_json(tmp_path / "made" / "training.json")["validation"]
    assert [v["step"] for v in validations] == [2, 4, 6, 6]
    keys = [(v["score"], -v["loss"]) for v in validations]
    mean = finetune(text_base, text_task, config(averaged=0.5))
    assert (made.fingerprint == mean.fingerprint) is (keys.index(max(keys)) == len(keys) - 1)


@pytest.mark.parametrize("name", ["orthogonality", "progressive"])
@pytest.mark.parametrize("train", ["tangent", "full", "dora"])
def test_what_is_about_lora_layers_is_refused_for_a_mode_that_trains_others(name, train):
    with pytest.raises(ValueError, match=rf"training\.{name} is about LoRA layers.*lora or l-lora"):
        config(train, **{name: 0.5})


def test_a_share_of_the_steps_is_that_of_a_decimal_number(text_base, text_task):
    from tangora.modes.averaging import Mean

    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mean, "add", lambda self, step, weights: found.append(step > self.first))
        finetune(text_base, text_task, config(steps=20, averaged=0.55))
    assert sum(found) == 11  # in floating point 0.55 · 20 is more than 11


@pytest.mark.parametrize("train", ["l-lora", "tangent", "full"])
def test_sharpness_and_the_mean_are_for_every_mode(text_base, text_task, train):
    plain = finetune(text_base, text_task, config(train, steps=2))
    found = finetune(text_base, text_task, config(train, steps=2, sharpness=0.1, averaged=1.0))
    assert found.fingerprint != plain.fingerprint


def test_a_polish_has_sharpness_and_a_mean(text_base, text_task):
    expert = finetune(text_base, text_task, config(learning_rate=1e-2))
    start = tangora.fuse([expert], weights=0.3)
    from tangora.config.polish import PolishSettings
    from tangora.polishing.training import polished

    settings = PolishSettings(rank=4, rows=8, steps=4, recombined=0, sharpness=0.05, averaged=0.5, evaluate_every=2)
    made = polished(start, {text_task.name: lambda: expert}, text_base, [text_task], settings)
    assert [v["step"] for v in made.record["validation"]] == [2, 4, 4]
    assert settings.passes([8]) > PolishSettings(rank=4, rows=8, steps=4, recombined=0).passes([8])
