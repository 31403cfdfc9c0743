"""Heads have the layers of transformers' own classes: from one checkpoint, both give the same logits."""

from __future__ import annotations

import pytest
import torch
import transformers

import tiny
from tangora.config.tasks import base_settings
from tangora.errors import DataError, ModelError
from tangora.support.seams import FAMILIES
from tangora.tasks import load_base
from tangora.tasks.classification.heads import IMAGES, TEXTS, WORDS
from tangora.tasks.model import TaskModel
from tangora.tasks.sources import Table
from tangora.tasks.values import Task

CLASSES = ["red", "green", "blue"]
PARTS = ("weight", "bias")
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "initializer_range": 0.5,
}
SHAPES = {
    "albert": {**TEXT, "embedding_size": 8},
    "bert": TEXT,
    "camembert": TEXT,
    "convnext": {"depths": [1, 1], "hidden_sizes": [8, 12], "num_stages": 2, "patch_size": 2, "initializer_range": 0.5},
    "convnextv2": {"depths": [1, 1], "hidden_sizes": [8, 12], "num_stages": 2, "patch_size": 2},
    "deberta": {**TEXT, "pooler_hidden_size": 16},
    "deberta-v2": {**TEXT, "pooler_hidden_size": 16},
    "deit": {**TEXT, "image_size": 16, "patch_size": 8},
    "dinov2": {**TEXT, "image_size": 16, "patch_size": 8},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40},
    "electra": {**TEXT, "embedding_size": 8},
    "mpnet": TEXT,
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"},
    "roberta": TEXT,
    "swin": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 2,
        "image_size": 16,
        "patch_size": 4,
    },
    "vit": {**TEXT, "image_size": 16, "patch_size": 8},
    "xlm-roberta": TEXT,
}
OF_FAMILY = {
    "text-classification": (TEXTS, "SequenceClassification"),
    "image-classification": (IMAGES, "ImageClassification"),
    "token-classification": (WORDS, "TokenClassification"),
}
EVERY = [(family, kind) for family, (table, _) in OF_FAMILY.items() for kind in table]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Make a classifier with three classes, saved by its class with a tokenizer or an image processor."""
    folders = {}

    def make(family, kind, **changes):
        key = family, kind, *sorted(changes)
        if key not in folders:
            folder = folders[key] = tmp_path_factory.mktemp("classifier")
            tiny.shrinker(folder) if family == "image-classification" else tiny.pieces(folder)
            config = transformers.AutoConfig.for_model(kind, **{**SHAPES[kind], "num_labels": 3, **changes})
            if family != "image-classification":
                config.vocab_size = len(transformers.AutoTokenizer.from_pretrained(folder))
            config.architectures = [kind]  # one of two classes of DeiT
            loader = getattr(transformers, f"AutoModelFor{OF_FAMILY[family][1]}")
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(0)
                model = loader.from_config(config)
                for name, value in [*model.named_parameters(), *model.named_buffers()]:
                    if name.endswith(("bias", "running_mean")):  # zeros would hide a swap
                        torch.nn.init.normal_(value, std=0.3)
                model.save_pretrained(folder)
        return folders[key]

    return make


def task_of(family, base, labels=CLASSES, **settings):
    """A task of no rows, with a head."""
    own = FAMILIES.get(family)
    config = own.task_settings(name="t", source={"csv": {"train": "-", "test": "-"}}, **settings)
    metric = config.metric
    return own.finish(Task("t", family, metric, labels, {}, "print", form=own.form(config)), config, base)


def batch_of(family):
    draw = torch.Generator().manual_seed(1)
    if family == "image-classification":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=draw)}
    ids = torch.randint(5, 30, (2, 7), generator=draw)
    ids[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize(("family", "kind"), EVERY)
def test_logits_are_those_of_transformers_own_class(checkpoint, family, kind):
    folder, inputs = checkpoint(family, kind), batch_of(family)
    loader = getattr(transformers, f"AutoModelFor{OF_FAMILY[family][1]}")
    with torch.no_grad():
        expected = loader.from_pretrained(folder).eval()(**inputs).logits
    base = load_base(base_settings({"family": family, "model": str(folder)}, "base"))
    model = TaskModel(base.backbone, task_of(family, base, head="checkpoint"), base)
    with torch.no_grad():
        logits = model.logits(inputs)
    mask = inputs.get("attention_mask", torch.ones(2)).bool() if family == "token-classification" else ...
    # the same operations on the same numbers: only kernels may differ, by a few roundings of sums of about 50 products
    assert torch.allclose(logits[mask], expected[mask], rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 0.1


def loaded(folder, family="text-classification", **settings):
    return load_base(base_settings({"family": family, "model": str(folder), **settings}, "base"))


def readout(family, base, *args, **settings):
    return FAMILIES.get(family).readout(task_of(family, base, *args, **settings), base)


def test_a_new_head_prefers_no_class_and_is_the_same_every_time(checkpoint):
    base = loaded(checkpoint("text-classification", "roberta"))
    one, other = (readout("text-classification", base) for _ in range(2))
    state = one.state_dict()
    assert set(state) == {
        f"classifier.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")
    }
    assert not state["classifier.out_proj.weight"].any()
    assert state["classifier.dense.weight"].std() == pytest.approx(0.5, rel=0.2), "initializer_range, of 256 draws"
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in state.items())


def test_a_checkpoints_head_is_for_its_own_classes(checkpoint):
    names = {"id2label": {0: "Red", 1: "green", 2: "blue"}, "label2id": {"Red": 0, "green": 1, "blue": 2}}
    base = loaded(checkpoint("text-classification", "bert", **names))
    assert base.names == ("Red", "green", "blue")
    assert readout("text-classification", base, head="checkpoint").state_dict()["classifier.weight"].any()
    with pytest.raises(DataError, match=r"for other classes, or in another order, got .*labels: \[Red, green, blue\]"):
        readout("text-classification", base, ["green", "red", "blue"], head="checkpoint")
    with pytest.raises(DataError, match=r"the checkpoint's head has 3 outputs, the task 2"):
        readout("text-classification", base, ["red", "green"], head="checkpoint")
    with pytest.raises(DataError, match=r"the checkpoint's head has 3 outputs, the task 1"):
        readout("text-classification", base, [], head="checkpoint", problem="regression")


def test_a_head_of_another_class_is_none(checkpoint, tiny_bert):
    for folder in (checkpoint("token-classification", "bert"), tiny_bert):
        if folder == tiny_bert:
            base = loaded(folder)
            assert base.given == {}
            with pytest.raises(
                ModelError, match=r"the checkpoint has no head for this task \(it lacks classifier\.bias\)"
            ):
                readout("text-classification", base, head="checkpoint")
        else:  # a classifier of words has no pooler either
            with pytest.raises(
                ModelError, match=r"lacks 2 weights of BertModel, such as pooler\.dense\.bias.*pooling: cls"
            ):
                loaded(folder)
            assert loaded(folder, layers="linear", pooling="cls").given == {}


def test_architectures_without_a_known_head_take_one_linear_layer(tmp_path):
    tiny.pieces(tmp_path)
    config = transformers.AutoConfig.for_model("mobilebert", **TEXT, embedding_size=16, intra_bottleneck_size=16)
    config.vocab_size = len(transformers.AutoTokenizer.from_pretrained(tmp_path))
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"the layers of this model's head are not known, got 'mobilebert'.*layers: linear"
    ):
        loaded(tmp_path)
    base = loaded(tmp_path, layers="linear", pooling="mean")
    assert set(readout("text-classification", base).state_dict()) == {"classifier.weight", "classifier.bias"}


def test_texts_are_cut_to_the_positions_that_a_model_has(checkpoint):
    for kind, most in (("bert", 40), ("roberta", 40 - 2)):
        folder = checkpoint("text-classification", kind)
        base = loaded(folder, max_length=100)
        config = FAMILIES.get("text-classification").task_settings(
            name="t", source={"csv": {"train": "-", "test": "+"}}
        )
        table = Table({"text": ["red " * 60]}, "rows", {})
        (ids,) = FAMILIES.get("text-classification").encode(table, [0], config, base)["input_ids"]
        assert len(ids) == most
        base.backbone(input_ids=ids[None])  # one position more would have no embedding


def test_a_convolutional_network_has_no_first_token(checkpoint):
    base = loaded(
        checkpoint("image-classification", "convnext"), "image-classification", layers="linear", pooling="cls"
    )
    model = TaskModel(base.backbone, task_of("image-classification", base), base)
    with pytest.raises(ModelError, match=r"has no first token, got \[2, 12, \d+, \d+\].*pooling: pooler or mean"):
        model.logits(batch_of("image-classification"))
