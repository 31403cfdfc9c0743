"""Analyses of a whole tiny run: what they compute, what they cost, and that they resume."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

import tangora
from tangora.adapters.adapter import Adapter, Metadata, load
from tangora.adapters.application import applied
from tangora.analysis import sign_conflict, subspace_overlap
from tangora.config.recipe import load_recipe
from tangora.errors import ArgumentError, DataError, FileError
from tangora.evaluation.evaluator import evaluate
from tangora.progress import Progress
from tangora.report.data import SCORE_COLUMNS
from tangora.runs.runner import prepare
from tangora.runs.stages.analysis import analyze
from tangora.runs.stages.analysis_plan import AnalysisPlan, AnalysisSettings
from tangora.runs.stages.measures import limited, network_logits
from tangora.tangent import TangentTaskModel, direction_of, make_columns
from tangora.tasks import TaskModel, collate
from tangora.updates.task_vector import Dense, LowRank

TASKS = ("plain", "good", "photo")
FEW = {"points": 2, "margin": 0.0, "rows": 4}


MODES = {"full": {"train": "full"}, "lora": {}, "l-lora": {"linearize": "module"}, "tangent": {"linearize": "model"}}


def expert(mode: str, task: int) -> Adapter:
    """Random updates of a tiny BERT, large enough to change what it answers."""
    start, moved = torch.Generator().manual_seed(0), torch.Generator().manual_seed(10 * len(mode) + task)
    linearize = {"l-lora": "module", "tangent": "model"}.get(mode, "none")
    updates: dict[str, LowRank | Dense] = {}
    for layer, name in itertools.product((0, 1), ("query", "value")):
        site = f"encoder.layer.{layer}.attention.self.{name}"
        a = torch.randn(2, 32, generator=moved if linearize == "none" else start)
        low_rank = LowRank(torch.randn(32, 2, generator=moved), a, 0.3)
        updates |= {f"{site}.weight": Dense(low_rank.dense())} if mode == "full" else {site: low_rank}
    kind = "full" if mode == "full" else "lora"
    about = Metadata(kind=kind, mode=mode, task=TASKS[task], stage=f"{mode}-{task}", linearize=linearize)
    return Adapter(updates, about)


@pytest.fixture
def run(tiny_bert, text_data, tmp_path, monkeypatch):
    """What analyses need of a run of three tasks in four modes; the report is not drawn."""
    monkeypatch.setattr("tangora.report.build", lambda folder: folder / "report.html")
    files = {"train": f"{text_data}/train.parquet", "test": f"{text_data}/test.parquet"}
    task = {"source": {"parquet": files}, "labels": ["red", "green", "blue"], "validation_fraction": 0.3}
    prompts = {"plain": "{}", "good": "good {}", "photo": "a photo of {}"}
    recipe = {
        "name": "tiny",
        "base": {"family": "text-zero-shot", "model": str(tiny_bert)},
        "tasks": [{"name": name, **task, "templates": [prompts[name]]} for name in TASKS],
        "modes": MODES,
        "evaluation": {"batch_size": 8},
    }
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "scores.csv").write_text(",".join(SCORE_COLUMNS) + "\n")
    for mode, index in itertools.product(MODES, range(3)):
        expert(mode, index).save(folder / "adapters" / mode / TASKS[index])
    return folder


def entries(run, kind):
    return json.loads((run / "analysis" / f"{kind}.json").read_text())["entries"]


def test_signs_and_angles_are_those_of_the_experts(run):
    analyze(AnalysisPlan(run, AnalysisSettings(only=["signs", "angles"])))
    assert [e["mode"] for e in entries(run, "signs")] == list(MODES)
    vectors = [load(run / "adapters" / "lora" / task).task_vector for task in TASKS]
    signs, angles = (next(e for e in entries(run, kind) if e["mode"] == "lora") for kind in ("signs", "angles"))
    assert signs["counted"] == sign_conflict(vectors).tolist()
    assert signs["weighted"] == sign_conflict(vectors, weighted=True).tolist()
    assert angles["columns"] == subspace_overlap(vectors, rank=8).columns.tolist()
    linearized = next(e for e in entries(run, "angles") if e["mode"] == "l-lora")
    np.testing.assert_allclose(linearized["rows"], 1.0, atol=1e-6)  # one A₀


def test_a_plane_is_what_fusing_and_scoring_by_hand_give(run):
    analyze(
        AnalysisPlan(
            run, AnalysisSettings(only=["planes"], modes=["lora"], pairs="photo+plain", points=3, margin=0.5, rows=9)
        )
    )
    (entry,) = entries(run, "planes")
    assert (entry["tasks"], entry["coefficients"]) == (["plain", "photo"], [-0.5, 0.0, 0.5, 1.0, 1.5])
    assert entry["rows"] == {"plain": 9, "photo": 9}
    base, tasks = prepare(load_recipe(run / "recipe.yaml"))
    small = [limited(t, "validation", 9, 0) for t in tasks if t.name != "good"]
    folders = [run / "adapters" / "lora" / t.name for t in small]

    def at(first, second):
        fused = tangora.fuse(folders, weights=[first, second])
        return evaluate(fused, base, small, split="validation", batch_size=8)

    alone, other, together = at(0.5, 0.0), at(0.0, 1.5), at(0.5, 1.5)
    expected = sum(
        np.mean(np.array(a[name].values) != np.array(together[name].values))
        for name, a in (("plain", alone), ("photo", other))
    )
    assert entry["error"][2][4] == pytest.approx(expected)
    assert entry["error"][1][1] == 0.0
    assert np.max(entry["error"]) > 0
    assert entry["loss"][2][4] == pytest.approx(np.mean([r.loss for r in together.values()]), abs=1e-5)
    assert entry["scores"]["photo"][2][4] == together["photo"].score
    inside = np.array(entry["error"])[1:4, 1:4]
    assert entry["mean_error"] == pytest.approx(inside.mean())


def test_the_cost_is_said_beforehand_and_kept(run, monkeypatch):
    from tangora.tasks import TaskModel

    settings = AnalysisSettings(
        only=["planes"], modes=["lora", "l-lora"], pairs="plain+good", points=2, margin=0.0, rows=12
    )
    plan = AnalysisPlan(run, settings)
    lines = list(plan.lines())
    assert "2 planes" in lines[0]
    assert lines[1] == "pairs: plain+good of 3; --pairs names others"
    assert lines[-1] == "at most 32 forward passes of up to 8 rows"  # 2 modes · 4 models · 2 tasks · 2 batches
    passes = []
    genuine = TaskModel.predict_batch
    monkeypatch.setattr(TaskModel, "predict_batch", lambda *a: passes.append(1) or genuine(*a))
    analyze(plan)
    assert 0 < len(passes) <= 32


def test_a_second_call_computes_nothing_and_changes_nothing(run, monkeypatch):
    settings = AnalysisSettings(modes=["lora"], pairs="plain+good", **FEW)
    analyze(AnalysisPlan(run, settings))
    before = {p: p.read_bytes() for p in (run / "analysis").iterdir()}
    monkeypatch.setattr("tangora.runs.stages.analysis._measure", None)
    again = AnalysisPlan(run, settings)
    assert again.missing == []
    assert "6 of 6 exist already" in next(again.lines())
    analyze(again)
    assert {p: p.read_bytes() for p in (run / "analysis").iterdir()} == before


def test_other_pairs_and_modes_join_and_other_settings_replace(run):
    analyze(AnalysisPlan(run, AnalysisSettings(only=["planes"], modes=["lora"], pairs="good+photo", **FEW)))
    analyze(AnalysisPlan(run, AnalysisSettings(only=["planes"], modes=["full", "lora"], pairs="plain+good", **FEW)))
    found = [(e["mode"], *e["tasks"]) for e in entries(run, "planes")]
    assert found == [("full", "plain", "good"), ("lora", "plain", "good"), ("lora", "good", "photo")]
    analyze(
        AnalysisPlan(
            run, AnalysisSettings(only=["planes"], modes=["lora"], pairs="plain+good", points=3, margin=0.0, rows=4)
        )
    )
    assert [(e["mode"], len(e["coefficients"])) for e in entries(run, "planes")] == [("lora", 3)]


def test_an_expert_that_changed_is_looked_at_again(run):
    settings = AnalysisSettings(only=["signs"], modes=["lora", "full"])
    analyze(AnalysisPlan(run, settings))
    path = run / "adapters" / "lora" / "good" / "tangora.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stage": "another"}))
    assert [p.mode for p in AnalysisPlan(run, settings).missing] == ["lora"]


def test_a_tangent_plane_needs_columns_and_no_pass_after_them(run, monkeypatch):
    settings = {"only": ["planes"], "modes": ["tangent"], "margin": 0.5, "rows": 9}
    plan = AnalysisPlan(run, AnalysisSettings(pairs="plain+photo", points=3, **settings))
    assert list(plan.lines())[-1] == "at most 16 forward passes of up to 8 rows"  # 2 tasks · 2 batches · (1 + 3)
    analyze(plan)
    (entry,) = entries(run, "planes")
    base, tasks = prepare(load_recipe(run / "recipe.yaml"))
    small = [limited(t, "validation", 9, 0) for t in tasks if t.name != "good"]
    fused = tangora.fuse([run / "adapters" / "tangent" / t.name for t in small], weights=[0.5, 1.5])
    together = evaluate(fused, base, small, split="validation", batch_size=8)
    assert entry["rows"] == {"plain": 9, "photo": 9}
    assert entry["loss"][2][4] == pytest.approx(np.mean([r.loss for r in together.values()]), rel=1e-4)
    assert entry["scores"]["photo"][2][4] == together["photo"].score
    for module in ("columns", "measures"):
        monkeypatch.setattr(f"tangora.runs.stages.{module}.make_columns", None)
    again = AnalysisPlan(run, AnalysisSettings(pairs="plain+photo", points=5, **settings))
    assert list(again.lines())[-1].startswith("at most 0 forward passes")
    analyze(again)
    assert len(entries(run, "planes")[0]["coefficients"]) == 9


def test_the_linearity_gap_of_an_expert(run):
    plan = AnalysisPlan(run, AnalysisSettings(only=["linearity"], modes=["tangent"], rows=9))
    assert plan.missing[0].passes == 2 * (6 + 2)
    analyze(plan)
    found = entries(run, "linearity")
    assert [e["tasks"] for e in found] == [[task] for task in TASKS]
    base, tasks = prepare(load_recipe(run / "recipe.yaml"))
    small, adapter = limited(tasks[1], "validation", 9, 0), load(run / "adapters" / "tangent" / "good")
    # by hand: the tangent model's own logits, and those of the network with weights at φ₀ + 1.5·τ
    ((_, batch),) = small.splits["validation"].batches(9, collate(small, base))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    longer = replace(adapter, updates={site: u * 1.5 for site, u in adapter.updates.items()})
    with torch.no_grad():
        origin = TaskModel(base.backbone, small, base).logits(inputs)
        tangent = TangentTaskModel(base.backbone, small, base, direction_of(longer, base.backbone)).logits(inputs)
        with applied(base.backbone, longer):
            network = TaskModel(base.backbone, small, base).logits(inputs)
    assert found[1]["distance"][-1] == pytest.approx(
        float((network - tangent).norm() / (network - origin).norm()), rel=1e-4
    )
    assert found[1]["agreement"][-1] == pytest.approx(float((network.argmax(1) == tangent.argmax(1)).float().mean()))
    assert (found[1]["distance"][0], found[1]["agreement"][0]) == (0.0, 1.0)
    assert 0 < found[1]["distance"][1] < found[1]["distance"][-1]


@pytest.mark.parametrize("family", ["text", "answer"])
def test_lines_of_the_network_are_those_of_the_columns(request, family):
    base, task = (request.getfixturevalue(f"{family}_{what}") for what in ("base", "task"))
    name = "encoder.layer.0.attention.self.query" if family == "text" else "encoder.block.0.layer.0.SelfAttention.q"
    adapter = Adapter({name: LowRank(torch.zeros(32, 1), torch.ones(1, 32))})
    columns = make_columns(base, task, "test", {"a": adapter}, batch_size=5)
    torch.testing.assert_close(network_logits(base, task, "test", adapter, 5), columns.origin, atol=1e-5, rtol=1e-5)


class InterruptAt(Progress):
    def __init__(self, when):
        self.left = when

    def advance(self, steps=1, detail=""):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_plane_goes_on_where_it_was(run, monkeypatch):
    from tangora.evaluation.evaluator import Evaluator

    settings = AnalysisSettings(only=["planes"], modes=["lora"], pairs="plain+good", points=3, margin=0.0, rows=4)
    with pytest.raises(KeyboardInterrupt):
        analyze(AnalysisPlan(run, settings), InterruptAt(4 + 5))  # base and three tasks, then five points
    assert not (run / "analysis").exists()
    measured = []
    genuine = Evaluator._measure
    monkeypatch.setattr(Evaluator, "_measure", lambda *a: measured.append(1) or genuine(*a))
    analyze(AnalysisPlan(run, settings))
    assert len(measured) == 2 * (9 - 6)  # the sixth was scored, and then the bar moved
    assert len(entries(run, "planes")) == 1


def test_pairs_without_a_common_task_come_first(run):
    assert AnalysisPlan(run).pairs[0] == ("plain", "good")
    assert len(AnalysisPlan(run, AnalysisSettings(pairs="all")).pairs) == 3


def test_limited_rows_keep_the_classes_and_their_names(text_task):
    small = limited(text_task, "test", 6, seed=0)
    assert sorted(small.splits["test"].targets) == [0, 0, 1, 1, 2, 2]
    assert small.fingerprint != text_task.fingerprint
    assert limited(text_task, "test", 10**6, seed=0).splits["test"].targets == text_task.splits["test"].targets
    with pytest.raises(DataError, match="split is missing"):
        limited(small, "train", 6, seed=0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"only": ["sings"]}, "no such name, got 'sings' at --only. Did you mean 'signs'"),
        ({"rows": 0}, "rows must be at least 1, got 0 at --rows"),
        ({"split": "tset"}, "at --split. Did you mean 'test'"),
        ({"points": 1}, "at --points"),
        ({"pairs": "plain"}, "a pair is two tasks, got 'plain' at --pairs"),
        ({"pairs": "plain+plain"}, "a pair is two tasks"),
        ({"pairs": "plain+goood"}, "got 'goood' at --pairs. Did you mean 'good'"),
        ({"modes": ["loar"]}, "got 'loar' at --modes. Did you mean 'lora'"),
    ],
)
def test_bad_settings(run, settings, match):
    with pytest.raises(ArgumentError, match=match):
        AnalysisPlan(run, AnalysisSettings(**settings))


def test_a_folder_that_is_no_finished_run(run, tmp_path):
    with pytest.raises(FileError, match="not a finished run"):
        AnalysisPlan(tmp_path)
    (run / "adapters" / "lora" / "good" / "tangora.json").unlink()
    with pytest.raises(FileError, match="file not found"):
        _ = AnalysisPlan(run).missing


def test_a_file_that_cannot_be_right(run):
    (run / "analysis").mkdir()
    (run / "analysis" / "signs.json").write_text("[]")
    with pytest.raises(FileError, match="expected a JSON object"):
        _ = AnalysisPlan(run).missing


def tangora_command(monkeypatch, capsys, *arguments):
    from tangora.cli import main

    monkeypatch.setattr("sys.argv", ["tangora", "analyze", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, *capsys.readouterr()


def test_the_command_says_the_cost_and_prints_a_table(run, monkeypatch, capsys):
    dry = tangora_command(monkeypatch, capsys, run, "--dry-run", "--pairs", "all", "--rows", "5")
    assert dry[0] == 0
    assert "pairs: plain+good, plain+photo, good+photo\n" in dry[1]
    assert "a plane: 10 x 10 models, 5 validation rows of each task" in dry[1]
    assert not (run / "analysis").exists()
    code, out, notes = tangora_command(monkeypatch, capsys, run, "--only", "signs,angles", "--modes", "lora, l-lora")
    assert code == 0
    assert "at most 0 forward passes" in notes
    assert "L-LoRA" in out
    assert "1.000" in out  # common inputs of one A₀
    assert f"report: {run / 'report.html'}" in out


def test_a_wrong_word_is_one_line(run, monkeypatch, capsys):
    code, _, err = tangora_command(monkeypatch, capsys, run, "--only", "plains")
    assert (code, err) == (
        2,
        "error: no such name, got 'plains' at --only. Did you mean 'planes'? Valid: signs, angles, planes, linearity\n",
    )
