"""Adapters of classifiers that stock peft trained: their heads answer here as they do there."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
import transformers

import tangora
import tiny
from tangora.adapters.adapter import load
from tangora.coefficients.searching import search
from tangora.errors import AdapterError, ModelError
from tangora.modes.loading import load_model
from tangora.tasks.fitting import of_backbone, own_names, with_head

WORDS = ["red one", "a photo of blue", "green green green", "this is a bad sky"]
SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TARGETS = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "vit": ["q_proj"],
}


def randomized(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make base checkpoints (without a head), and adapters with heads that stock peft saved."""
    folders = {}

    def make(kind, seed=1, labels=3, base=None, **settings):
        if kind not in folders:
            folder = folders[kind] = tmp_path_factory.mktemp(kind)
            tiny.shrinker(folder) if kind == "vit" else tiny.pieces(folder)
            own = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2} if kind == "distilbert" else SIZE
            size = {"image_size": 16, "patch_size": 8} if kind == "vit" else {"vocab_size": 100}
            config = transformers.AutoConfig.for_model(kind, **own, **size, pad_token_id=0, initializer_range=0.4)
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(0)
                transformers.AutoModel.from_config(config).save_pretrained(folder)
        what = "ImageClassification" if kind == "vit" else "SequenceClassification"
        loader = getattr(transformers, f"AutoModelFor{what}")
        task = {} if kind == "vit" else {"task_type": "SEQ_CLS"}
        common = {"r": 2, "target_modules": TARGETS[kind], "modules_to_save": ["classifier"]}
        config = peft.LoraConfig(**{**common, **task, **settings})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            classifier = loader.from_pretrained(base or folders[kind], num_labels=labels)
            model = randomized(peft.get_peft_model(classifier, config), seed)
            folder = tmp_path_factory.mktemp("adapters") / f"{kind}-{seed}"
            model.save_pretrained(folder)
        return folders[kind], folder, model

    return make


def bench(folder, labels=("red", "green", "blue"), name="t", **settings):
    """A base of the checkpoint, and a task on a few rows."""
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    family = "image-classification" if kind == "vit" else "text-classification"
    base = tangora.load_base(folder, family=family, **settings)
    column = "image" if kind == "vit" else "text"
    return base, task_of(base, labels, name, column)


def task_of(base, labels, name, column="text"):
    from tangora.adapters.heads import HeadRecord
    from tangora.tasks.recorded import recorded_task
    from tangora.tasks.sources import Table

    record = HeadRecord(family=base.config.family, labels=list(labels))
    return recorded_task(name, record, base, Table({column: rows_of(base)}, "rows", {}))


def rows_of(base):
    if base.config.family == "text-classification":
        return WORDS
    noise = torch.Generator().manual_seed(3)
    return [torch.randint(0, 255, (16, 16, 3), generator=noise).byte().numpy() for _ in range(4)]


@torch.no_grad()
def expected(model, base):
    """The probabilities of stock peft's model."""
    if base.config.family == "text-classification":
        inputs = base.processor(WORDS, padding=True, return_tensors="pt")
        return model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).logits.softmax(-1)
    return model(**base.processor(images=rows_of(base), return_tensors="pt")).logits.softmax(-1)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "vit"])
def test_probabilities_are_those_of_stock_peft(made, kind):
    folder, adapter, model = made(kind)
    base, task = bench(folder)
    answers = tangora.predict(adapter, base, task, rows_of(base))
    wanted = expected(model, base)
    assert torch.allclose(answers.probabilities, wanted, atol=1e-5)
    assert answers.answers == [task.labels[i] for i in wanted.argmax(-1)]
    assert (wanted.max(0).values - wanted.min(0).values).max() > 0.01, "rows differ"


def test_a_fusion_keeps_both_heads_and_answers_with_each(made, tmp_path):
    folder, one, first = made("bert")
    _, two, second = made("bert", seed=2, labels=2)
    fused = tangora.fuse([one, two], weights=[1.0, 0.0], heads="keep")
    fused.save(tmp_path / "fused")
    base, task = bench(folder, name=one.name)
    answers = tangora.predict(tmp_path / "fused", base, task, WORDS)
    assert torch.allclose(answers.probabilities, expected(first, base), atol=1e-5)
    other = task_of(base, ["yes", "no"], two.name)
    fused = tangora.fuse([one, two], weights=[0.0, 1.0], heads="keep")
    assert torch.allclose(tangora.predict(fused, base, other, WORDS).probabilities, expected(second, base), atol=1e-5)


def test_names_of_the_class_are_the_backbones_and_back(made):
    folder, adapter, _ = made("bert")
    base, task = bench(folder)
    given = load(adapter)
    fitted = of_backbone(given, base)
    site = "encoder.layer.0.attention.self.query"
    assert site in fitted.updates
    assert f"bert.{site}" in given.updates
    assert (fitted.whole, fitted.fingerprint) == ({}, given.fingerprint)
    assert of_backbone(fitted, base) is fitted
    assert own_names(given, base)[site] == f"bert.{site}"
    assert own_names(fitted, base) == {}
    assert set(with_head(given, base, task).heads["t"]) == {"classifier.weight", "classifier.bias"}


def test_a_head_of_other_classes_is_refused(made):
    folder, adapter, _ = made("bert")
    base, _ = bench(folder)
    with pytest.raises(AdapterError, match=r"the head does not fit the task .*size mismatch"):
        tangora.predict(adapter, base, task_of(base, ["yes", "no"], "t"), WORDS)


def test_a_part_of_a_head_needs_the_rest_from_the_checkpoint(made, tmp_path):
    folder, adapter, _ = made("roberta", seed=5, modules_to_save=["out_proj"], task_type=None)
    base, task = bench(folder)
    with pytest.raises(AdapterError, match=r"the head does not fit the task .*classifier\.dense"):
        tangora.predict(adapter, base, task, WORDS)
    loader = transformers.AutoModelForSequenceClassification
    loader.from_pretrained(folder, num_labels=3).save_pretrained(tmp_path)
    tiny.pieces(tmp_path)
    _, adapter, model = made("roberta", seed=6, base=tmp_path, modules_to_save=["out_proj"], task_type=None)
    base, task = bench(tmp_path)
    assert torch.allclose(tangora.predict(adapter, base, task, WORDS).probabilities, expected(model, base), atol=1e-5)


def test_a_head_of_the_class_does_not_read_other_features(made):
    folder, adapter, _ = made("bert")
    base, task = bench(folder, layers="linear", pooling="mean")
    with pytest.raises(ModelError, match=r"the model has no such parameter at classifier\."):
        tangora.predict(adapter, base, task, WORDS)
    fused = tangora.fuse([adapter, made("bert", seed=2, labels=2)[1]], heads="keep")
    with pytest.raises(AdapterError, match=r"a head of transformers' own class needs a base with layers: model"):
        tangora.predict(fused, base, task_of(base, task.labels, adapter.name), WORDS)


def test_statistics_and_searches_know_such_adapters(made):
    folder, one, _ = made("bert")
    _, two, _ = made("bert", seed=2, labels=2)
    base, task = bench(folder, name="one")
    other = task_of(base, ["yes", "no"], "two")
    found = [tangora.collect_statistics(base, t, load(a), kinds=["gram"]) for t, a in ((task, one), (other, two))]
    assert "bert.encoder.layer.0.attention.self.query.gram" in found[0].tensors
    assert tangora.fuse([one, two], "regmean", statistics=found, heads="keep").updates
    weights = search([one, two], base, [task, other], "learned", split="train", steps=2).weights
    assert len(weights) == 2


def test_a_polish_follows_experts_with_heads_of_their_own(made):
    folder, one, _ = made("bert")
    _, two, _ = made("bert", seed=2, labels=2)
    base, task = bench(folder, name="one")
    other = task_of(base, ["yes", "no"], "two")
    settings = {"rank": 4, "rows": 4, "recombined": 0, "held_out": 0, "steps": 30, "batch_size": 4}
    adapter = tangora.polish([one, two], base, [task, other], **settings, learning_rate=1e-2)
    info = adapter.metadata.polished
    assert all(info.after[name] < 0.5 * info.before[name] for name in ("one", "two"))
    assert "bert.encoder.layer.0.attention.self.query" in adapter.updates
    assert torch.equal(adapter.heads["two"]["classifier.bias"], load(two).whole["classifier.bias"])
    assert len(tangora.predict(adapter, base, other, WORDS)) == 4


def test_a_trained_adapter_is_loaded_with_the_backbone_that_its_head_decides(made, tmp_path):
    folder, *_ = made("bert")
    base, task = bench(folder, layers="linear", pooling="cls")
    config = tangora.FinetuneConfig(lora={"r": 2, "target_modules": ["query"]}, training={"steps": 1, "batch_size": 2})
    adapter = tangora.finetune(base, task, config)
    adapter.save(tmp_path / "a")
    assert load_model(tmp_path / "a").get_base_model().pooler is None
    given = transformers.AutoModel.from_pretrained(folder)
    assert load_model(tmp_path / "a", given).get_base_model().pooler is None
