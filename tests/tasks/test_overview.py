"""The overview of a task's rows: of every family, from all rows, and from a sample of many."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tangora.support.seams import FAMILIES
from tangora.tasks.load import load_task
from tangora.tasks.overview import Spread, overview_of, surveyed


@pytest.fixture(scope="module")
def overview(families, request):
    def made(kind, folder=None, **settings):
        base = families[kind].base
        if folder is None:
            files = {split: str(request.getfixturevalue("sum_data") / f"{split}.jsonl") for split in ("train", "test")}
        else:
            files = {split: str(request.getfixturevalue(folder) / f"{split}.jsonl") for split in ("train", "test")}
        config = FAMILIES.get(base.config.family).task_settings.model_validate(
            {"name": "t", "source": {"jsonl": files}, **settings}
        )
        return base, surveyed(config, base, 0)[1]

    return made


def lines_of(request, folder, split="test"):
    return [json.loads(line) for line in (request.getfixturevalue(folder) / f"{split}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "column", "answers"),
    [("pairs", "same", "classes"), ("multi", "colors", "labels"), ("tags", "tags", "tags")],
)
def test_classes_labels_and_tags_are_counted(overview, request, kind, column, answers):
    settings = {
        "pairs": {"text_pair": "pair", "label": "same"},
        "multi": {"problem": "multi", "label": "colors"},
        "tags": {},
    }[kind]
    _, found = overview(kind, "several_data", **settings)
    values = [row[column] for row in lines_of(request, "several_data")]
    expected = Counter(values if kind == "pairs" else (one for row in values for one in row))
    test = found.splits["test"]
    assert test.counts == {name: expected[name] for name in found.classes}
    assert (found.answers, test.rows, test.converted, test.cut, test.max_length) == (answers, 12, 12, 0, 32)
    assert found.names_read == []
    assert found.example.prompt.startswith("[CLS] ")
    assert found.example.prompt.endswith(" [SEP]")
    assert found.example.prompt.count("[SEP]") == (2 if kind == "pairs" else 1)


def test_numbers_have_a_range(overview, request):
    _, found = overview("regression", "several_data", problem="regression", label="count")
    values = sorted(row["count"] for row in lines_of(request, "several_data"))
    assert found.splits["test"].numbers == Spread(values[0], values[5], values[-1])
    assert (found.classes, found.splits["test"].counts) == ([], None)
    float(found.example.answer)


def test_a_zero_shot_model_reads_the_names_of_classes(families, overview):
    templates = ["a photo of {}", "{}"]
    _, found = overview("text", "text_data", label="name", templates=templates)
    assert found.classes == ["blue", "green", "red"]
    assert found.names_read == ["a photo of blue", "blue"]
    images = families["image"]
    shown = overview_of(images.task, FAMILIES.get("image-zero-shot").task_settings.model_construct(), images.base)
    assert shown.example.prompt == "pixel_values of shape 3 × 32 × 32"
    assert shown.example.answer in ("red", "green", "blue")
    assert sum(shown.splits["test"].counts.values()) == shown.splits["test"].rows == 24
    assert (shown.splits["test"].prompt_tokens, shown.splits["test"].max_length) == (None, None)


def test_answers_of_a_class_are_counted_and_others_are_not(overview):
    _, found = overview("answer", "text_data", label="name")
    assert set(found.splits["train"].counts) == set(found.classes) == {"blue", "green", "red"}
    assert found.example.answer.endswith("</s>")
    _, free = overview("answer", "text_data", label="name", target="{label} {text:.1}")
    assert free.splits["train"].counts is None, "an answer is more than its class"
    assert free.splits["train"].answer_tokens.most > found.splits["train"].answer_tokens.most


def test_an_example_is_what_a_language_model_reads(overview, request):
    base, plain = overview("language")
    rows = {row["prompt"]: row["completion"] for row in lines_of(request, "sum_data", "train")}
    assert plain.example.answer == f" {rows[plain.example.prompt]}<end>"
    base, chat = overview("language", chat=True, system="add")
    asked = [{"role": "system", "content": "add"}, {"role": "user", "content": plain.example.prompt}]
    assert chat.example.prompt == base.processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = base.processor(chat.example.prompt, add_special_tokens=False)["input_ids"]
    assert len(ids) <= chat.splits["train"].prompt_tokens.most
    _, text = overview("language", text="text")
    assert text.example.answer is None
    sizes = [len(row["text"].encode()) for row in lines_of(request, "sum_data")]
    assert (text.splits["test"].numbers.least, text.splits["test"].numbers.most) == (min(sizes), max(sizes))
    assert text.splits["test"].answer_tokens is None


@pytest.mark.parametrize("kind", ["text", "language", "tags"])
def test_a_sample_is_converted_and_all_rows_are_counted(families, request, kind):
    case = families[kind]
    folder, settings = {
        "text": ("text_data", {"label": "name"}),
        "language": ("sum_data", {}),
        "tags": ("several_data", {}),
    }[kind]
    files = {split: str(request.getfixturevalue(folder) / f"{split}.jsonl") for split in ("train", "test")}
    family = FAMILIES.get(case.base.config.family)
    config = family.task_settings.model_validate({"name": "t", "source": {"jsonl": files}, **settings})
    task, few = surveyed(config, case.base, 0, most=5)
    whole = load_task(config, case.base, 0)
    full = overview_of(whole, config, case.base)
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 5,
        "validation": few.splits["validation"].converted,
        "test": 5,
    }
    for name, split in few.splits.items():
        assert split.rows == len(whole.splits[name]) == full.splits[name].converted
        assert split.converted == min(5, split.rows)
        assert split.counts == full.splits[name].counts
        assert full.splits[name].prompt_tokens.least <= split.prompt_tokens.least
        assert split.prompt_tokens.most <= full.splits[name].prompt_tokens.most
