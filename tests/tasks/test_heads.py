"""Heads have the layers of transformers' own classes: from one checkpoint, both give the same logits."""

from __future__ import annotations

import pytest
import torch
import transformers

import tiny
from tangora.config.tasks import base_settings
from tangora.support.seams import FAMILIES
from tangora.tasks import load_base
from tangora.tasks.classification.heads import IMAGES, TEXTS, WORDS
from tangora.tasks.model import TaskModel
from tangora.tasks.values import Task

CLASSES = ["red", "green", "blue"]
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
        return folder

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
