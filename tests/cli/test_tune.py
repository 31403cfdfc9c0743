"""`tangora tune` on three adapters of a tiny language model: what it prints and writes, resuming, and bad input."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

import tangora
from journeys import WORDS, prompts
from loras import peft_lora
from tangora.cli import app
from workshop import done


@pytest.fixture
def here(journey, tmp_path, monkeypatch):
    """A folder with links to the base, the adapters and the rows."""
    for name in ("llama", "adapters", "rows", "other"):
        (tmp_path / name).symlink_to(journey / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


READ = ["--task-set", "prompt={question}", "--task-set", "target={answer}"]


def data(*names, folder="rows"):
    return [part for name in names for part in ("--data", f"{name}={folder}/{name}.jsonl")]


def refused(*arguments):
    result = CliRunner().invoke(app, ["tune", *map(str, arguments), "--out", "fused"])
    assert result.exit_code != 0
    assert isinstance(result.exception, tangora.TangoraError), result.exception
    return str(result.exception)


def test_scores_are_those_of_tangora_evaluate_on_the_rows_of_the_cut(here):
    """Chosen rows are never scored; and the JSON has what the adapter's record has."""
    found = json.loads(
        done("tune", "adapters/sums", "adapters/caps", *data("sums", "caps"), "--labels", 8, "--weights", "0.5,1",
             "--search", "grid", "--json", "-q", "--out", "fused").stdout
    )  # fmt: skip
    assert {name: cut["choosing"] for name, cut in found["rows"].items()} == {"sums": 8, "caps": 8}
    assert {name: cut["scoring"] for name, cut in found["rows"].items()} == {"sums": 32, "caps": 32}
    adapter = tangora.load("fused")
    assert adapter.metadata.scores["tasks"] == {
        name: cell["score"] for name, cell in found["table"]["models"]["fused"]["tasks"].items()
    }
    assert adapter.metadata.fused.selection["rows"] == {"sums": 8, "caps": 8}
    assert [parent.name for parent in adapter.metadata.fused.parents] == ["sums", "caps"]
    assert set(adapter.records) == {"sums", "caps"}, "tangora predict reads it"
    assert adapter.metadata.verified["error"] < 1e-6
    base = tangora.load_base("llama", family="causal-lm", max_length=32, max_new_tokens=3)
    whole = tangora.load_task(
        "sums", base, {"train": "other/sums.jsonl", "test": "rows/sums.jsonl"}, prompt="{question}", target="{answer}"
    )
    right = tangora.evaluate("adapters/sums", base, whole)["sums"].score * 40
    scored = found["table"]["models"]["sums"]["tasks"]["sums"]["score"] * 32
    assert 0 <= right - scored <= 8 + 1e-9
    card = (here / "fused" / "README.md").read_text(encoding="utf-8")
    assert "coefficients chosen on other rows: 8 of sums, 8 of caps" in card


def test_a_named_search_is_used_and_what_is_better_is_said(here):
    """Coefficients that may not exceed 0.001 make the base."""
    bound = ["--search", "learned", "--set", "steps=1", "--set", "bound=0.001"]
    shown = done("tune", "adapters/sums", *data("sums"), *bound, "--weights", 1, "--labels", 4, "--out", "fused").output
    assert "search: learned (it was asked for)" in shown
    assert re.search(r"note: one λ of 1 for all scores 1.000, better than these coefficients' 0.000 \(diff", shown)
    assert re.search(
        r"note: sums alone scores 1.000, better than these coefficients' 0.000 \(difference 1.000 \[", shown
    )
    tables = shown[shown.index("task  rows") : shown.index("search: ")].splitlines()
    assert max(map(len, tables)) <= 80


def test_a_call_that_was_stopped_goes_on(here, monkeypatch):
    """The scores of before are not measured again."""
    from tangora.evaluation.evaluator import Evaluator

    measure, seen = Evaluator._measure, []

    def counting(self, model_of, task, split):
        seen.append((task.name, split))
        if len(seen) == stop:
            raise KeyboardInterrupt
        return measure(self, model_of, task, split)

    monkeypatch.setattr(Evaluator, "_measure", counting)
    call = ["tune", "adapters/sums", *data("sums"), "--labels", "4", "--weights", "0.5,1", "--out"]
    stop = 3
    CliRunner().invoke(app, [*call, "fused"])
    assert not (here / "fused").exists()
    assert (here / ".fused.tuning" / "scores.jsonl").is_file()
    stop, first = 0, len(seen) - 1
    done(*call, "fused")
    again = len(seen) - first - 1
    seen.clear()
    done(*call, "second")
    assert again + first == len(seen)
    assert not (here / ".fused.tuning").exists()
    assert tangora.load("fused").fingerprint == tangora.load("second").fingerprint
    assert (here / "fused" / "tangora.json").read_text() == (here / "second" / "tangora.json").read_text()


def test_tasks_without_adapters_and_adapters_without_tasks_are_said(here):
    result = done("tune", "adapters/sums", "adapters/ends", *data("sums", "caps"), "--labels", 4, "--out", "fused",
                  "--search", "lorahub", "--set", "budget=3", *READ)  # fmt: skip
    assert "without rows of a task of their own" in result.output
    assert "without an adapter of their own, so done by the others: caps" in result.output
    assert len(tangora.load("fused").metadata.fused.weights) == 2


def test_adapters_of_stock_peft_are_paired_in_order_which_is_said(here, journey):
    for name, seed in (("one", 1), ("two", 2)):
        peft_lora(journey / "llama", here / name, seed=seed, r=seed)
    reading = [*READ, "--base-set", "max_new_tokens=3"]
    shown = done("tune", "one", "two", *data("sums", "caps"), "--family", "causal-lm", "--base", "llama", *reading,
                 "--rank", 2, "--labels", 4, "--weights", "1", "--out", "fused").output  # fmt: skip
    assert "in the order that they are given: one is of sums, two is of caps" in shown
    assert "is it of this task, base and prompt?" in shown, "random adapters are no better than the base"
    assert "relative error of the truncation" in shown


def test_an_archive_of_equal_rows_stays_on_one_side(here):
    file = here / "twice.jsonl"
    file.write_text("".join(line * 2 for line in prompts(here / "made" / "sums.jsonl", "sums", 6).open()))
    shown = done("tune", "adapters/sums", "--data", "sums=twice.jsonl", "--out", "fused", "--dry-run").output
    assert "sums: 12 rows have the input of another row" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adapters/sums"], "tune needs rows of the tasks' inputs, got 'neither'"),
        (["adapters/sums", "--data", "sums=other/none.jsonl"], "file not found"),
        (["adapters/sums", "--data", "sums=short.jsonl"], "fewer than 2, got '2 rows'"),
        (["adapters/sums", *data("sums"), "--labels", "39"], "39 choosing rows leave 1 to score on"),
        (["adapters/sums", "--data", "sums=foreign.jsonl"], "unknown column in target, got 'answer'"),
        (["adapters/sums", "adapters/nothing", *data("sums")], "no such folder"),
        (["adapters/sums", "sums=adapters/caps", *data("sums")], "two adapters of one name"),
        (["adapters/sums", *data("sums"), "--search", "lerned"], "Did you mean 'learned'"),
        (["adapters/sums", *data("sums"), "--search", "convex"], "linear in the coefficients"),
        (["adapters/sums", *data("sums"), "--set", "steps=3"], "a grid has no such setting"),
        (["adapters/sums", *data("sums"), "--weights", "a"], "weights must be numbers"),
        (["adapters/sums", *data("sums"), "--family", "text-to-text"], "trained for family causal-lm"),
        (["adapters/sums", *data("sums"), "--metric", "exact"], "no such metric"),
        (["adapters/sums", *data("sums"), "--task-set", "caps.prompt=x"], "no rows of this task"),
        (["adapters/sums", *data("sums"), "--task-set", "promt=x"], "unknown key 'promt'"),
        (["plain", "--data", "plain=rows/sums.jsonl", "--base", "llama"], "no adapter says how rows are read"),
        (["adapters/sums", "narrow", *data("sums")], "narrow does not fit .*llama: the model's weight is"),
        (["adapters/caps", *data("sums"), "--search", "adamerging", *READ], "follows each task's own adapter"),
    ],
    ids=lambda value: " ".join(map(str, value))[-40:] if isinstance(value, list) else None,
)
def test_bad_input_is_refused_and_nothing_is_written(here, journey, arguments, message):
    from safetensors.torch import load_file, save_file

    if arguments[0] == "plain" or "narrow" in arguments:
        peft_lora(journey / "llama", here / "plain", seed=1)
        peft_lora(journey / "llama", here / "narrow", seed=1)
        file = here / "narrow" / "adapter_model.safetensors"
        save_file({k: v[:, :16].contiguous() if "lora_A" in k else v for k, v in load_file(file).items()}, file)
    prompts(here / "short.jsonl", "sums", 2)
    (here / "foreign.jsonl").write_text('{"text": "a", "label": 1}\n' * 8)
    if "adamerging" in arguments:  # the adapter of another task, and the prompts of one without an adapter
        arguments = ["x=adapters/caps", "y=adapters/ends", *arguments[1:]]
    assert re.search(message, refused(*arguments))
    assert not (here / "fused").exists()


def test_words_are_what_the_adapters_learned(here):
    base = tangora.load_base("llama", family="causal-lm", max_length=32, max_new_tokens=3)
    for name in WORDS:
        task = tangora.load_task(
            name,
            base,
            {"train": f"other/{name}.jsonl", "test": f"rows/{name}.jsonl"},
            prompt="{question}",
            target="{answer}",
        )
        assert tangora.evaluate(f"adapters/{name}", base, task)[name].score > 0.5, "else nothing here is a test"


def test_a_recipe_gives_base_and_rows(here):
    import yaml

    task = {"prompt": "{question}", "target": "{answer}"}
    tasks = [
        {"name": n, "source": {"jsonl": {"train": f"rows/{n}.jsonl", "test": f"other/{n}.jsonl"}}, **task}
        for n in WORDS
    ]
    base = {"family": "causal-lm", "model": "llama", "max_length": 32, "max_new_tokens": 3}
    (here / "recipe.yaml").write_text(yaml.safe_dump({"name": "r", "base": base, "tasks": tasks}))
    found = json.loads(done("tune", "adapters/sums", "adapters/ends", "--recipe", "recipe.yaml", "--weights", "1", "-q",
                            "--json", "--out", "fused").stdout)  # fmt: skip
    assert found["table"]["rows"] == {"sums": 4, "ends": 4}
    assert found["table"]["split"] == "test"
    assert "says how rows are read" in refused("adapters/sums", "--recipe", "recipe.yaml", "--family", "causal-lm")
    shutil.rmtree(here / "fused")
