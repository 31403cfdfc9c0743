from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader

from tangora.errors import ArgumentError
from tangora.tasks import TaskModel, collate, predict

FAMILIES = ["text", "image", "answer"]
# Logits are under 25, of which a forward pass in float32 is off by 1e-6, in other batches by another 1e-6.
ROUNDING = 1e-4


@pytest.fixture(params=FAMILIES)
def family(request):
    base, task = (request.getfixturevalue(f"{request.param}_{what}") for what in ("base", "task"))
    return base, task, TaskModel(base.backbone, task, base)


def test_predictions_equal_unbatched_forward_passes(family):
    base, task, model = family
    test = task.splits["test"]
    found = predict(model, test, 7)
    make = collate(task, base)
    for row, item in enumerate(test.dataset()[i] for i in range(len(test))):
        with torch.no_grad():
            output = model(**make([item]))
        assert output["loss"].item() == pytest.approx(found.losses[row], abs=ROUNDING)
        if model.form.kind == "classes":
            assert output["logits"].argmax().item() == found.values[row]
    assert found.losses.dtype == np.float32
    assert found.losses.shape == (24,)


def test_zero_shot_logits_by_hand(text_base, text_task):
    test = text_task.splits["test"]
    model = TaskModel(text_base.backbone, text_task, text_base)
    batch = collate(text_task, text_base)([test.dataset()[i] for i in range(3)])
    with torch.no_grad():
        output = model(**batch)
        hidden = [
            text_base.backbone(input_ids=ids[None]).last_hidden_state[0].mean(0) for ids in test.inputs["input_ids"][:3]
        ]
    expected = 20 * normalize(torch.stack(hidden), dim=-1) @ text_task.head.T
    torch.testing.assert_close(output["logits"], expected, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(
        output["loss"], cross_entropy(expected, torch.tensor(test.targets[:3])), atol=ROUNDING, rtol=0
    )


def test_answers_equal_greedy_generation_row_by_row(answer_base, answer_task):
    test = answer_task.splits["test"]
    found = predict(TaskModel(answer_base.backbone, answer_task, answer_base), test, 8)
    for ids, text in zip(test.inputs["input_ids"], found.values, strict=True):
        tokens = answer_base.backbone.generate(input_ids=ids[None], max_new_tokens=5, do_sample=False, num_beams=1)
        assert answer_base.processor.decode(tokens[0], skip_special_tokens=True) == text


def test_answer_loss_is_the_mean_over_the_targets_tokens(answer_base, answer_task):
    item = answer_task.splits["test"].dataset()[0]
    with torch.no_grad():
        expected = answer_base.backbone(input_ids=item["input_ids"][None], labels=item["labels"][None]).loss
    losses = predict(TaskModel(answer_base.backbone, answer_task, answer_base), answer_task.splits["test"], 24).losses
    assert losses[0] == pytest.approx(expected.item(), abs=ROUNDING)


def test_batches_are_prepared_once(family, monkeypatch):
    _, task, model = family
    test = task.splits["validation"]
    first = predict(model, test, 3)
    monkeypatch.setattr(type(model.collator), "__call__", lambda *_: pytest.fail("padded again"))
    second = predict(model, test, 3)
    np.testing.assert_array_equal(first.losses, second.losses)


def test_predicting_leaves_modes_as_they_were(family):
    _, task, model = family
    modes = {name: module.training for name, module in model.named_modules()}
    predict(model, task.splits["validation"], 4)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_predictions_of_a_model_in_training_mode_have_no_dropout(text_base, text_task):
    backbone = copy.deepcopy(text_base.backbone)
    model = TaskModel(backbone, text_task, text_base)
    expected = predict(model, text_task.splits["test"], 8).losses
    model.train()
    np.testing.assert_array_equal(predict(model, text_task.splits["test"], 8).losses, expected)
    assert backbone.training


TARGETS = {"text": ["value", "dense"], "image": ["q_proj"], "answer": ["q"]}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_around_the_backbone_learns(name, request):
    base, task = (request.getfixturevalue(f"{name}_{what}") for what in ("base", "task"))
    backbone = copy.deepcopy(base.backbone)
    torch.manual_seed(0)
    peft_model = get_peft_model(backbone, LoraConfig(r=4, target_modules=TARGETS[name], lora_alpha=16))
    model = TaskModel(peft_model, task, base)
    before = predict(model, task.splits["test"], 12)
    np.testing.assert_allclose(
        before.losses, predict(TaskModel(base.backbone, task, base), task.splits["test"], 12).losses, atol=1e-6
    )
    loader = DataLoader(task.splits["train"].dataset(), 16, collate_fn=collate(task, base))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    model.train()
    for _ in range(4):
        for batch in loader:
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            optimizer.step()
    assert predict(model, task.splits["test"], 12).losses.mean() < 0.95 * before.losses.mean()


def test_gradient_checkpointing_gives_the_same_gradients(text_base, text_task):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = get_peft_model(
            copy.deepcopy(text_base.backbone), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
        )
        model = TaskModel(backbone, text_task, text_base)
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
        model.train()
        torch.manual_seed(1)
        rows = text_task.splits["train"].dataset()
        model(**collate(text_task, text_base)([rows[i] for i in range(4)]))["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.gradient_checkpointing_disable()
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_head_is_no_weight(text_base, text_task):
    model = TaskModel(text_base.backbone, text_task, text_base)
    assert not [name for name in model.state_dict() if "head" in name]
    assert torch.equal(model.readout.head, text_task.head)


def test_without_labels_there_is_no_loss(text_base, text_task):
    model = TaskModel(text_base.backbone, text_task, text_base)
    ids = text_task.splits["test"].inputs["input_ids"][0][None]
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert set(output) == {"logits"}
    assert output["logits"].shape == (1, 3)


def test_batch_size_must_be_positive(text_base, text_task):
    with pytest.raises(ArgumentError, match="batch_size must be at least 1, got 0"):
        predict(TaskModel(text_base.backbone, text_task, text_base), text_task.splits["test"], 0)
