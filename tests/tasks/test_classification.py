"""The families with trained heads: their contract for every problem, their rows, and what they refuse."""

from __future__ import annotations

import json

import pytest
import torch

from tangora.config.tasks import base_settings
from tangora.errors import DataError, RecipeError
from tangora.support.seams import FAMILIES
from tangora.support.validation import validate
from tangora.tasks import TaskModel, load_base, load_task, predict
from tangora.tasks.classification.problems import problem_of
from tangora.tasks.sources import Table, read
from tangora.testing import check_family

COLORS = ["red", "green", "blue"]


def source(folder, kind="jsonl"):
    return {kind: {split: str(folder / f"{split}.{kind}") for split in ("train", "test")}}


@pytest.mark.parametrize(
    "task",
    [
        {"text": "text", "label": "same"},
        {"text": "text", "text_pair": "pair", "label": "same"},
        {"problem": "multi", "label": "colors"},
        {"problem": "multi", "label_columns": COLORS, "threshold": 0.3},
        {"problem": "regression", "label": "count"},
    ],
    ids=["single", "pair", "multi", "columns", "regression"],
)
@pytest.mark.parametrize("layers", ["model", "linear"])
def test_texts_keep_the_contract(tiny_bert, several_data, task, layers):
    settings = {"model": str(tiny_bert)} | ({"layers": "linear", "pooling": "mean"} if layers == "linear" else {})
    check_family(FAMILIES.get("text-classification"), settings, {"name": "t", "source": source(several_data), **task})


@pytest.mark.parametrize("layers", ["model", "linear"])
@pytest.mark.parametrize("task", [{}, {"lost": "outside", "metric": "tag_accuracy"}], ids=["whole", "cut"])
def test_words_keep_the_contract(tiny_bert, several_data, task, layers):
    settings = {"model": str(tiny_bert), "layers": layers} | ({"max_length": 4} if task else {})
    check_family(FAMILIES.get("token-classification"), settings, {"name": "t", "source": source(several_data), **task})


@pytest.mark.parametrize(("layers", "pooling"), [("model", None), ("linear", "mean"), ("linear", "pooler")])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_images_keep_the_contract(tiny_vit, tiny_resnet, image_data, kind, layers, pooling):
    settings = {"model": str(tiny_vit if kind == "vit" else tiny_resnet), "layers": layers, "pooling": pooling}
    task = {"name": "i", "source": source(image_data, "npz"), "image": "images", "label": "labels", "labels": COLORS}
    check_family(FAMILIES.get("image-classification"), settings, task)


TEXTS = "text-classification"
WORDS = "token-classification"


def load(family, folder, rows, **settings):
    """The targets of a task with these train rows, and one test row; the train rows are numbered from 0."""
    for split, listed in (("train", rows), ("test", rows[:1])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    config = FAMILIES.get(family).task_settings(name="t", source=source(folder), **settings)
    tables = read(config.source, "t")
    return FAMILIES.get(family).targets(tables, config), tables, config


def labelled(*labels, **more):
    return [{"text": f"row {i}", "label": label, **more} for i, label in enumerate(labels)]


def tagged(*tags):
    return [{"tokens": [f"w{i}" for i in range(len(row))], "tags": row} for row in tags]


MULTI, WORD = {"problem": "multi"}, {"tokens": ["a"], "tags": ["O"]}


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            labelled("a", "b", "A "),
            {},
            r"differ in case or white space only, got 'A ' at .*label, row 2.*'a' is at",
        ),
        (labelled("a", "b", " "), {}, r"a label is missing or empty, got ' ' at .*row 2"),
        (labelled("a", "b", 1), {}, "not readable"),
        (
            labelled(0, 1, 0.5),
            {},
            r"a number with decimals is no name .*got 0.0 at .*row 0.*problem: regression",
        ),
        (labelled("a", "b", None), {}, r"a label is missing, got None at .*row 2"),
        (labelled("a", "b", "c"), {"labels": ["a", "b"]}, r"a label is out of range, got 'c' at .*row 2"),
        (labelled("a", "b"), {"labels": ["a", "b", "c"]}, r"a class has no row in train, got 'c'"),
        (labelled("a", "b"), {"labels": ["a", "b", ""]}, r"class names must differ and not be empty|is empty"),
        (labelled("a", "b"), {"labels": ["a", "b", "B"]}, r"two class names differ in case or white space only"),
        (labelled("a", "a"), {}, r"a task needs at least 2 classes"),
        (labelled(0.5, None), {"problem": "regression"}, r"a label is missing, or not a number, got None at .*row 1"),
        (labelled("a", "b"), {"problem": "regression"}, r"a label is missing, or not a number, got 'a' at .*row 0"),
        (labelled(True, False), {"problem": "regression"}, r"a label is missing, or not a number, got True at .*row 0"),
        (labelled(["a"], ["b", "z"]), MULTI | {"labels": ["a", "b"]}, r"an unknown label, got 'z' at .*row 1"),
        (labelled(["a"], ["b"]), MULTI | {"labels": ["a", "b", "c"]}, r"a label has no row in train, got 'c'"),
        (labelled(["a"], ["b", "B"]), MULTI, r"differ in case or white space only, got 'B' at .*row 1"),
        (labelled("a,b", "b"), MULTI, r"a list of names or numbers, got 'a,b' at .*row 0.*separator"),
        (labelled([0, 2], [1]), MULTI | {"labels": ["a", "b"]}, r"an unknown label, got 2 at .*row 0"),
        (labelled(1, 1, x=2), MULTI | {"label_columns": ["x"]}, r"a label column has 1 .*, got 2 at .*column x, row 0"),
        (labelled(1, 1, x=1), MULTI | {"label_columns": ["x", "y"]}, r"unknown column for label_columns, got 'y'"),
        (labelled(1, 1, x=1), MULTI | {"label_columns": ["x"], "labels": ["a", "b"]}, r"1 label_columns need as many"),
    ],
)
def test_labels_that_are_refused(tmp_path, rows, settings, message):
    with pytest.raises(DataError, match=message):
        load(TEXTS, tmp_path, rows, **settings)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            [WORD, {"tokens": ["a", "b"], "tags": ["O"]}],
            {},
            r"one tag for each word, got '2 words and 1 tags' at .*row 1",
        ),
        (tagged(["O"], []), {}, r"a row has no list, got \[\] at .*column tokens, row 1"),
        (
            [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["b"], "tags": None}],
            {},
            r"a row has no list, got None at .*tags, row 1",
        ),
        (tagged(["O", "X"]), {"labels": ["O", "Y"]}, r"an unknown label, got 'X' at .*column tags, row 0"),
        (tagged(["O", "X"]), {"labels": ["O", "X", "Y"]}, r"a tag has no row in train, got 'Y'"),
        (tagged(["O", "o"]), {}, r"differ in case or white space only, got 'o'"),
        (tagged(["B", "I"]), {"lost": "outside"}, r"the tag of words that are cut off is no tag of the task, got 'O'"),
    ],
)
def test_tags_that_are_refused(tmp_path, rows, settings, message):
    with pytest.raises(DataError, match=message):
        load(WORDS, tmp_path, rows, **settings)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (TEXTS, {"threshold": 0.3}, "threshold is for problem: multi"),
        (TEXTS, {"problem": "regression", "labels": ["a", "b"]}, "problem: regression has none"),
        (TEXTS, {"problem": "multi", "label_columns": ["a", "a"]}, "label_columns: each once"),
        (TEXTS, {"problem": "multi", "label_columns": ["a"], "separator": ","}, "no separator"),
        (WORDS, {"label": "ner"}, "is named by tags"),
    ],
)
def test_settings_that_contradict_each_other(family, settings, message):
    raw = {"name": "t", "source": {"csv": {"train": "a", "test": "b"}}, **settings}
    with pytest.raises(RecipeError, match=message):
        validate(FAMILIES.get(family).task_settings, raw, "tasks")
    for pair in ({"layers": "linear"}, {"pooling": "mean"}):
        with pytest.raises(RecipeError, match="give both, or neither"):
            base_settings({"family": TEXTS, "model": "m", **pair}, "base")


def test_labels_are_read_in_every_form(tmp_path):
    targets, *_ = load(TEXTS, tmp_path, labelled(["b", "a"], [], ["b"]), problem="multi")
    assert (targets.classes, targets.of_split["train"], targets.stratify) == (["a", "b"], [[0, 1], [], [1]], False)
    targets, *_ = load(TEXTS, tmp_path, labelled("b; a", "", "b"), problem="multi", separator=";")
    assert targets.of_split["train"] == [[0, 1], [], [1]]
    named = {"labels": {"b": "two", "a": "one"}}
    targets, *_ = load(TEXTS, tmp_path, labelled(["b", "a"], [], ["b"]), problem="multi", **named)
    assert (targets.classes, targets.of_split["train"]) == (["two", "one"], [[0, 1], [], [0]])
    rows = [{"text": "x", "b": 1, "a": True}, {"text": "y", "b": 0, "a": False}]
    targets, *_ = load(TEXTS, tmp_path, rows, problem="multi", label_columns=["b", "a"])
    assert (targets.classes, targets.of_split["train"]) == (["b", "a"], [[0, 1], []])
    targets, *_ = load(TEXTS, tmp_path, labelled(3, 1), problem="regression")
    assert targets.of_split["train"] == [3.0, 1.0]
    targets, *_ = load(TEXTS, tmp_path, labelled("a", "b"), head="checkpoint", labels=["a", "b", "c"])
    assert targets.classes == ["a", "b", "c"], "a given head needs no rows of every class"
    targets, *_ = load(WORDS, tmp_path, tagged(["O", "B-x"], ["O"]))
    assert (targets.classes, targets.of_split["train"]) == (["B-x", "O"], [["O", "B-x"], ["O"]])
    targets, *_ = load(WORDS, tmp_path, tagged([0, 1], [0]), labels=["O", "B-x"])
    assert targets.of_split["train"] == [["O", "B-x"], ["O"]]


@pytest.fixture(scope="module")
def text_bench(tiny_bert):
    return load_base(base_settings({"family": TEXTS, "model": str(tiny_bert), "max_length": 8}, "base"))


@pytest.fixture(scope="module")
def word_bench(tiny_bert):
    return load_base(base_settings({"family": WORDS, "model": str(tiny_bert), "max_length": 8}, "base"))


def encoded(base, table, config, targets=None):
    own = FAMILIES.get(base.config.family)
    return own.encode(table, targets if targets is not None else [[]] * len(table), config, base)


def test_a_pair_of_texts_has_types_of_tokens(text_bench, tmp_path):
    rows = [{"text": "red sky", "pair": "yes", "label": "a"}, {"text": "no", "pair": "that is a", "label": "b"}]
    _, tables, config = load(TEXTS, tmp_path, rows, text_pair="pair")
    inputs = encoded(text_bench, tables["train"], config)
    words = text_bench.processor.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    assert words == ["[CLS]", "red", "sky", "[SEP]", "yes", "[SEP]"]
    assert inputs["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1]
    batch = FAMILIES.get(TEXTS).collate(text_bench)(
        [{k: v[i] for k, v in inputs.items()} | {"labels": 0} for i in (0, 1)]
    )
    assert batch["token_type_ids"].shape == batch["input_ids"].shape == (2, 7)
    for text, message in ((" ", r"a text is empty, got ' ' at .*column pair, row 0"), (None, "a text is missing")):
        with pytest.raises(DataError, match=message):
            table = Table({"text": ["red"], "pair": [text]}, "rows", {})
            encoded(text_bench, table, config)


def test_the_first_token_of_a_word_has_its_tag(word_bench, tmp_path):
    rows = [{"tokens": ["red", "abc", "sky"], "tags": ["B", "I", "O"]}, {"tokens": ["no"], "tags": ["O"]}]
    _, tables, config = load(WORDS, tmp_path, rows)
    inputs = encoded(word_bench, tables["train"], config)
    pieces = word_bench.processor.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    assert pieces == ["[CLS]", "red", "a", "##b", "##c", "sky", "[SEP]"]
    assert inputs["labels"][0].tolist() == [-100, 0, 0, -100, -100, 0, -100]
    task = load_task(config, word_bench, 0)
    assert task.labels == ["B", "I", "O"]
    assert task.splits["train"].inputs["labels"][0].tolist() == [-100, 0, 1, -100, -100, 2, -100]
    for words, message in (
        ([["red", " "]], r"a word is empty, or no text, got ' ' at rows, column tokens, row 0"),
        ([["red", "\u200b"]], r"a word has no tokens, got '\\u200b' at rows, column tokens, row 0"),
        (["red sky"], r"no list of words, got 'red sky'"),
        ([[]], r"no list of words, got \[\]"),
    ):
        with pytest.raises(DataError, match=message):
            encoded(word_bench, Table({"tokens": words}, "rows", {}), config)


def test_words_that_do_not_fit_are_counted_and_refused_or_outside(word_bench, tmp_path):
    rows = [{"tokens": ["red", *["sky"] * i], "tags": ["B", *["O"] * i]} for i in (1, 7, 9)]
    _, tables, config = load(WORDS, tmp_path, rows)
    what = (
        r"2 of 8 words do not fit into 8 tokens, got '6 such words in 2 rows' at .*column tokens, row 1.*lost: outside"
    )
    with pytest.raises(DataError, match=what):
        encoded(word_bench, tables["train"], config)
    allowed = config.model_copy(update={"lost": "outside", "metric": "tag_accuracy"})
    task = load_task(allowed, word_bench, 0)
    lost = sum(int(split.inputs["lost"].sum()) for name, split in task.splits.items() if name != "test")
    assert lost == 6
    assert sum(task.record["readout"]["lost"].values()) == 6
    for split in task.splits.values():
        answers = predict(TaskModel(word_bench.backbone, task, word_bench), split, 2).plain
        for answer, target, cut in zip(answers, split.targets, split.inputs["lost"].tolist(), strict=True):
            assert len(answer) == len(target)
            assert answer[len(target) - cut :] == ["O"] * cut
    narrow = load_base(word_bench.config.model_copy(update={"max_length": 2}))
    with pytest.raises(DataError, match="2 of 2 words do not fit into 2 tokens"):
        encoded(narrow, tables["train"], allowed)


def test_losses_and_answers_are_those_of_the_problem(text_bench, several_data):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=draw)
    config = FAMILIES.get(TEXTS).task_settings
    common = {"name": "t", "source": source(several_data)}
    multi = problem_of(config(**common, problem="multi", threshold=0.7))
    hot = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]])
    padded = torch.tensor([[0, 2, -100], [-100] * 3, [1, -100, -100], [0, 1, 2], [2, -100, -100]])
    p = logits.double().sigmoid()
    expected = -(hot * p.log() + (1 - hot) * (1 - p).log()).mean(1)
    assert torch.allclose(multi.losses(logits, padded).double(), expected, rtol=1e-5)
    assert multi.answers(logits) == [[i for i in range(3) if row[i] >= 0.7] for row in p.tolist()]
    number = problem_of(config(**common, problem="regression"))
    assert number.losses(torch.tensor([[2.0], [1.0]]), torch.tensor([1.0, 1.5])).tolist() == [1.0, 0.25]
    assert number.answers(torch.tensor([[2.0], [1.0]])) == [2.0, 1.0]


def test_numbers_among_names_are_refused_with_both_rows():
    table = Table({"text": ["x", "y", "z"], "label": ["a", "b", 1]}, "rows", {})
    config = FAMILIES.get(TEXTS).task_settings(name="t", source={"csv": {"train": "-", "test": "+"}})
    with pytest.raises(DataError, match=r"numbers and names among the labels, got 1 at rows, .*row 2.*row 0"):
        FAMILIES.get(TEXTS).targets({"train": table, "test": table}, config)
