"""Fine-tuning in tangent space: learns, is linear, ends in a plain PEFT adapter, resumes, runs in bf16."""

from __future__ import annotations

import peft
import pytest
import torch

import tangora
from tangora.config.recipe import (
    BaseConfig,
    FinetuneConfig,
    LoraSettings,
    TaskConfig,
    TrainingSettings,
)
from tangora.errors import ModelError
from tangora.evaluation.evaluator import Evaluator
from tangora.modes.finetuning import finetune
from tangora.tangent import TangentTaskModel, direction_of
from tangora.tasks import TaskModel, load_base, load_task

TARGETS = ["query", "value", "dense"]


@pytest.fixture
def base(tiny_bert):
    return load_base(BaseConfig(family="text-zero-shot", model=str(tiny_bert), max_length=16))


@pytest.fixture
def task(base, text_data):
    source = {"parquet": {s: str(text_data / f"{s}.parquet") for s in ("train", "test")}}
    return load_task(TaskConfig(name="colors", source=source, labels_from=str(text_data / "info.json")), base, 0)


def config(train="adapter", **training):
    training = {"steps": 30, "batch_size": 8, "checkpoint_every": None, "learning_rate": 2e-2} | training
    return FinetuneConfig(
        mode="tangent",
        train=train,
        linearize="model",
        lora=LoraSettings(r=2, target_modules=TARGETS),
        training=TrainingSettings(**training),
    )


@pytest.mark.parametrize("train", ["adapter", "full"])
def test_it_learns_in_the_expansion_and_leaves_the_base(train, base, task, tmp_path):
    before = {n: p.clone() for n, p in base.backbone.state_dict().items()}
    rate = {"learning_rate": 2e-3} if train == "full" else {}
    adapter = finetune(base, task, config(train, **rate), out=tmp_path / "out")
    assert all(torch.equal(before[n], p) for n, p in base.backbone.state_dict().items())
    evaluator = Evaluator(base, [task])
    zero = evaluator.evaluate("zero_shot", lambda: None, ["colors"], "train")["colors"]
    tuned = evaluator.evaluate("tuned", lambda: adapter, ["colors"], "train")["colors"]
    assert tuned.loss < 0.7 * zero.loss
    assert adapter.metadata.linearize == "model"
    back = tangora.load(tmp_path / "out")
    assert back.fingerprint == adapter.fingerprint
    assert back.metadata.linearize == "model"
    assert evaluator.evaluate("again", lambda: back, ["colors"], "train")["colors"].loss == tuned.loss


def test_a_full_tangent_is_the_expansion_in_every_weight(base, task):
    adapter = finetune(base, task, config("full", learning_rate=1e-3, steps=3))
    batch = next(iter(task.splits["test"].batches(8, TaskModel(base.backbone, task, base).collator)))[1]
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    moves = {n: adapter.updates[n].dense() for n in adapter.updates}
    assert any("LayerNorm" in n for n in moves)
    assert any("embeddings" in n for n in moves)
    model = TaskModel(base.backbone, task, base)
    start = {f"backbone.{n}": base.backbone.get_parameter(n).detach() for n in moves}
    direction = {f"backbone.{n}": m for n, m in moves.items()}

    def logits(weights):
        return torch.func.functional_call(model, weights, (), inputs)["logits"]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value, tangent = torch.func.jvp(logits, (start,), (direction,))
    with torch.no_grad():
        mine = TangentTaskModel(base.backbone, task, base, direction_of(adapter, base.backbone)).logits(inputs)
    torch.testing.assert_close(mine, value + tangent, rtol=1e-4, atol=1e-4)
    assert float(tangent.abs().max()) > 1e-2


def test_peft_loads_the_file_as_the_non_linear_network(base, task, tmp_path, tiny_bert):
    from transformers import AutoModel

    adapter = finetune(base, task, config(steps=5), out=tmp_path / "out")
    stock = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert).eval(), tmp_path / "out")
    rows = task.splits["test"].batches(8, TaskModel(base.backbone, task, base).collator)[0][1]
    with torch.no_grad():
        theirs = TaskModel(stock, task, base)(**rows)["logits"]
        expanded = TangentTaskModel(base.backbone, task, base, direction_of(adapter, base.backbone))(**rows)["logits"]
        adapter.apply_(base.backbone)
        torch.testing.assert_close(TaskModel(base.backbone, task, base)(**rows)["logits"], theirs, rtol=1e-4, atol=1e-4)
    assert float((theirs - expanded).abs().max()) > 1e-4
    assert "Plain peft loads another function" in (tmp_path / "out" / "README.md").read_text()


def test_a_killed_run_ends_with_the_same_adapter(base, task, tmp_path):
    class Killed(BaseException):
        pass

    def kill(step, total, loss):
        if step == 7:
            raise Killed

    settings = config(steps=9, checkpoint_every=3)
    whole = finetune(base, task, settings)
    with pytest.raises(Killed):
        finetune(base, task, settings, scratch=tmp_path / "s", on_step=kill)
    assert finetune(base, task, settings, scratch=tmp_path / "s").fingerprint == whole.fingerprint


def test_accumulation_and_bf16(base, task):
    for module in base.backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    whole = finetune(base, task, config(steps=4, batch_size=8))
    halves = finetune(base, task, config(steps=4, batch_size=4, gradient_accumulation=2))
    half = finetune(base, task, config(steps=4, batch_size=8, bf16=True))
    for other, tolerance in ((halves, 0.02), (half, 0.3)):
        distance = (whole.task_vector - other.task_vector).norm() / whole.task_vector.norm()
        assert distance < tolerance


def test_text_to_text_and_images(tiny_t5, tiny_clip, text_data, image_data):
    colors = ["red", "green", "blue"]
    rows = {"parquet": {s: str(text_data / f"{s}.parquet") for s in ("train", "test")}}
    pixels = {"npz": {s: str(image_data / f"{s}.npz") for s in ("train", "test")}}
    t5 = load_base(BaseConfig(family="text-to-text", model=str(tiny_t5), max_length=16, max_new_tokens=4))
    clip = load_base(BaseConfig(family="image-zero-shot", model=str(tiny_clip)))
    t5_task = TaskConfig(name="t", source=rows, prompt="{text}", target="{label}", labels=colors, metric="exact_match")
    clip_task = TaskConfig(name="i", source=pixels, image="images", label="labels", labels=colors)
    for base, task_config, targets in ((t5, t5_task, ["q", "v", "wo"]), (clip, clip_task, ["q_proj", "fc1"])):
        task = load_task(task_config, base, 0)
        settings = config(steps=25, learning_rate=1e-2).model_copy(
            update={"lora": LoraSettings(r=2, target_modules=targets)}
        )
        adapter = finetune(base, task, settings)
        evaluator = Evaluator(base, [task])
        zero = evaluator.evaluate("zero_shot", lambda: None, [task.name], "train")[task.name]
        tuned = evaluator.evaluate("tuned", lambda adapter=adapter: adapter, [task.name], "train")[task.name]
        assert tuned.loss < zero.loss
        assert len(tuned.values) == len(task.splits["train"])


def test_default_rates_and_what_is_refused(base, task):
    for train, name, rate in (("adapter", "tangent", 5e-3), ("full", "full-tangent", 1e-4)):
        chosen = FinetuneConfig(train=train, linearize="model")
        assert (chosen.train, chosen.learning_rate) == (name, rate)
    with pytest.raises(ModelError, match=r"tangents cannot be recomputed.*gradient_checkpointing"):
        finetune(base, task, config(steps=1, gradient_checkpointing=True))
