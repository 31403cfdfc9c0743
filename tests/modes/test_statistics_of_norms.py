"""Models with batch normalization: trained with the base's running statistics, which no adapter contains."""

from __future__ import annotations

import pytest
import torch

from tangora.config.settings import FinetuneConfig
from tangora.config.tasks import base_settings
from tangora.errors import ModelError
from tangora.evaluation.evaluator import evaluate
from tangora.modes.finetuning import finetune
from tangora.support.seams import FAMILIES
from tangora.tasks import load_base, load_task
from tangora.tasks.base import weights_fingerprint


@pytest.fixture(scope="module")
def bench(tiny_resnet, image_data):
    base = load_base(base_settings({"family": "image-classification", "model": str(tiny_resnet)}, "base"))
    files = {split: str(image_data / f"{split}.npz") for split in ("train", "test")}
    labels = ["red", "green", "blue"]
    raw = {"name": "c", "source": {"npz": files}, "image": "images", "label": "labels", "labels": labels}
    return base, load_task(FAMILIES.get("image-classification").task_settings(**raw), base, 0)


@pytest.mark.parametrize("mode", ["full", "full-tangent"])
def test_statistics_stay_and_what_is_scored_is_what_was_trained(bench, mode):
    base, task = bench
    before = {name: value.clone() for name, value in base.backbone.state_dict().items()}
    training = {"steps": 20, "batch_size": 16, "learning_rate": 1e-2, "checkpoint_every": None}
    adapter = finetune(base, task, FinetuneConfig(mode=mode, train=mode, training=training).resolved())
    after = base.backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(module.training for module in base.backbone.modules())
    changed = [name for name in adapter.updates if "normalization" in name]
    assert changed, "weights of the normalization are trained"
    scores = evaluate(adapter, base, [task])["c"]
    assert scores.score > 0.8, "the colors are easy"


def test_convolutions_have_no_low_rank_layers_to_train(bench):
    with pytest.raises(ModelError, match=r"the model has no linear layer, got 'all-linear'"):
        finetune(*bench, FinetuneConfig(lora={"target_modules": "all-linear"}).resolved())


def test_a_base_of_other_statistics_is_another_base(bench):
    base, _ = bench
    before = weights_fingerprint(base.backbone)
    name, buffer = next((n, b) for n, b in base.backbone.named_buffers() if n.endswith("running_var"))
    kept = buffer.clone()
    buffer.mul_(2)
    assert weights_fingerprint(base.backbone) != before, name
    buffer.copy_(kept)
    assert weights_fingerprint(base.backbone) == before == base.fingerprint
