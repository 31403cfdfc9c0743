from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn.functional import normalize

from tangora.config.recipe import BaseConfig, TaskConfig
from tangora.errors import DataError
from tangora.tasks import load_base, load_task
from tangora.tasks.images import image_processor

COLORS = ["red", "green", "blue"]


def _text(folder, name="colors", **changes):
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "test")}
    return TaskConfig.model_validate({"name": name, "source": {"parquet": files}, "labels": COLORS} | changes)


def _written(folder, rows, test=None, kind="jsonl"):
    for split, content in (("train", rows), ("test", test or rows)):
        (folder / f"{split}.{kind}").write_text("".join(json.dumps(row) + "\n" for row in content))
    return {kind: {split: str(folder / f"{split}.{kind}") for split in ("train", "test")}}


def _rows(labels):
    return [{"text": f"a photo {i}", "label": label} for i, label in enumerate(labels)]


def _ids(split):
    return [tuple(row.tolist()) for row in split.inputs["input_ids"]]


def test_texts_are_tokenized_unpadded(text_task, text_base):
    test = text_task.splits["test"]
    decoded = text_base.processor.decode(test.inputs["input_ids"][1])
    assert decoded.startswith("[CLS]")
    assert decoded.endswith("green [SEP]")
    assert test.targets[:4] == [0, 1, 2, 0]
    assert len({len(row) for row in test.inputs["input_ids"]}) > 1
    item = test.dataset()[1]
    assert item["labels"] == 1
    assert torch.equal(item["input_ids"], test.inputs["input_ids"][1])
    assert len(test.dataset()) == 24


def test_text_head_is_the_normalized_embedding_of_the_class_names(text_task, text_base):
    for label, row in zip(COLORS, text_task.head, strict=True):
        ids = text_base.processor(label, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            mean = text_base.backbone(input_ids=ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(row, normalize(mean, dim=0))


def test_image_head_averages_normalized_prompts(image_task, image_base):
    for label, row in zip(COLORS, image_task.head, strict=True):
        prompts = normalize(image_base.text.embed([f"a photo of a {label}", label]), dim=-1)
        torch.testing.assert_close(row, normalize(prompts.mean(0), dim=0))
    assert image_task.scale == image_base.scale


def test_cls_pooling_takes_the_first_token(tiny_bert, text_data):
    base = load_base(BaseConfig(family="text-zero-shot", model=str(tiny_bert), pooling="cls"))
    task = load_task(_text(text_data), base, 0)
    ids = base.processor("red", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        first = base.backbone(input_ids=ids).last_hidden_state[0, 0]
    torch.testing.assert_close(task.head[0], normalize(first, dim=0))


def test_inputs_are_cut_to_max_length(tiny_bert, text_data):
    base = load_base(BaseConfig(family="text-zero-shot", model=str(tiny_bert), max_length=4))
    task = load_task(_text(text_data), base, 0)
    assert {len(row) for row in task.splits["test"].inputs["input_ids"]} == {4}


def test_a_max_length_beyond_the_models_positions_is_theirs(tiny_bert, text_data, tmp_path):
    base = load_base(BaseConfig(family="text-zero-shot", model=str(tiny_bert), max_length=4096))
    positions = base.backbone.config.max_position_embeddings
    source = _written(tmp_path, [{"text": "red " * 2 * positions, "label": i % 2} for i in range(8)], _rows([0, 1]))
    task = load_task(TaskConfig(name="x", source=source, labels=["no", "yes"]), base, 0)
    assert {len(row) for row in task.splits["train"].inputs["input_ids"]} == {positions}


def test_splits_are_disjoint_and_stratified(text_base, tmp_path):
    source = _written(tmp_path, _rows([0] * 60 + [1] * 40), _rows([0, 1]))
    config = TaskConfig(name="x", source=source, labels=["no", "yes"], validation_fraction=0.2)
    numbered = {split: set(_ids(s)) for split, s in load_task(config, text_base, 0).splits.items()}
    assert len(numbered["train"]) == 80
    assert len(numbered["validation"]) == 20
    assert not numbered["train"] & numbered["validation"]
    task = load_task(config, text_base, 1)
    assert Counter(task.splits["validation"].targets) == {0: 12, 1: 8}
    assert set(_ids(task.splits["validation"])) != numbered["validation"]


def test_limit_comes_after_the_cut_and_is_stratified(text_base, tmp_path):
    source = _written(tmp_path, _rows([0] * 60 + [1] * 40), _rows([0, 1]))
    config = TaskConfig(name="x", source=source, labels=["no", "yes"])
    whole = load_task(config, text_base, 0)
    limited = load_task(config.model_copy(update={"limit": {"train": 30, "validation": 5}}), text_base, 0)
    assert Counter(limited.splits["train"].targets) == {0: 18, 1: 12}
    for split, n in (("train", 30), ("validation", 5)):
        ids = _ids(limited.splits[split])
        assert len(ids) == n
        everything = _ids(whole.splits[split])
        assert ids == [row for row in everything if row in set(ids)]


def test_fingerprint_follows_what_decides_the_task(text_base, text_data, tmp_path):
    reference = load_task(_text(text_data), text_base, 0).fingerprint
    assert load_task(_text(text_data), text_base, 0).fingerprint == reference
    changed = [
        load_task(_text(text_data), text_base, 1),
        load_task(_text(text_data, metric="macro_f1"), text_base, 0),
        load_task(_text(text_data, templates=["a {}"]), text_base, 0),
        load_task(_text(text_data, labels=["red", "green", "sky"]), text_base, 0),
        load_task(_text(text_data, limit={"test": 20}), text_base, 0),
    ]
    rows = [json.loads(line) for line in (text_data / "train.jsonl").read_text().splitlines()]
    rows[7]["text"] += " yes"
    test = [json.loads(line) for line in (text_data / "test.jsonl").read_text().splitlines()]
    source = _written(tmp_path, rows, test)
    changed.append(load_task(TaskConfig(name="colors", source=source, labels=COLORS), text_base, 0))
    assert len({reference, *(task.fingerprint for task in changed)}) == 1 + len(changed)


def test_labels_by_name_by_mapping_by_file_and_by_themselves(text_base, text_data):
    expected = load_task(_text(text_data), text_base, 0).splits["test"].targets
    by_name = load_task(_text(text_data, label="name"), text_base, 0)
    assert by_name.splits["test"].targets == expected
    mapping = {"0": "sea", "1": "grass", "2": "sea"}
    merged = load_task(_text(text_data, labels=mapping), text_base, 0)
    assert merged.labels == ["sea", "grass"]
    assert merged.splits["test"].targets[:3] == [0, 1, 0]
    from_file = load_task(_text(text_data, labels=None, labels_from=str(text_data / "info.json")), text_base, 0)
    assert from_file.labels == COLORS
    alone = load_task(_text(text_data, labels=None, label="name"), text_base, 0)
    assert alone.labels == ["blue", "green", "red"]
    with pytest.raises(DataError, match=r"the labels are numbers.* labels: \{0: NAME, 1: NAME, 2: NAME\}"):
        load_task(_text(text_data, labels=None), text_base, 0)


def test_class_names_of_the_data_set(text_base, tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [0, 1, 1, 0]}, features=features)
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / f"{split}.parquet")
    assert load_task(_text(tmp_path, labels=None), text_base, 0).labels == ["no", "yes"]


def test_images_of_every_kind_give_the_same_pixels(image_base, image_data, image_task, tmp_path):
    import datasets

    folders = {split: str(image_data / split) for split in ("train", "test")}
    listed = load_task(TaskConfig(name="p", source={"imagefolder": folders}, labels=COLORS), image_base, 0)
    order = np.argsort(["blue", "green", "red"] * 8, kind="stable")
    arrays = image_task.splits["test"].inputs["pixel_values"]
    by_class = [i for color in (2, 1, 0) for i in range(24) if i % 3 == color]
    assert len(order) == 24
    assert torch.equal(listed.splits["test"].inputs["pixel_values"], arrays[by_class])
    files = {}
    for split in ("train", "test"):
        stored = np.load(image_data / f"{split}.npz")
        columns = {"image": [Image.fromarray(a) for a in stored["images"]], "label": stored["labels"].tolist()}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        files[split] = str(tmp_path / f"{split}.parquet")
        datasets.Dataset.from_dict(columns, features=features).to_parquet(files[split])
    encoded = load_task(TaskConfig(name="p", source={"parquet": files}, labels=COLORS), image_base, 0)
    assert torch.equal(encoded.splits["test"].inputs["pixel_values"], arrays)


def test_images_need_no_torchvision(tiny_clip, monkeypatch):
    class Placeholder:
        """What stands at this name in transformers 5.4 if torchvision is not installed."""

        @classmethod
        def from_pretrained(cls, *_, **__):
            raise ImportError("AutoImageProcessor requires the Torchvision library")

    monkeypatch.setattr(transformers, "AutoImageProcessor", Placeholder)
    loaded = image_processor(BaseConfig(family="image-zero-shot", model=str(tiny_clip)))
    assert type(loaded).__name__ == "CLIPImageProcessorPil"


def test_gray_images(image_base, tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    pixels = []
    for images in (gray, gray[..., None], np.repeat(gray[..., None], 3, axis=3)):
        files = {split: str(tmp_path / f"{split}.npz") for split in ("train", "test")}
        for name in files.values():
            np.savez(name, image=images, label=np.arange(6) % 2)
        task = load_task(TaskConfig(name="g", source={"npz": files}, labels=["red", "sea"]), image_base, 0)
        pixels.append(task.splits["test"].inputs["pixel_values"])
    assert pixels[0].shape == (6, 3, 32, 32)
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])


def test_answers_in_words(answer_task, answer_base):
    test = answer_task.splits["test"]
    assert test.targets[:3] == COLORS
    assert not hasattr(answer_task, "head")
    assert answer_base.processor.decode(test.inputs["labels"][0]) == "red</s>"
    assert answer_base.processor.decode(test.inputs["input_ids"][0]).startswith("is this good")


def test_answers_in_numbers(answer_base, text_data):
    config = _text(text_data, labels=None, label="grade", target="{label:.1f}", prompt="{name} {text}")
    task = load_task(config, answer_base, 0)
    assert task.labels == []
    assert task.splits["test"].targets[:3] == ["0.5", "1.5", "2.5"]


def test_answers_from_another_column(answer_base, text_data):
    task = load_task(_text(text_data, labels=None, target="{name}"), answer_base, 0)
    assert task.splits["test"].targets[:3] == COLORS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "texts"}, "unknown column for text, got 'texts' at .*Did you mean 'text'"),
        ({"label": "labels"}, "unknown column for label, got 'labels' at .*Did you mean 'label'"),
        ({"labels": ["red", "green"]}, "a label is out of range, got 2 at .*column label, row 2.*0 to 1"),
        ({"labels": {"0": "red", "1": "sea"}}, "a label without a class name, got 2"),
        ({"labels": ["red", "green", "blue", "sky"]}, "a class has no row in train, got 'sky'"),
        ({"labels": ["red", "green", "red"]}, "class names must differ"),
        ({"labels": ["red", "green", " "]}, "class names must differ and not be empty"),
        ({"labels": {"0": "a", "1": "a", "2": "a"}}, "at least 2 classes"),
        ({"labels": None, "labels_from": "/nowhere/info.json"}, "file not found at /nowhere/info.json"),
    ],
)
def test_columns_and_labels_that_cannot_be(changes, message, text_base, text_data):
    with pytest.raises(DataError, match=message):
        load_task(_text(text_data, **changes), text_base, 0)


def test_labels_from_a_file_without_labels(text_base, text_data, tmp_path):
    (tmp_path / "info.json").write_text('{"names": ["red"]}')
    with pytest.raises(DataError, match="'labels' must list the class names"):
        load_task(_text(text_data, labels=None, labels_from=str(tmp_path / "info.json")), text_base, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None, "label": 0}, "a text is missing or not a text, got None at .*row 2"),
        ({"text": "a", "label": None}, "a label is missing, got None at .*column label, row 2"),
    ],
)
def test_missing_values(row, message, text_base, tmp_path):
    source = _written(tmp_path, [*_rows([0, 1]), row], _rows([0, 1]))
    with pytest.raises(DataError, match=message):
        load_task(TaskConfig(name="x", source=source, labels=["no", "yes"]), text_base, 0)


@pytest.mark.parametrize("label", [float("inf"), [1, 2]])
def test_labels_that_are_no_numbers_and_no_names(label, text_base, tmp_path):
    rows = [{"text": "a", "label": label}, {"text": "b", "label": label}]
    source = _written(tmp_path, rows, rows)
    for labels in (None, ["red", "green"]):
        with pytest.raises(DataError, match=r"a label is neither a number nor a name, got .*column label, row 0"):
            load_task(TaskConfig(name="x", source=source, labels=labels), text_base, 0)


def test_a_label_of_test_that_train_never_shows(text_base, tmp_path):
    source = _written(tmp_path, _rows(["no", "yes"] * 2), _rows(["no", "sky"]))
    with pytest.raises(DataError, match="a class has no row in train, got 'sky'"):
        load_task(TaskConfig(name="x", source=source), text_base, 0)


@pytest.mark.parametrize(
    "images", [np.zeros((4, 8, 8, 4), np.uint8), np.zeros((4, 8), np.uint8), np.zeros((4, 8, 8), np.float32)]
)
def test_wrong_image_arrays(images, image_base, tmp_path):
    files = {split: str(tmp_path / f"{split}.npz") for split in ("train", "test")}
    for name in files.values():
        np.savez(name, image=images, label=np.arange(4) % 2)
    with pytest.raises(DataError, match="images must be uint8 of shape"):
        load_task(TaskConfig(name="x", source={"npz": files}, labels=["red", "sea"]), image_base, 0)


def test_a_file_that_is_no_image(image_base, image_data, tmp_path):
    for color in COLORS:
        (tmp_path / color).mkdir()
        (tmp_path / color / "x.png").write_bytes(b"not a picture")
    folders = {"train": str(image_data / "train"), "test": str(tmp_path)}
    with pytest.raises(DataError, match="not an image"):
        load_task(TaskConfig(name="x", source={"imagefolder": folders}, labels=COLORS), image_base, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{texts}"}, "unknown column in prompt, got 'texts'.*Did you mean 'text'"),
        ({"prompt": "{}"}, "a field needs a column's name"),
        ({"prompt": "{text"}, "not a format string"),
        ({"target": "{answer}"}, "unknown column in target, got 'answer'"),
        ({"target": "{label:.1f}"}, "does not fit the template"),
        ({"target": "{text} {label}"}, "a target has more than 5 tokens.*Raise base.max_new_tokens"),
    ],
)
def test_templates_that_cannot_be(changes, message, answer_base, text_data):
    with pytest.raises(DataError, match=message):
        load_task(_text(text_data, **changes), answer_base, 0)


def test_one_row_cannot_be_cut(answer_base, tmp_path):
    source = _written(tmp_path, [{"text": "a", "label": 1.5}])
    with pytest.raises(DataError, match="needs at least 2 rows of train"):
        load_task(TaskConfig(name="x", source=source), answer_base, 0)
