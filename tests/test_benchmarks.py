"""The benchmark's pure parts, and its contenders on tiny shapes: they must compute one thing before they are timed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import step_models  # noqa: E402
import step_table  # noqa: E402
import step_worker  # noqa: E402
import train_step  # noqa: E402

TINY = ["tiny-clip", "tiny-bert", "tiny-t5", "tiny-llama"]


def options(contender: str = "l_lora", **others: object) -> argparse.Namespace:
    return argparse.Namespace(**{"contender": contender, "device": "cpu", "dtype": "float32", "seed": 0, **others})


def contender(seconds: list[float], step: int, peak: int) -> dict[str, object]:
    check = {"logits_at_start": 0.0, "logits": 2e-7, "gradient": 3e-7, "effect_of_b": 0.1}  # as in older results
    memory = [{"built": peak - step, "peak": peak, "step": step, "saved": 1}] * 3
    return {"seconds": seconds, "memory": memory, "check": check, "versions": {"torch": "2"}, "device_name": "cpu"}


def results() -> dict[str, object]:
    found = {
        "lora": contender([1.0, 2.0, 4.0], 100 * 2**20, 1000 * 2**20),
        "l_lora": contender([0.9, 1.8, 3.6], 90 * 2**20, 990 * 2**20),
        "jvp_wrapper": contender([1.08, 2.16, 4.32], 200 * 2**20, 2000 * 2**20),
    }
    machine = {"cpu": "Chip", "cores": 2, "memory": 2**33, "os": "Linux 6"}
    settings = {"device": "cpu", "threads": 2, "rounds": 3}
    shapes = {"clip": {"title": "CLIP", "contenders": found}}
    return {"date": "2025-01-02T03:04:05", "machine": machine, "settings": settings, "shapes": shapes}


def test_ratio_is_formed_within_rounds():
    middle, low, high = step_table.ratio([0.9, 9.0, 90.0], [1.0, 10.0, 100.0])
    assert (middle, low, high) == pytest.approx((0.9, 0.9, 0.9))  # though the rounds differ a hundredfold


def test_ratio_interval_holds_its_median_and_is_reproducible():
    samples, reference = [1.0, 1.1, 0.9, 1.3, 0.8], [1.0] * 5
    found = step_table.ratio(samples, reference, seed=3)
    assert found[0] == median(samples)
    assert 0.8 <= found[1] < found[0] < found[2] <= 1.3
    assert found == step_table.ratio(samples, reference, seed=3)


@pytest.mark.parametrize(("samples", "reference"), [([], []), ([1.0], [1.0, 2.0])])
def test_ratio_refuses_unpaired_samples(samples, reference):
    with pytest.raises(ValueError, match="as many samples"):
        step_table.ratio(samples, reference)


def test_quartiles():
    assert step_table.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
    assert step_table.quartiles([7.0]) == (7.0, 7.0)


def test_table_shows_medians_and_ratios():
    rows = step_table.table(results()["shapes"]["clip"]["contenders"]).splitlines()
    assert len({row.count("|") for row in rows}) == 1
    assert rows[2].startswith("| peft LoRA | 2000 | 1500 – 3000 | 1 | 100 | 1 | 1000 | 1 |")
    assert rows[3] == (
        "| **Tangora L-LoRA** | 1800 | 1350 – 2700 | 0.900 (0.900 – 0.900) | 90 | 0.900 | 990 | 0.990 | 3e-07 |"
    )


def test_goals_say_what_was_not_met():
    time, step, peak, speed = step_table.goals(results()["shapes"]["clip"]["contenders"])
    assert time.endswith("0.900, met")
    assert step.endswith("0.900, met")
    assert peak.endswith("0.990, **not met**")
    assert speed.endswith("1.200, **not met**")
    assert step_table.goals({"lora": contender([1.0], 1, 1)}) == []


def test_goals_of_the_tangent():
    found = {"lora": contender([1.0], 100, 1000), "tangent": contender([1.7], 140, 1100)}
    time, step = step_table.goals(found)
    assert time == "- time, at most 1.6 of LoRA's: 1.700, **not met**"
    assert step == "- memory of a step, at most 1.5 of LoRA's: 1.400, met"


def test_render_replaces_only_what_is_between_the_markers(tmp_path):
    document, file = tmp_path / "doc.md", tmp_path / "train_step-cpu.json"
    document.write_text(f"before\n{step_table.BEGIN}\nold\n{step_table.END}\nafter\n", encoding="utf-8")
    file.write_text(json.dumps(results()), encoding="utf-8")
    step_table.render([file], document)
    once = document.read_text(encoding="utf-8")
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert "Chip, 2 cores, 8 GiB, Linux 6; 2 threads" in once
    step_table.render([file], document)
    assert document.read_text(encoding="utf-8") == once


def test_render_takes_the_markers_of_its_comparison(tmp_path):
    document, file = tmp_path / "doc.md", tmp_path / "tangent_step-cpu.json"
    document.write_text(
        f"{step_table.BEGIN}\n{step_table.END}\n<!-- tangent_step:begin -->\n<!-- tangent_step:end -->\n"
    )
    step_table.render([], document, "tangent_step")
    assert "run `python benchmarks/train_step.py --compare tangent_step`" in document.read_text(encoding="utf-8")
    file.write_text(json.dumps(results()), encoding="utf-8")
    step_table.render([file], document, "tangent_step")
    assert document.read_text(encoding="utf-8").startswith(f"{step_table.BEGIN}\n{step_table.END}\n")
    assert "Chip" in document.read_text(encoding="utf-8")


def test_committed_results_can_be_rendered(tmp_path):
    document = tmp_path / "benchmarks.md"
    committed = BENCHMARKS.parent / "docs" / "benchmarks.md"
    document.write_text(committed.read_text(encoding="utf-8"), encoding="utf-8")
    train_step.main(["--render", "--docs", str(document)])
    assert document.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", step_table.BEGIN, f"{step_table.END}{step_table.BEGIN}", step_table.BEGIN * 2])
def test_replace_needs_both_markers_in_order(text):
    with pytest.raises(ValueError, match="once each"):
        step_table.replace_between(text, "body")


@pytest.mark.parametrize("shape", TINY)
def test_contenders_compute_the_same(shape):
    found = {}
    for name in ("lora", "lora_frozen_a", "l_lora"):
        trainer = step_worker.Trainer(step_models.SHAPES[shape], options(name))
        found[name] = step_worker.outcome(trainer, seed=0)
    for name in ("lora_frozen_a", "l_lora"):
        for key, reference in found["lora"].items():
            torch.testing.assert_close(found[name][key], reference, rtol=1e-4, atol=1e-6)
    assert step_worker.relative_error(found["l_lora"]["logits"], found["l_lora"]["logits_at_start"]) > 1e-2
    other = step_worker.outcome(step_worker.Trainer(step_models.SHAPES[shape], options(seed=1)), seed=1)
    assert step_worker.relative_error(other["logits"], found["l_lora"]["logits"]) > 1e-2


@pytest.mark.parametrize("shape", TINY)
def test_both_tangents_compute_the_expansion(shape):
    found = {}
    for name in ("lora", "tangent", "tangent_jvp"):
        trainer = step_worker.Trainer(step_models.SHAPES[shape], options(name))
        found[name] = step_worker.outcome(trainer, seed=0)
    for key, value in found["tangent"].items():
        assert step_worker.relative_error(value, found["tangent_jvp"][key]) < 1e-5
        if key.endswith("_at_start"):
            assert step_worker.relative_error(value, found["lora"][key]) < 1e-5
    assert step_worker.relative_error(found["tangent"]["logits"], found["tangent"]["logits_at_start"]) > 1e-2
    assert step_worker.relative_error(found["tangent"]["gradient"], found["tangent"]["gradient_at_start"]) > 1e-3
    assert step_worker.relative_error(found["tangent"]["logits"], found["lora"]["logits"]) > 1e-4  # another function


@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("name", ["l_lora", "tangent", "tangent_jvp"])
def test_a_step_trains_b_and_keeps_less_than_lora(name, shape):
    lora = step_worker.Trainer(step_models.SHAPES[shape], options("lora"))
    ours = step_worker.Trainer(step_models.SHAPES[shape], options(name))
    assert sum(p.numel() for p in ours.trainable) < sum(p.numel() for p in lora.trainable)
    if name == "l_lora":
        assert step_worker.saved_for_backward(ours) < step_worker.saved_for_backward(lora)
    ours.step()
    assert all(p.detach().any() for p in ours.trainable)
    assert all(p.grad is None for p in ours.model.parameters())


def test_unequal_contenders_are_refused():
    equal = {"logits_at_start": 0.0, "logits": 1e-6, "gradient": 1e-6, "effect_of_b": 0.1}
    train_step._refuse_unequal("clip", "l_lora", equal)
    for change in ({"gradient": 1e-2}, {"logits": float("nan")}, {"effect_of_b": 0.0}):
        with pytest.raises(SystemExit, match="does not compute"):
            train_step._refuse_unequal("clip", "l_lora", {**equal, **change})


def test_measure_needs_the_peers_environment(tmp_path):
    with pytest.raises(SystemExit, match="make bench-peers"):
        train_step.main(["--peers", str(tmp_path / "python"), "--results", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@contextmanager
def fork(shape: str, name: str, mode: str, options: argparse.Namespace, *more: str) -> Iterator[SimpleNamespace]:
    """A worker that has imported torch before it begins."""
    asked, answers = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(asked[0], 0)
            os.dup2(answers[1], 1)
            for end in (*asked, *answers):
                os.close(end)
            sys.stdin = os.fdopen(0)
            step_worker.main([shape, name, mode, "--threads", "1", "--seed", str(options.seed), *more])
            code = 0
        finally:
            os._exit(code)
    os.close(asked[0])
    os.close(answers[1])
    with open(asked[1], "w") as stdin, open(answers[0]) as stdout:
        yield SimpleNamespace(stdin=stdin, stdout=stdout, wait=lambda: None)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def _forks(monkeypatch):
    if sys.platform == "linux":
        monkeypatch.setattr(train_step, "_worker", fork)


def test_a_worker_of_its_own_process_answers():
    found = train_step._once("tiny-bert", "lora", "memory", options(threads=1, peers=train_step.PEERS))
    assert found["peak"] >= found["built"] > 0


@pytest.mark.usefixtures("_forks")
def test_a_run_of_the_tangents_from_end_to_end(tmp_path, capsys):
    document = tmp_path / "doc.md"
    document.write_text("<!-- tangent_step:begin -->\n<!-- tangent_step:end -->\n", encoding="utf-8")
    flags = ["--compare", "tangent_step", "--shapes", "tiny-bert", "--rounds", "1", "--memory-samples", "1"]
    train_step.main([*flags, "--threads", "1", "--results", str(tmp_path), "--docs", str(document)])
    found = json.loads((tmp_path / "tangent_step-cpu.json").read_text(encoding="utf-8"))
    checks = {name: c["check"] for name, c in found["shapes"]["tiny-bert"]["contenders"].items()}
    assert list(checks) == ["lora", "tangent", "tangent_jvp"]
    assert checks["tangent"]["logits"] == 0.0  # the first of the expansions is what the other is compared with
    assert 0.0 < checks["tangent_jvp"]["logits"] < 1e-4
    assert "tiny-bert: tangent_jvp: differs by logits_at_start" in capsys.readouterr().out
    assert "Tangora tangent LoRA" in document.read_text(encoding="utf-8")


@pytest.mark.usefixtures("_forks")
def test_a_run_from_end_to_end(tmp_path):
    document = tmp_path / "doc.md"
    document.write_text(f"{step_table.BEGIN}\n{step_table.END}\n", encoding="utf-8")
    flags = ["--shapes", "tiny-clip", "--contenders", "lora", "l_lora", "--rounds", "2"]
    flags += ["--memory-samples", "1", "--threads", "1"]
    train_step.main([*flags, "--results", str(tmp_path), "--docs", str(document)])
    found = json.loads((tmp_path / "train_step-cpu.json").read_text(encoding="utf-8"))
    ours = found["shapes"]["tiny-clip"]["contenders"]["l_lora"]
    assert len(ours["seconds"]) == len(ours["cpu_seconds"]) == 2
    assert min(ours["seconds"]) > 0
    assert ours["memory"][0]["peak"] >= ours["memory"][0]["built"] > 0
    assert {"torch", "peft", "transformers"} <= ours["versions"].keys()
    assert "Tangora L-LoRA" in document.read_text(encoding="utf-8")


def test_a_failing_worker_is_reported(capfd):
    with pytest.raises(SystemExit, match="stopped with exit code 2"):
        train_step._once("tiny-clip", "lora", "nonsense", options(threads=1, peers=train_step.PEERS))
    assert "invalid choice" in capfd.readouterr().err


@pytest.mark.skipif(not train_step.PEERS.exists(), reason="make bench-peers has not been run")
def test_the_wrapper_computes_the_same(tmp_path):
    arguments = ["tiny-t5", "lora", "check", "--reference", str(tmp_path), "--threads", "1"]
    for python, name in ((sys.executable, "lora"), (str(train_step.PEERS), "jvp_wrapper")):
        arguments[1] = name
        command = [python, "-W", "ignore", str(BENCHMARKS / "step_worker.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    check = json.loads(done.stdout)
    assert max(check["logits_at_start"], check["logits"], check["gradient"]) < 1e-4
    assert check["effect_of_b"] > 1e-2
