"""Rows that lose tokens are counted, by comparison with their own tokens; so are answers that never end."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

import tangora
from tangora.evaluation.evaluator import Result
from tangora.evaluation.warnings import score_warnings
from tangora.tasks.cuts import cut_lines, cuts
from tangora.tasks.model import TaskModel, predict
from tangora.tasks.values import Encoded, Split

MODELS = {
    "causal-lm": "tiny_llama",
    "text-classification": "tiny_bert",
    "text-to-text": "tiny_t5",
    "text-zero-shot": "tiny_bert",
    "token-classification": "tiny_bert",
}
LONGEST = {"causal-lm": 24}
WORDS = ["red", "sky", "photo", "of", "this", "sea"]
# The lengths around the limits of 8 tokens, two of them special ones, and of 24 bytes.
ROWS = [
    {
        "text": " ".join(WORDS[i % 6] for i in range(n)),
        "tokens": [WORDS[i % 6] for i in range(n)],
        "tags": ["A" if i % 2 else "O" for i in range(n)],
        "label": ("good", "bad")[n % 2],
        "pair": "sea",
        "prompt": "x" * (2 * n + 6),
        "completion": "yes",
    }
    for n in range(2, 12)
]


@pytest.fixture
def loaded(request, tmp_path):
    def task(family, **settings):
        for split in ("train", "validation", "test"):
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation", "test")}
        length = LONGEST.get(family, 8)
        base = tangora.load_base(request.getfixturevalue(MODELS[family]), family=family, max_length=length)
        return base, tangora.load_task("t", base, files, **settings)

    return task


def whole(base, *columns):
    """The number of tokens of each row if none is cut."""
    return [len(base.processor(*(row[column] for column in columns))["input_ids"]) for row in ROWS]


@pytest.mark.parametrize(
    ("family", "columns", "settings"),
    [
        ("text-classification", ["text"], {}),
        ("text-classification", ["text", "pair"], {"text_pair": "pair"}),
        ("text-to-text", ["text"], {}),
        ("text-zero-shot", ["text"], {}),
    ],
)
def test_texts(loaded, family, columns, settings):
    base, task = loaded(family, **settings)
    expected = {row for row, count in enumerate(whole(base, *columns)) if count > 8}
    assert 0 < len(expected) < len(ROWS), "some are cut and some fit"
    assert 8 in whole(base, *columns), "one fits exactly"
    for split in task.splits.values():
        assert split.cut == expected
        assert split.longest == 8
    assert cuts(task)["train"] == {"rows": len(expected), "of": len(ROWS), "max_length": 8}


def test_words(loaded):
    _, task = loaded("token-classification", lost="outside")
    assert task.splits["test"].cut == {row for row, words in enumerate(ROWS) if len(words["tokens"]) > 6}


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts(loaded, side):
    base, task = loaded("causal-lm", truncation=side)
    kept = task.splits["train"]
    whole = [len(base.processor(row["prompt"])["input_ids"]) + len(" yes") + 1 for row in ROWS]  # bytes, and the end
    assert kept.cut == {row for row, count in enumerate(whole) if count > 24}
    assert 0 < len(kept.cut) < len(ROWS)


def test_rows_that_are_picked_keep_whether_they_were_cut():
    split = Split({"input_ids": [torch.zeros(1)] * 4}, [0, 1, 2, 3], cut=frozenset({1, 3}), longest=5)
    assert split.select([3, 0, 1, 1]).cut == {0, 2, 3}
    assert split.select([0, 2]).cut == set()
    assert Split.of(Encoded(split.inputs, [2], 5), split.targets).cut == {2}
    assert Split.of(dict(split.inputs), split.targets).cut == set()
    assert split.fingerprint == Split(split.inputs, split.targets).fingerprint, "what was lost decides no result"


def test_a_training_records_and_says_it(loaded, tmp_path, caplog):
    base, task = loaded("text-classification")
    config = tangora.FinetuneConfig(lora={"r": 2, "target_modules": ["query"]}, training={"steps": 1, "batch_size": 2})
    with caplog.at_level(logging.WARNING, logger="tangora"):
        tangora.finetune(base, task, config, out=tmp_path / "out", progress=False)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["cut"] == cuts(task)
    count = len(task.splits["train"].cut)
    assert caplog.messages == [
        f"t: {count} of 10 {split} rows ({10 * count} %) are cut at max_length 8" for split in ("train", "validation")
    ]


def test_a_scoring_says_it(loaded, caplog):
    base, task = loaded("text-classification")
    with caplog.at_level(logging.WARNING, logger="tangora"):
        tangora.evaluate(None, base, task, progress=False)
    assert caplog.messages == list(cut_lines({"t": cuts(task)}, ["test"]))
    assert len(caplog.messages) == 1


def always(token):
    """Let a model of language answer with one token only."""

    def hook(module, arguments, output):
        output.logits.zero_()[..., token] = 1.0

    return hook


@pytest.mark.parametrize("kind", ["answer", "language"])
@pytest.mark.parametrize("settled", [False, True])
def test_answers_without_an_end_are_counted(families, kind, settled, monkeypatch):
    case = families[kind]
    split = case.task.splits["test"].select(range(5))
    end = case.base.backbone.generation_config.eos_token_id
    for token, expected in ((7, 5), (end, 0)):
        model = TaskModel(case.base.backbone, case.task, case.base)
        if settled:
            answer = model.readout.answer
            monkeypatch.setattr(model.readout, "answer", lambda b, i, t, _, a=answer: a(b, i, t, lambda logits: logits))
        hook = case.base.backbone.register_forward_hook(always(token))
        try:
            assert predict(model, split, 2).unended == expected
        finally:
            hook.remove()


def test_a_text_that_ends_answers_counts_as_an_end(families):
    case = families["language"]
    config = case.task.config
    letter = case.base.processor("a", add_special_tokens=False)["input_ids"][0]
    for stop, expected in ((["aa"], 0), (["b"], 3)):
        task = replace(case.task, config=config.model_copy(update={"stop": stop}))
        model = TaskModel(case.base.backbone, task, case.base)
        hook = case.base.backbone.register_forward_hook(always(letter))
        try:
            assert predict(model, case.task.splits["test"].select(range(3)), 3).unended == expected
        finally:
            hook.remove()


def test_the_share_of_answers_without_an_end_is_said_if_it_is_more_than_half(families):
    task = families["language"].task
    results = {"one": Result(0.0, 0.0, [""] * 8, 4), "two": Result(0.0, 0.0, [""] * 8, 5)}
    lines = score_warnings({name: {"sums": result} for name, result in results.items()}, [task], "test")
    assert len(lines) == 1
    assert lines[0].startswith("two, sums: 5 of 8 test answers (62 %) have no end within 4 tokens: raise")
