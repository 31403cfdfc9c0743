"""Rows that no task can be made of are refused with their number, by every family that reads such rows."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoTokenizer

import tangora
from tangora.errors import DataError, ModelError

FAMILIES = {
    "causal-lm": "tiny_llama",
    "text-classification": "tiny_bert",
    "text-to-text": "tiny_t5",
    "text-zero-shot": "tiny_bert",
    "token-classification": "tiny_bert",
}
SETTINGS = {"causal-lm": {"max_length": 64}}
LABELLED = ["causal-lm", "text-classification", "text-to-text", "text-zero-shot"]
ROWS = [
    {"text": f"{word} sky", "label": word, "number": i, "prompt": f"{word} sky", "completion": word}
    for i, word in enumerate(["good", "bad"] * 3)
]


@pytest.fixture(scope="module")
def base_of(request):
    made = {}

    def base(family):
        if family not in made:
            model = request.getfixturevalue(FAMILIES[family])
            made[family] = tangora.load_base(model, family=family, **SETTINGS.get(family, {}))
        return made[family]

    return base


@pytest.fixture
def loaded(base_of, tmp_path):
    def task(family, rows, test=None, **settings):
        for split, listed in (("train", rows), ("test", test or rows)):
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
        files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
        if family == "causal-lm" and not settings.keys() & {"messages", "target"}:
            settings["target"] = "{label}"
        return tangora.load_task("t", base_of(family), files, **settings)

    return task


def with_(**changes):
    return [*ROWS, {**ROWS[0], **changes}]


def test_the_rows_are_good_otherwise(loaded):
    for family in LABELLED:
        assert loaded(family, ROWS).labels == ["bad", "good"]


@pytest.mark.parametrize("family", LABELLED)
@pytest.mark.parametrize("label", ["", "  "])
def test_an_empty_label(loaded, family, label):
    with pytest.raises(DataError, match=r"a label is missing or empty, got .* at .*train\.jsonl, column label, row 6"):
        loaded(family, with_(label=label))


@pytest.mark.parametrize("family", LABELLED)
@pytest.mark.parametrize("label", ["Good", "good ", " GOOD"])
def test_nearly_equal_labels(loaded, family, label):
    for split in ({"rows": with_(label=label)}, {"rows": ROWS, "test": with_(label=label)}):
        with pytest.raises(DataError, match=r"differ in case or white space only, got .*row 6.*'good' is at .*row 0"):
            loaded(family, **split)


@pytest.mark.parametrize("family", LABELLED)
def test_nearly_equal_names(loaded, family):
    with pytest.raises(DataError, match=r"two class names differ in case or white space only.* task t, labels"):
        loaded(family, ROWS, labels=["good", "Good ", "bad"])
    assert loaded(family, with_(label="Good "), labels={"good": "good", "Good ": "good", "bad": "bad"}).labels == [
        "good",
        "bad",
    ]


@pytest.mark.parametrize("family", LABELLED)
def test_a_row_without_a_label(loaded, family):
    with pytest.raises(DataError, match=r"a label is missing, got None at .*column label, row 6"):
        loaded(family, with_(label=None))


@pytest.mark.parametrize("family", ["text-classification", "text-to-text", "text-zero-shot"])
@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text(loaded, family, text):
    with pytest.raises(DataError, match=r"a (text|prompt) is empty, got .*row 6"):
        loaded(family, with_(text=text))


@pytest.mark.parametrize("value", [int, str, bool, lambda number: number + 0.5])
def test_numbers_as_names_of_a_zero_shot_task(loaded, value):
    rows = [{**row, "label": value(row["number"] % 2)} for row in ROWS]
    with pytest.raises(
        DataError, match=r"the labels are numbers.*row 0 \(line 1\)\. Name the classes, labels: \{\S+: NAME, .*\}"
    ):
        loaded("text-zero-shot", rows)
    named = {str(value(0)): "zero", str(value(1)): "one"}
    assert loaded("text-zero-shot", rows, labels=named).labels == ["zero", "one"]
    if value(0) != 0.5:
        assert loaded("text-classification", rows).labels == list(named)  # no model reads these


def test_digits_may_be_names_if_the_recipe_lists_them(loaded):
    rows = [{**row, "label": str(row["number"] % 2)} for row in ROWS]
    assert loaded("text-zero-shot", rows, labels=["0", "1"]).labels == ["0", "1"]


@pytest.mark.parametrize("family", ["causal-lm", "text-to-text"])
@pytest.mark.parametrize("completion", ["", "  ", None])
def test_a_row_without_an_answer(loaded, family, completion):
    with pytest.raises(DataError, match=r"(a row has no answer|a value is missing), got .*row 6"):
        loaded(family, with_(completion=completion), target="{completion}")


def test_an_empty_message(loaded):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    rows = [{"messages": turns}] * 3
    empty = {"messages": [{"role": "user", "content": " "}, turns[1]]}
    with pytest.raises(DataError, match=r"a message of the user is empty, got ' ' at .*row 3 \(line 4\), message 0"):
        loaded("causal-lm", [*rows, empty], messages="messages")


@pytest.mark.parametrize("family", [*sorted(FAMILIES), "image-zero-shot"])
def test_a_tokenizer_of_another_model(request, family, tmp_path):
    source = request.getfixturevalue(FAMILIES.get(family, "tiny_clip"))
    folder = shutil.copytree(source, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = len(tokenizer)
    tokenizer.add_tokens([f"<{i}>" for i in range(300)])
    tokenizer.save_pretrained(folder)
    what = f"the tokenizer has {known + 300} tokens, and the model .*Use the tokenizer of the base"
    with pytest.raises(ModelError, match=what):
        tangora.load_base(folder, family=family)


@pytest.mark.parametrize("family", ["image-classification", "image-zero-shot"])
def test_nearly_equal_names_of_folders(request, family, tmp_path):
    folders = {}
    for split in ("train", "test"):
        folders[split] = shutil.copytree(request.getfixturevalue("image_data") / split, tmp_path / split)
    shutil.copytree(folders["train"] / "red", folders["train"] / "Red ")
    base = tangora.load_base(
        request.getfixturevalue({"image-zero-shot": "tiny_clip"}.get(family, "tiny_vit")), family=family
    )
    with pytest.raises(DataError, match=r"differ in case or white space only, got 'red' at .*train, column label, row"):
        tangora.load_task("t", base, {"imagefolder": {name: str(folder) for name, folder in folders.items()}})
