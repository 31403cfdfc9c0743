"""The family `vision-language`: two frozen towers, rows with images, answers from the text alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import tangora
from tangora.config.language import LanguageTask
from tangora.config.vision_language import VisionLanguageModel, VisionLanguageTask
from tangora.errors import DataError, FileError, ModelError, RecipeError
from tangora.quickstart import cache, questions
from tangora.quickstart.tiny_decoder import DecoderSettings
from tangora.quickstart.training import PretrainingSettings
from tangora.support.validation import validate
from tangora.tasks.base import weights_fingerprint
from tangora.tasks.load import load_base, load_task
from tangora.tasks.model import TaskModel, predict
from tangora.testing import check_family

COLORS = ["red", "green", "blue"]


def images(folder):
    return {"npz": {split: str(folder / f"{split}.npz") for split in ("train", "test")}}


def asking(folder, **changes):
    named = {"image": "images", "label": "labels", "labels": COLORS, "prompt": "which color?", "target": "{label}"}
    return VisionLanguageTask(**{"name": "colors", "source": images(folder), **named, **changes})


@pytest.fixture(scope="module")
def settings(tiny_llama, tiny_clip):
    names = {"model": str(tiny_llama), "vision": str(tiny_clip)}
    return VisionLanguageModel(family="vision-language", max_length=64, max_new_tokens=8, **names)


@pytest.fixture(scope="module")
def base(settings):
    return load_base(settings)


def test_the_base_alone_answers_from_the_text(base, image_data):
    """As the decoder does without any image: logits, losses and answers."""
    task = load_task(asking(image_data), base, 0)
    decoder = tangora.load_base(base.config.model, family="causal-lm", max_length=64, max_new_tokens=8)
    rows = [{"prompt": "which color?", "completion": COLORS[i % 3]} for i in range(24)]
    assert set(task.splits["test"].inputs) == {"input_ids", "labels", "pixel_values"}
    found = predict(TaskModel(base.backbone, task, base), task.splits["test"], 8)
    table = image_data / "texts"
    table.mkdir(exist_ok=True)
    for split in ("train", "test"):
        (table / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = tangora.load_task("colors", decoder, {s: table / f"{s}.jsonl" for s in ("train", "test")})
    expected = predict(TaskModel(decoder.backbone, texts, decoder), texts.splits["test"], 8)
    assert found.values == expected.values
    # the same logits by products of other shapes: rounding of float32 alone
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)


def test_the_fingerprint_covers_both_towers(base):
    names = [name for name, _ in base.backbone.named_parameters()]
    assert {name.split(".")[0] for name in names} == {"decoder", "vision"}
    assert not any(p.requires_grad for p in base.backbone.parameters())
    other = load_base(base.config)
    assert other.fingerprint == base.fingerprint
    with torch.no_grad():
        next(other.backbone.vision.parameters()).add_(1)
    assert weights_fingerprint(other.backbone) != base.fingerprint


@pytest.mark.parametrize("tower", ["tiny_vit", "tiny_clip"])
def test_towers_of_clip_and_vit_are_loaded_alone(tower, tiny_llama, request):
    names = {"model": str(tiny_llama), "vision": str(request.getfixturevalue(tower))}
    loaded = load_base(VisionLanguageModel(family="vision-language", **names))
    assert type(loaded.backbone.vision).__name__ == {"tiny_vit": "ViTModel", "tiny_clip": "CLIPVisionModel"}[tower]
    assert not any("pooler" in name for name, _ in loaded.backbone.named_parameters())


def test_other_models_are_refused(tiny_llama, tiny_resnet, tiny_bert, tiny_clip):
    def load(**named):
        return load_base(VisionLanguageModel(family="vision-language", **named))

    with pytest.raises(ModelError, match="no vision tower for this kind of model, got 'resnet'"):
        load(model=str(tiny_llama), vision=str(tiny_resnet))
    with pytest.raises(ModelError, match="not spread over devices"):
        load(model=str(tiny_llama), vision=str(tiny_clip), device_map="auto")
    with pytest.raises(FileError, match="folder is not found"):
        load(model=str(tiny_llama), vision="/no/such/folder")


def test_captions_need_no_question(base, image_data):
    """A row then begins with the token that begins, or here ends, a text."""
    task = load_task(asking(image_data, prompt="", target="a {label} one", max_new_tokens=14), base, 0)
    assert {tuple(ids.tolist()) for ids in task.splits["test"].inputs["input_ids"]} == {(1,)}
    assert task.splits["test"].targets[0] == "a red one"
    answers = predict(TaskModel(base.backbone, task, base), task.splits["test"], 8)
    assert len(set(answers.values)) == 1


def test_a_question_is_required_in_front_of_texts_alone():
    with pytest.raises(RecipeError, match="prompt: it must not be empty"):
        validate(LanguageTask, {"name": "a", "source": {"builtin": "x"}, "prompt": ""}, "task")
    with pytest.raises(RecipeError, match="begins with the user's words"):
        validate(VisionLanguageTask, {"name": "a", "source": {"builtin": "x"}, "prompt": "", "chat": True}, "task")


def test_the_likeliest_of_several_answers(base, image_data, settings):
    config = asking(image_data, choices=COLORS, metric="accuracy")
    task = load_task(config, base, 0)
    found = predict(TaskModel(base.backbone, task, base), task.splits["test"], 5)
    assert set(found.values) <= set(COLORS)
    named = settings.model_dump(mode="json", exclude={"family"})
    check_family(tangora.support.seams.FAMILIES.get("vision-language"), named, config.model_dump(mode="json"))


def test_rows_without_an_image_are_refused(base, image_data, sum_data):
    with pytest.raises(DataError, match="unknown column for image, got 'photo'"):
        load_task(asking(image_data, image="photo"), base, 0)
    source = {"jsonl": {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}}
    with pytest.raises(DataError, match="not an image"):
        load_task(asking(image_data, source=source, image="text", target="{completion}"), base, 0)


@pytest.mark.parametrize("name", sorted(questions.names()))
def test_built_in_questions(name):
    splits = questions.load(name)
    assert list(splits) == ["train", "validation", "test"]
    known = set(questions.texts())
    for rows in splits.values():
        count = len(rows["answer"])
        assert rows["image"].shape == (count, 32, 32, 3)
        asked = rows.get("question", [""] * count)
        assert set(zip(asked, rows["answer"], strict=True)) <= known
        assert len(set(rows["answer"])) > 1
    again, other = questions.load(name), questions.load(name, seed=1)
    assert splits["test"]["answer"] == again["test"]["answer"]
    assert (splits["test"]["image"] == again["test"]["image"]).all()
    if name == "count-questions":
        assert (splits["test"]["image"] != other["test"]["image"]).any()
    if name == "face-questions":
        assert splits["test"]["question"] != other["test"]["question"]


def test_mosaics_contain_as_many_digits_as_their_answer_says():
    rows = questions.load("count-questions")["test"]
    for image, answer in zip(rows["image"], rows["answer"], strict=True):
        quarters = [image[y : y + 16, x : x + 16].any() for y in (0, 16) for x in (0, 16)]
        assert sum(quarters) == questions.NUMBERS.index(answer) + 1


def test_unknown_questions_are_refused():
    with pytest.raises(DataError, match="no such built-in questions"):
        questions.load("digits-questions")


def test_the_built_in_models_are_made_once(monkeypatch, tmp_path):
    monkeypatch.setenv("TANGORA_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "PretrainingSettings", lambda: PretrainingSettings(16, 2, 16, 8, steps=1))
    monkeypatch.setattr(cache, "DecoderSettings", lambda: DecoderSettings(16, 2, 2, steps=3, batch_size=4))
    names = {"model": "builtin:decoder", "vision": "builtin:quickstart", "max_length": 48, "max_new_tokens": 8}
    made = load_base(VisionLanguageModel(family="vision-language", **names))
    monkeypatch.setattr(cache.tiny_decoder, "pretrain", lambda *_: pytest.fail("trained again"))
    assert load_base(made.config).fingerprint == made.fingerprint
    limit = {"train": 4, "validation": 3, "test": 3}
    for name in questions.names():
        prompt = {"prompt": ""} if name == "photo-captions" else {}
        task = load_task(VisionLanguageTask(name=name, source={"builtin": name}, limit=limit, **prompt), made, 0)
        words = [made.processor.decode(ids) for ids in task.splits["test"].inputs["labels"]]
        assert not any("<unk>" in text for text in words), "the decoder knows every word"
        assert words == [f"{target} <end>" for target in task.splits["test"].targets]
        assert len(predict(TaskModel(made.backbone, task, made), task.splits["test"], 2).values) == 3


def test_the_same_decoder_is_made_twice():
    short = DecoderSettings(16, 1, 2, steps=2, batch_size=4)
    first, second = (cache.tiny_decoder.pretrain(short)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert cache._decoder_key(short) != cache._decoder_key(DecoderSettings(16, 1, 2, steps=2, batch_size=4, seed=1))
