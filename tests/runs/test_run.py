"""A whole run on a tiny encoder: its files, its resuming, and that stock peft agrees with its scores."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
import time
from collections import defaultdict

import pytest
import torch
import yaml

import tangora
from forks import begun
from tangora.adapters.application import applied
from tangora.config.recipe import load_recipe
from tangora.errors import ArgumentError, FusionError, OutputError
from tangora.progress import Progress
from tangora.runs.runner import prepare
from tiny_run import recipe_for

pytestmark = pytest.mark.drawn

VARYING = {"run.json", "run.log", "report.html", "training.json", ".lock"}  # wall times, and what shows them


@pytest.fixture(scope="module")
def recipe(tiny_bert, text_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe_for(tiny_bert, text_data)))
    return load_recipe(path)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    return tangora.run(recipe, tmp_path_factory.mktemp("runs") / "whole")


def rows(run):
    with (run / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def contents(run):
    """Every file but those that show wall times, the cache, and what is drawn from the files: path -> bytes."""
    left_out = {"cache", "figures"}
    files = [p for p in run.rglob("*") if p.is_file() and p.name not in VARYING and not left_out & set(p.parts)]
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


class InterruptAt(Progress):
    """Ctrl-C at the n-th thing that the run reports."""

    def __init__(self, when):
        self.left = when

    def _tick(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def advance(self, steps=1, detail=""):
        self._tick()

    def update(self, done, detail=""):
        self._tick()


def test_everything_promised_is_there(finished):
    for name in ("recipe.yaml", "scores.csv", "candidates.csv", "report.html", "run.log", "run.json", "summary.json"):
        assert (finished / name).stat().st_size > 0, name
    for mode in ("full", "lora", "l-lora"):
        for task in ("plain", "good", "f1"):
            assert (finished / "adapters" / mode / task / "tangora.json").is_file()
    fused = {str(p.relative_to(finished / "fused")) for p in (finished / "fused").glob("*/*")}
    assert {"lora/average", "lora/task_arithmetic", "lora/task_arithmetic-factors", "lora/ties-oracle"} <= fused
    assert {"full/average", "l-lora/lorahub"} <= fused
    pictures = {p.suffix for p in (finished / "figures").iterdir()}
    assert {".png", ".pdf"} <= pictures


def test_scores_cover_the_comparison_once(finished):
    table = rows(finished)
    keys = [(r["mode"], r["method"], r["space"], r["subset"], r["selection"], r["split"], r["task"]) for r in table]
    assert len(keys) == len(set(keys))
    assert {r["method"] for r in table} == {"zero_shot", "expert", "average", "task_arithmetic", "ties", "lorahub"}
    assert {r["subset"] for r in table if r["method"] == "ties"} == {
        "plain+good",
        "plain+f1",
        "good+f1",
        "plain+good+f1",
    }
    assert {r["subset"] for r in table if r["method"] == "lorahub"} == {"plain+good+f1"}
    assert {r["selection"] for r in table if r["method"] == "average"} == {"given"}
    assert {r["selection"] for r in table if r["method"] == "ties"} == {"validation", "oracle"}
    tests = [r for r in table if r["split"] == "test" and r["method"] == "ties" and r["subset"] == "plain+good"]
    assert {r["task"] for r in tests} == {"plain", "good", "f1", "mean", "mean_all"}, "every task is scored"


def test_normalized_is_the_share_of_the_experts(finished):
    table = rows(finished)
    expert = {
        (r["mode"], r["task"]): float(r["score"])
        for r in table
        if r["method"] == "expert" and r["split"] == "test" and r["subset"] == r["task"]
    }
    for r in table:
        if r["split"] == "test" and r["normalized"] and not r["task"].startswith("mean"):
            assert float(r["normalized"]) == pytest.approx(float(r["score"]) / expert[r["mode"], r["task"]], abs=1e-5)
            best = max(v for (_, task), v in expert.items() if task == r["task"])
            assert float(r["normalized_best"]) == pytest.approx(float(r["score"]) / best, abs=1e-5)


def test_oracle_is_never_below_validation_on_what_it_selects_by(finished):
    table = [r for r in rows(finished) if r["split"] == "test" and not r["task"].startswith("mean")]
    expert = {(r["mode"], r["task"]): float(r["score"]) for r in table if r["subset"] == r["task"]}
    chosen = defaultdict(float)  # the sum over tasks of score / expert, also of experts worse than zero-shot
    for r in table:
        if r["method"] == "task_arithmetic" and r["in_subset"] == "true":
            place = (r["mode"], r["space"], r["subset"], r["selection"])
            chosen[place] += float(r["score"]) / expert[r["mode"], r["task"]]
    compared = [k for k in chosen if k[3] == "oracle"]
    assert compared
    for mode, space, subset, _ in compared:
        assert chosen[mode, space, subset, "oracle"] >= chosen[mode, space, subset, "validation"] - 1e-9


def test_adapters_of_a_mode_share_their_start(finished):
    for mode in ("lora", "l-lora"):
        starts = {
            json.loads(p.read_text())["initial"]["fingerprint"]
            for p in (finished / "adapters" / mode).glob("*/tangora.json")
        }
        assert len(starts) == 1


def test_stock_peft_gives_the_logits_that_were_scored(finished, recipe, tiny_bert):
    from peft import PeftModel
    from transformers import AutoModel

    from tangora.tasks import TaskModel, collate, predict, score

    base, tasks = prepare(recipe)
    for name in ("lora/task_arithmetic", "l-lora/average", "lora/task_arithmetic-factors", "lora/ties", "l-lora/ties"):
        folder = finished / "fused" / name
        stock = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), folder).eval()
        for task in tasks:
            rows_ = task.splits["test"].dataset()
            batch = collate(task, base)([rows_[i] for i in range(len(rows_))])
            with torch.inference_mode(), applied(base.backbone, tangora.load(folder)):
                scored = TaskModel(base.backbone, task, base)(**batch)["logits"]
            with torch.inference_mode():
                served = TaskModel(stock, task, base)(**batch)["logits"]
            assert torch.allclose(scored, served, atol=1e-5), name
            found = predict(TaskModel(stock, task, base), task.splits["test"], 64)
            recorded = json.loads((folder / "tangora.json").read_text())["scores"]
            assert score(task.metric, found.values, task.splits["test"].targets) == pytest.approx(
                _recorded_score(recorded, task.name), abs=1e-6
            )


def _recorded_score(scores, task):
    """The score of a task, however deep the card's record nests it."""
    for value in scores.values():
        if isinstance(value, dict) and task in value:
            return value[task]
    return scores[task]


def test_started_again_nothing_is_done_twice(finished, recipe, caplog):
    before = contents(finished)
    stamps = {p: p.stat().st_mtime_ns for p in (finished / "adapters").rglob("*") if p.is_file()}
    measured = (finished / "cache" / "scores.jsonl").read_bytes()
    with caplog.at_level(logging.INFO, logger="tangora"):
        tangora.run(recipe, finished)
    assert contents(finished) == before
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps, "no adapter was written again"
    assert (finished / "cache" / "scores.jsonl").read_bytes() == measured, "no score was measured again"


def test_equal_candidates_are_scored_once(finished):
    keys = [json.loads(line)["key"] for line in (finished / "cache" / "scores.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys))
    with (finished / "candidates.csv").open() as file:
        candidates = list(csv.DictReader(file))
    zero = [c for c in candidates if json.loads(c["weights"])[0] == 0.0 and c["method"] == "task_arithmetic"]
    shot = {r["task"]: float(r["score"]) for r in rows(finished) if r["method"] == "zero_shot" and r["split"] == "test"}
    assert zero
    for c in zero:
        if c["split"] == "test":
            assert float(c["score"]) == pytest.approx(shot[c["task"]], abs=1e-6)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("when", [9, 58])  # in training, and among fusions; kills.py interrupts everywhere
def test_interrupted_anywhere_it_ends_with_the_same_files(finished, recipe, tmp_path, when):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        tangora.run(recipe, run, progress=InterruptAt(when))
    assert not list(run.rglob(".*.tmp-*")), "nothing half-written is left"
    tangora.run(recipe, run)
    assert contents(run) == contents(finished)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_killed_outright_it_ends_with_the_same_files(finished, recipe, tmp_path):
    run, path = tmp_path / "run", tmp_path / "tiny.yaml"
    path.write_text(recipe.to_yaml())
    for marker in ("adapters/lora/plain/tangora.json", "cache/scores/*.jsonl"):
        process = begun(["run", str(path), "--out", str(run)])
        deadline = time.monotonic() + 240
        while not any(run.glob(marker)) and time.monotonic() < deadline:
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "it must be killed while it works"
            time.sleep(0.02)
        os.kill(process, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    tangora.run(recipe, run)
    assert contents(run) == contents(finished)


def test_a_torn_line_of_scores_is_measured_again(finished, recipe, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    store = run / "cache" / "scores.jsonl"
    whole = store.read_bytes()
    store.write_bytes(whole[:-7])
    shutil.rmtree(run / "cache" / "outcomes")
    tangora.run(recipe, run)
    assert contents(run) == contents(finished)
    assert sorted(store.read_bytes().splitlines()) == sorted(whole.splitlines())


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_an_older_version_goes_on(finished, recipe, tmp_path, monkeypatch):
    """It has no records of jobs, no outcomes, and its recipe lacks the keys that came later."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("jobs", "locks", "outcomes"):
        shutil.rmtree(run / "cache" / name)
    (run / "cache" / "sources.json").unlink()
    raw = yaml.safe_load((run / "recipe.yaml").read_text())
    for key in ("title", "evaluation", "description"):
        assert raw.pop(key) == {"evaluation": {"batch_size": 64, "others": True, "bootstrap": 100}}.get(key, "")
    (run / "recipe.yaml").write_text(yaml.safe_dump({**raw, "evaluation": {"bootstrap": 100}}))
    monkeypatch.setattr("tangora.evaluation.evaluator.Evaluator._measure", None)
    monkeypatch.setattr("tangora.modes.finetuning.train_to", None)
    tangora.run(recipe, run)
    assert contents(run) == contents(finished)


def test_another_recipe_does_not_take_over_a_run(finished, recipe, tmp_path):
    before = contents(finished)
    other = recipe.model_copy(update={"seed": 5})
    with pytest.raises(OutputError, match=r"another recipe.*--overwrite"):
        tangora.run(other, finished)
    assert contents(finished) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not a run"):
        tangora.run(recipe, tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_two_runs_in_one_folder_are_refused(recipe, tmp_path):
    import fcntl

    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another run is using this folder"):
            tangora.run(recipe, run)


def test_methods_are_checked_before_anything_is_trained(recipe, tmp_path):
    raw = recipe.model_dump(mode="json")
    raw["fusion"]["methods"] = [{"method": "ties", "parameters": {"density": [0.5, 20]}}]
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ArgumentError, match=r"density must be in \(0, 1\], got 20"):
        tangora.run(load_recipe(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_method_for_two_is_refused_for_subsets_of_three(recipe, tmp_path):
    from tangora.runs.runner import check_methods

    raw = recipe.model_dump(mode="json")
    path = tmp_path / "two.yaml"
    raw["fusion"]["methods"] = [{"method": "slerp"}]
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(FusionError, match=r"slerp fuses exactly 2, got 3 at fusion\.methods\.slerp\.sizes"):
        tangora.run(load_recipe(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    raw["fusion"]["methods"] = [{"method": "slerp", "sizes": [2]}]
    path.write_text(yaml.safe_dump(raw))
    check_methods(load_recipe(path))


def test_the_log_tells_what_went_wrong(recipe, tmp_path):
    raw = recipe.model_dump(mode="json")
    raw["lora"]["target_modules"] = ["query", "nothing_like_this"]
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(raw))
    from tangora.errors import ModelError

    with pytest.raises(ModelError, match="nothing_like_this"):
        tangora.run(load_recipe(path), tmp_path / "run")
    log = (tmp_path / "run" / "run.log").read_text()
    assert "Traceback" in log
    assert "nothing_like_this" in log
