"""`tangora.load_model`: in every mode the very model that was trained, and never another base."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSeq2SeqLM

import tangora
from tangora.config.recipe import FinetuneConfig, LoraSettings, TrainingSettings
from tangora.errors import AdapterError, FileError, ModelError
from tangora.modes import session
from tangora.modes.finetuning import finetune
from tangora.tangent.linearization import LinearizedLora
from tangora.tasks import TaskModel

MODES = {
    "lora": ("adapter", "none", True),
    "l-lora": ("adapter", "module", True),
    "l-lora-moved": ("adapter", "module", "orthogonal"),  # B₀ is not zero
    "tangent": ("adapter", "model", True),
    "tangent-moved": ("adapter", "model", "orthogonal"),
    "full": ("full", "none", True),
    "full-tangent": ("full", "model", True),
}
KINDS = ["text", "image", "answer"]
TARGETS = {"text": ["query", "dense"], "image": ["q_proj", "fc1"], "answer": ["q", "wo"]}


def config(kind, mode):
    train, linearize, init = MODES[mode]
    rate = 2e-3 if train == "full" else 2e-2
    return FinetuneConfig(
        mode=mode,
        train=train,
        linearize=linearize,
        lora=LoraSettings(r=2, target_modules=TARGETS[kind], init=init),
        training=TrainingSettings(steps=3, batch_size=4, learning_rate=rate, checkpoint_every=None),
    )


@pytest.fixture
def kinds(request):
    return lambda kind: (request.getfixturevalue(f"{kind}_base"), request.getfixturevalue(f"{kind}_task"))


def rows_of(base, task):
    batch = dict(task.splits["test"].batches(6, TaskModel(base.backbone, task, base).collator)[0][1])
    return batch.pop("labels"), batch


def trained(base, task, settings, folder, monkeypatch):
    """Fine-tuned into a folder; the logits of the model that was trained, before it was put back; base without them."""
    labels, inputs = rows_of(base, task)
    seen = []
    record = session._record

    def spy(trainer, started):
        with torch.no_grad():
            seen.append(trainer.model.eval().logits(inputs, labels))
        return record(trainer, started)

    monkeypatch.setattr(session, "_record", spy)
    adapter = finetune(base, task, settings, out=folder)
    with torch.no_grad():
        bare = TaskModel(base.backbone, task, base).eval().logits(inputs, labels)
    return adapter, seen[0], bare


def logits(model, base, task):
    """The task's logits from a loaded model; what makes logits of features is in the expansion of a tangent one."""
    labels, inputs = rows_of(base, task)
    if task.family == "text-to-text":
        return model(**inputs, labels=labels).logits

    class Given(torch.nn.Module):
        def __init__(self, output):
            super().__init__()
            self.output = output

        def forward(self, **_):
            return self.output

    def head(output):
        answering = TaskModel(base.backbone, task, base)
        answering.backbone = Given(output)
        return answering.logits(inputs)

    return model.then(head)(**inputs) if isinstance(model, tangora.TangentModel) else head(model(**inputs))


CASES = [("text", mode) for mode in MODES] + [(k, m) for k in ("image", "answer") for m in ("l-lora", "tangent")]


@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_it_answers_as_the_model_that_was_trained(kind, mode, kinds, tmp_path, monkeypatch):
    base, task = kinds(kind)
    adapter, expected, bare = trained(base, task, config(kind, mode), tmp_path / "a", monkeypatch)
    assert (expected - bare).abs().max() > 1e-2 * bare.abs().max()
    model = tangora.load_model(tmp_path / "a")
    assert not model.training
    with torch.no_grad():
        # forward passes in float32 are off by some 1e-6 of the largest logit
        rounding = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(logits(model, base, task), expected, rtol=0, atol=rounding)
    linearized = any(
        isinstance(v, LinearizedLora) for m in model.modules() for v in getattr(m, "lora_variant", {}).values()
    )
    assert linearized == (mode == "l-lora")
    assert isinstance(model, tangora.TangentModel) == (adapter.metadata.linearize == "model")
    assert isinstance(model, peft.PeftModel) == ("lora" in mode)


@pytest.mark.parametrize("mode", ["l-lora", "tangent"])
def test_a_base_that_is_loaded_by_the_class_on_the_card(mode, text_base, text_task, tiny_bert, tmp_path):
    """It has a pooler with a layer that the targets match, which the training's base did not have."""
    finetune(text_base, text_task, config("text", mode), out=tmp_path / "a")
    _, inputs = rows_of(text_base, text_task)
    given = AutoModel.from_pretrained(tiny_bert)
    assert given.pooler is not None
    with torch.no_grad():
        found, own = (
            tangora.load_model(tmp_path / "a", base)(**inputs).last_hidden_state for base in (given, tiny_bert)
        )
    torch.testing.assert_close(found, own, rtol=0, atol=1e-5 * float(own.abs().max()))


@pytest.mark.parametrize("mode", ["l-lora", "tangent", "full"])
def test_another_base_is_refused(mode, text_base, text_task, tiny_bert, tmp_path):
    finetune(text_base, text_task, config("text", mode), out=tmp_path / "a")
    other = AutoModel.from_pretrained(tiny_bert)
    with torch.no_grad():
        other.encoder.layer[1].output.dense.bias[3] += 1e-3
    before = {n: p.clone() for n, p in other.named_parameters()}
    with pytest.raises(ModelError, match=r"made for .*bert.* of weights \w{12}, got 'BertModel of weights .*same_"):
        tangora.load_model(tmp_path / "a", other)
    assert all(torch.equal(p, before[n]) for n, p in other.named_parameters())
    assert isinstance(tangora.load_model(tmp_path / "a", other, same_base=True), torch.nn.Module)


def foreign(folder, base, **settings):
    """Written by stock peft, and what the model that wrote it answers."""
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=2, **settings)).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.mark.parametrize("task_type", [None, "FEATURE_EXTRACTION"])
def test_an_adapter_of_others_is_stock_pefts_model(task_type, tiny_bert, tmp_path):
    wrapped = foreign(
        tmp_path / "a", AutoModel.from_pretrained(tiny_bert), target_modules=["query"], task_type=task_type
    )
    ids = torch.tensor([[2, 6, 7, 3]])
    with torch.no_grad():
        found = tangora.load_model(tmp_path / "a")(ids).last_hidden_state
        torch.testing.assert_close(found, wrapped(ids).last_hidden_state)


def test_the_class_is_that_of_the_task_type_or_of_the_checkpoint(tiny_t5, tmp_path):
    for task_type in ("SEQ_2_SEQ_LM", None):
        base = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)
        foreign(tmp_path / str(task_type), base, target_modules=["q"], task_type=task_type)
        path = tmp_path / str(task_type) / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_mapping": None}))
        model = tangora.load_model(tmp_path / str(task_type))
        assert type(model.get_base_model()).__name__ == "T5ForConditionalGeneration"


def test_what_cannot_be_loaded_is_said_in_one_line(tiny_bert, tiny_t5, tmp_path):
    folder = tmp_path / "a"
    foreign(folder, AutoModel.from_pretrained(tiny_bert), target_modules=["query"])
    with pytest.raises(FileError, match=r"no such folder at .*nowhere"):
        tangora.load_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"peft cannot put the adapter into the base.*give the base|Give the base"):
        tangora.load_model(folder, AutoModelForSeq2SeqLM.from_pretrained(tiny_t5))
    with pytest.raises(FileError, match=r"the model's folder is not found at .*gone"):
        tangora.load_model(folder, tmp_path / "gone")
    weights = load_file(folder / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1" not in name}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"base and file do not have the same sites, got '.*layer\.1\.attention"):
        tangora.load_model(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="nothing names the base model"):
        tangora.load_model(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickle"):
        tangora.load_model(folder, AutoModel.from_pretrained(tiny_bert))
    (folder / "adapter_model.bin").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(FileError, match=r"file not found at .*adapter_config\.json"):
        tangora.load_model(folder)


@pytest.mark.parametrize("mapping", [["x"], {"base_model_class": ["x"]}, {"base_model_class": "pipeline"}, 5])
def test_a_class_that_is_none_is_refused(tiny_bert, tmp_path, mapping):
    peft.get_peft_model(
        AutoModel.from_pretrained(tiny_bert), peft.LoraConfig(target_modules=["query"])
    ).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "auto_mapping": mapping}))
    with pytest.raises(AdapterError, match="auto_mapping"):
        tangora.load_model(tmp_path, tiny_bert)
