"""Jobs as values: their plan, their keys, their records, and one of them done from a command."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
import threading

import pytest
from filelock import FileLock
from typer.testing import CliRunner

import tangora
from tangora.cli import app
from tangora.config.recipe import Recipe, load_recipe
from tangora.errors import ArgumentError, DataError, OutputError, RecipeError
from tangora.progress import Progress
from tangora.runs.context import Context
from tangora.runs.execution import perform
from tangora.runs.folder import claim
from tangora.runs.runner import missing
from tangora.runs.stages.cells import cells
from tangora.runs.stages.scores import FusionScoresJob
from tangora.support.validation import validate
from tiny_run import recipe_for


def of_kind(context, kind):
    return [job for job in context.plan if job.kind == kind]


def ignore(event):
    pass


def test_every_job_is_behind_those_that_it_reads_and_is_a_value(short_run):
    jobs = list(Context.open(short_run).plan)
    assert [job.kind for job in jobs] == [
        "expert", "expert", "zero-shot", "expert-scores", "expert-scores", "fusion-scores", "tables", "fused", "report",
    ]  # fmt: skip
    seen = set()
    for job in jobs:
        assert set(job.inputs) <= seen
        seen.add(job.key)
        assert pickle.loads(pickle.dumps(job)) == job
    assert [job.key for job in Context.open(short_run).plan] == [job.key for job in jobs]


def test_nothing_is_loaded_to_list_the_jobs(short_run, monkeypatch):
    monkeypatch.setattr("tangora.runs.context.load_base", None)
    assert missing(Context.open(short_run)) == []


def test_a_block_has_a_bounded_number_of_subsets(short_recipe, short_run, monkeypatch):
    monkeypatch.setattr("tangora.runs.stages.score_jobs.SUBSETS", 2)
    raw = short_recipe.model_dump(mode="json")
    raw["tasks"] += [{**raw["tasks"][0], "name": name} for name in ("third", "fourth")]
    recipe = type(short_recipe).model_validate(raw)
    jobs = [job for job in Context(short_run.parent / "absent", recipe).plan if isinstance(job, FusionScoresJob)]
    assert [len(job.subsets) for job in jobs] == [2, 2, 2, 2, 2, 1]  # 6 + 4 + 1 subsets


def test_what_takes_long_is_a_job_by_itself_and_the_order_stays(short_recipe, short_run):
    raw = short_recipe.model_dump(mode="json")
    raw["tasks"] += [{**raw["tasks"][0], "name": "third"}]
    raw["modes"] = {"lora": {}, "tangent": {"linearize": "model"}}
    raw["fusion"]["methods"] = [
        {"method": "average"},
        {"method": "task_arithmetic", "weights": [0.3, 0.5]},
        {"method": "task_arithmetic", "search": "lorahub"},
        {"method": "average", "name": "polished", "polish": {"rank": 1, "rows": 4}, "sizes": [3], "modes": ["lora"]},
        {"method": "ties"},
    ]
    recipe = type(short_recipe).model_validate(raw)
    jobs = [job for job in Context(short_run.parent / "absent", recipe).plan if isinstance(job, FusionScoresJob)]
    light = ("average", "task_arithmetic")
    assert [(job.mode, job.entries, len(job.subsets)) for job in jobs] == [
        ("lora", light, 4),
        *[("lora", ("lorahub",), 1)] * 4,
        ("lora", ("polished",), 1),
        ("lora", ("ties",), 4),
        ("tangent", (*light, "lorahub", "ties"), 4),  # on columns, where a search takes a moment
    ]
    listed = [(cell.mode, cell.subset, cell.entry.label) for job in jobs for cell in job.cells(recipe)]
    assert sorted(listed) == sorted((cell.mode, cell.subset, cell.entry.label) for cell in cells(recipe))
    assert jobs[1].label == "fuse · lora · delta · lorahub · plain+good"
    assert len({job.key for job in jobs}) == len(jobs)


def test_the_whole_run_is_reported_from_its_preparation_to_its_end(short_recipe, short_copy, monkeypatch):
    class States(Progress):
        def __init__(self):
            self.seen = []

        def overall(self, state):
            self.seen.append(state)

    monkeypatch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
    shutil.rmtree(short_copy / "fused")
    states = States()
    tangora.run(short_recipe, short_copy, progress=states)
    first, *others = states.seen
    assert (first.stage, first.fraction, first.remaining, first.jobs) == ("prepare", 0.0, None, 0)
    assert [state.fraction for state in others] == sorted(state.fraction for state in others)
    last = others[-1]
    assert last.fraction == 1.0
    assert last.done == last.jobs > 0


def test_a_result_that_changed_is_made_again_and_what_reads_it_only_if_it_differs(short_copy):
    context = Context.open(short_copy)
    (job,) = of_kind(context, "fusion-scores")
    (path,) = job.files(context)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    left = [job.kind for job in missing(Context.open(short_copy))]
    assert left == ["fusion-scores", "tables", "fused", "report"]
    again = Context.open(short_copy)
    assert perform(again.plan[job.key], again, ignore)
    assert path.read_bytes() == whole
    assert missing(Context.open(short_copy)) == []


def test_an_adapter_that_changed_is_noticed(short_copy):
    weights = short_copy / "adapters" / "lora" / "plain"
    shutil.copy(short_copy / "adapters" / "lora" / "good" / "adapter_model.safetensors", weights)
    kinds = {job.kind for job in missing(Context.open(short_copy))}
    assert kinds == {"expert-scores", "fusion-scores", "tables", "fused", "report"}


def test_rows_that_changed_since_the_plan_are_refused(short_run, short_recipe, tmp_path):
    run, data = shutil.copytree(short_run, tmp_path / "copy"), tmp_path / "train.jsonl"
    rows = [{"text": f"a {name}", "label": label} for label, name in enumerate(("red", "green", "blue"))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    raw = short_recipe.model_dump(mode="json")
    raw["tasks"][0]["source"]["jsonl"]["train"] = str(data)
    recipe = type(short_recipe).model_validate(raw)
    context = Context(run, recipe)
    context.sources = Context.open(run).sources
    with pytest.raises(DataError, match="rows changed since the run was planned at task plain"):
        context.task("plain")


def test_the_second_process_waits_and_has_nothing_to_do(short_copy):
    context = Context.open(short_copy)
    (job,) = of_kind(context, "zero-shot")
    did = []
    lock = FileLock(short_copy / "cache" / "locks" / f"{job.key}.lock")
    with lock:
        thread = threading.Thread(target=lambda: did.append(perform(job, context, ignore)))
        thread.start()
        thread.join(0.3)
        assert did == []
    thread.join(60)
    assert did == [False]


def test_commands_list_the_jobs_and_do_one(short_copy):
    def command(*words):
        done = CliRunner().invoke(app, [*words], catch_exceptions=True)
        return done.exit_code, done.stdout, done.exception

    code, out, _ = command("jobs", str(short_copy), "--json", "--quiet")
    listed = json.loads(out)["jobs"]
    assert code == 0
    assert all(job["done"] for job in listed)
    scores = next(job for job in listed if job["kind"] == "zero-shot")
    (short_copy / "cache" / "outcomes" / f"{scores['key']}.json").unlink()
    code, out, _ = command("jobs", str(short_copy), "--quiet")
    assert out.splitlines()[-1] == "4 of 9 jobs are done"  # what reads it is not done either
    code, out, _ = command("job", str(short_copy), scores["key"][:10], "--quiet")
    assert (code, out.startswith("score · zero-shot: done in ")) == (0, True)
    code, out, _ = command("job", str(short_copy), scores["key"], "--json", "--quiet")
    assert json.loads(out)["did"] is False
    shutil.rmtree(short_copy / "adapters" / "lora" / "plain")
    last = listed[-1]["key"][:12]
    code, _, error = command("job", str(short_copy), last, "--quiet")
    assert isinstance(error, ArgumentError)
    assert "reads what" in str(error)
    assert "(lora · plain)" in str(error)
    assert isinstance(command("job", str(short_copy), "zzz")[2], ArgumentError)


def test_what_kills_have_left_beside_complete_outputs_is_removed(short_recipe, short_copy, monkeypatch):
    monkeypatch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
    tangora.run(short_recipe, short_copy)
    before = sorted(short_copy.rglob("*"))
    expert, *_ = Context.open(short_copy).plan
    outputs = [short_copy / "cache" / "jobs" / f"{expert.key}.json", expert.files(Context.open(short_copy))[0].parent]
    left = [path.with_name(f".{path.name}.tmp-abcdefgh") / path.name for path in outputs]
    left.append(short_copy / "cache" / "training" / expert.key / "0123" / "checkpoint-1")
    outputs[0].unlink()
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "a").write_text("x")
    other = short_copy / "cache" / "training" / "of-another-recipe"
    other.mkdir()
    tangora.run(short_recipe, short_copy)
    assert sorted(short_copy.rglob("*")) == sorted({*before, other.parent, other})
    assert json.loads(outputs[0].read_text())["seconds"] is None


def test_a_run_that_was_killed_before_its_recipe_was_there_is_one(short_recipe, tmp_path):
    for name in (".recipe.yaml.tmp-abcdefgh", "cache"):
        (tmp_path / name).mkdir()
    claim(tmp_path, short_recipe, overwrite=False)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(OutputError, match="not a run"):
        claim(tmp_path, short_recipe, overwrite=False)


def test_where_jobs_are_done_does_not_make_another_run(short_run, short_recipe):
    raw = short_recipe.model_dump(mode="json")
    elsewhere = type(short_recipe).model_validate({**raw, "executor": {"name": "processes", "workers": 3}})
    claim(short_run, elsewhere, overwrite=False)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["executor.name=proceses"], "no such executor, got 'proceses': did you mean 'processes'"),
        (["executor.name=processes", "executor.wrokers=3"], "unknown setting 'wrokers': did you mean 'workers'"),
        (["executor.name=processes", "executor.workers=0"], "workers: input should be greater than or equal to 1"),
        (["executor.workers=2"], "executor serial: unknown setting 'workers': it has none"),
    ],
)
def test_settings_of_an_executor_are_its_own(settings, match):
    assert load_recipe("quickstart", ["executor=processes"]).executor.settings.workers == 2
    with pytest.raises(RecipeError, match=match):
        load_recipe("quickstart", settings)


def test_experts_are_scored_on_their_own_tasks_alone_if_asked(short_recipe, short_run, short_copy):
    raw = short_recipe.model_dump(mode="json")
    raw["evaluation"] |= {"others": False}
    tangora.run(type(short_recipe).model_validate(raw), short_copy, overwrite=True)
    rows, all_rows = (list(csv.DictReader((run / "scores.csv").open())) for run in (short_copy, short_run))
    of_others = [row for row in all_rows if row["method"] == "expert" and row["task"] not in (row["subset"], "mean")]
    assert {row["task"] for row in of_others} == {"plain", "good", "mean_all"}
    assert rows == [row for row in all_rows if row not in of_others]
    assert (short_copy / "report.html").is_file()


def test_fusions_are_scored_on_their_own_tasks_alone_if_asked(tiny_bert, text_data, tmp_path, monkeypatch):
    monkeypatch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
    raw = recipe_for(tiny_bert, text_data) | {"modes": {"lora": {}}}
    raw["fusion"] = {"subsets": {"sizes": [2], "per_size": 1}, "methods": [{"method": "average"}]}
    raw["evaluation"] |= {"others": False}
    run = tangora.run(validate(Recipe, raw, "test"), tmp_path / "run")
    rows = list(csv.DictReader((run / "scores.csv").open()))
    fused = [row for row in rows if row["method"] == "average"]
    assert {row["task"] for row in fused} == {*fused[0]["subset"].split("+"), "mean"}
    assert len(fused) == 3
