"""A run of several seeds: what is done once, what is done with each, and what is there already."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from statistics import fmean, stdev

import pytest

import tangora
from tangora.config.recipe import Recipe, load_recipe
from tangora.errors import ArgumentError, OutputError, RecipeError
from tangora.report.data import read_run, read_scored
from tangora.report.summary import Summary
from tangora.runs.compared import compare_runs
from tangora.runs.comparison import CompareSettings
from tangora.runs.context import Context
from tangora.runs.folder import claim
from tangora.runs.plan import plan
from tangora.runs.runner import missing
from tangora.runs.stages.experts import ExpertJob

pytestmark = pytest.mark.drawn

METHODS = [
    {"method": "average"},
    {"method": "task_arithmetic", "weights": [0.5, 1.0]},
    {"method": "dare", "parameters": {"density": 0.5}},
]


def recipe_with(recipe, **changes):
    raw = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in ("seed", "seeds")}
    raw["fusion"]["methods"] = METHODS
    raw["lora"] |= {"r": 4, "alpha": 32, "target_modules": ["query", "value", "dense"]}
    raw["training"] |= {"steps": 3, "learning_rate": 0.05}
    return Recipe.model_validate(raw | changes)


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def adapters(run):
    return {path.relative_to(run): path.read_bytes() for path in sorted(run.rglob("adapters/**/*.safetensors"))}


@pytest.fixture(scope="session")
def seeded(short_recipe, tmp_path_factory):
    """A run of seed 3, and the same folder with seeds 5 and 8 too; copies of both."""
    folder = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
        run = tangora.run(recipe_with(short_recipe, seed=3), folder / "run", progress=None)
        one = shutil.copytree(run, folder / "one")
        times = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
        tangora.run(recipe_with(short_recipe, seeds=[3, 5, 8]), run, progress=None)
    return one, run, times


def test_more_seeds_are_added_to_a_run_and_nothing_is_done_again(seeded):
    one, run, times = seeded
    before, after = adapters(one), adapters(run)
    assert {path: after[path] for path in before} == before
    kept = [path for path in times if "adapters" in path.parts or "fused" in path.parts or "outcomes" in path.parts]
    assert len(kept) > 10
    assert [path for path in kept if path.stat().st_mtime_ns != times[path]] == []
    assert {path.parts[:2] for path in after if path not in before} == {("seeds", "5"), ("seeds", "8")}
    assert len(after) == 3 * len(before)
    assert len(set(after.values())) == len(after), "every seed has weights of its own"


def test_the_first_seed_has_the_keys_and_files_of_a_run_with_it_alone(seeded):
    one, run, _ = seeded
    alone, several = Context.open(one), Context.open(run)
    keys = [job.key for job in several.plan]
    assert len(set(keys)) == len(keys)
    assert [job.key for job in alone.plan if job.kind not in ("tables", "report") and job.key not in keys] == []
    assert {job.seed for job in several.plan} == {None, 3, 5, 8}
    assert [job.kind for job in several.plan if job.seed is None] == ["zero-shot", "tables", "report"]
    assert [job.label for job in several.plan if isinstance(job, ExpertJob)][2] == "lora · plain · seed 5"
    lonely = {path.relative_to(one) for path in one.rglob("*.*") if path.is_file() and "locks" not in path.parts}
    assert not [path for path in lonely if not (run / path).exists()]
    assert not [path for path in lonely if "seed" in path.as_posix()], "a run of one seed has no file of seeds"


def test_what_is_made_of_given_experts_alone_is_done_once(seeded):
    _, run, _ = seeded
    context = Context.open(run)
    raw = {key: value for key, value in context.recipe.model_dump(mode="json").items() if key != "seeds"}
    given = {"plain": "a", "good": "b"}
    modes = {"given": {"experts": given}, "half": {"experts": {"plain": "a"}}, "trained": {"train": "tangent"}}
    raw["fusion"]["methods"] = [{"method": "regmean"}]
    digests = {"given": given, "half": {"plain": "a"}}
    sources = replace(context.sources, given=digests)
    jobs = plan(Recipe.model_validate({**raw, "seeds": [3, 5], "modes": modes}), sources)
    once = [job.label for job in jobs if job.seed is None]
    copies = ["given · plain · given", "given · good · given", "half · plain · given"]
    scores = ["score · zero-shot", "score · given · plain", "score · given · good", "score · half · plain"]
    assert once == [*copies, *scores, "tables", "report"]
    assert len([job for job in jobs if job.kind == "statistics" and job.mode == "given"]) == 4, "rows differ by seed"
    single = plan(Recipe.model_validate({**raw, "seed": 3, "modes": modes}), sources)
    assert {job.key for job in single} - {job.key for job in jobs} == {single.jobs[-1].key, *_tables(single)}


def _tables(jobs):
    return {job.key for job in jobs if job.kind == "tables"}


def test_tables_are_means_over_the_seeds_and_pair_their_rows(seeded):
    one, run, _ = seeded
    rows, each = table(run / "scores.csv"), table(run / "scores-by-seed.csv")
    place = ("mode", "method", "space", "subset", "selection", "task", "split", "metric")
    for row in rows:
        scores = [float(r["score"]) for r in each if all(r[name] == row[name] for name in place)]
        assert len(scores) == 3
        assert float(row["score"]) == pytest.approx(fmean(scores), abs=2e-6)  # 6 digits each
        assert float(row["score_sd"]) == pytest.approx(stdev(scores), abs=5e-6)
    shares = ("normalized", "normalized_best", "note")  # left out with all seeds if an expert is too weak with one
    first = [{k: v for k, v in row.items() if k not in ("seed", *shares)} for row in each if row["seed"] == "3"]
    alone = [{k: v for k, v in row.items() if k not in shares} for row in table(one / "scores.csv")]
    assert first == alone, "the rows of the first seed are those of a run with it alone"
    assert {row["seed"] for row in each} == {"3", "5", "8"}
    assert any(float(row["score_sd"]) > 0 for row in rows), "the seeds of this test have to differ"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["seeds"] == [3, 5, 8]
    entry = next(row for row in summary["rows"] if row["method"] == "dare")
    assert entry["absolute"] == pytest.approx(fmean(entry["absolute_seeds"]))
    assert "seed" not in json.dumps(json.loads((one / "summary.json").read_text()))


def test_random_methods_draw_anew_with_each_seed(seeded):
    _, run, _ = seeded
    drawn = [run / "fused" / "lora" / "dare", *(run / "seeds" / s / "fused" / "lora" / "dare" for s in ("5", "8"))]
    assert [json.loads((path / "tangora.json").read_text())["fused"]["seed"] for path in drawn] == [3, 5, 8]


def test_a_finished_run_of_seeds_has_nothing_left_to_do(seeded):
    _, run, _ = seeded
    assert missing(Context.open(run)) == []


def test_a_run_that_was_stopped_after_a_seed_goes_on(seeded, tmp_path, monkeypatch):
    _, run, _ = seeded
    monkeypatch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "seeds" / "8")
    context = Context.open(copy)
    kinds = {job.kind for job in missing(context)}
    assert all(job.seed in (8, None) for job in missing(context))
    assert kinds == {"expert", "expert-scores", "fusion-scores", "tables", "fused", "report"}
    tangora.run(load_recipe(copy / "recipe.yaml"), copy, progress=None)
    assert adapters(copy) == adapters(run)
    for name in ("scores.csv", "scores-by-seed.csv", "summary.json", "candidates.csv", "similarity.json"):
        assert (copy / name).read_bytes() == (run / name).read_bytes()


def test_what_other_seeds_make_of_a_run(seeded, short_recipe):
    _, run, _ = seeded
    recipe = load_recipe(run / "recipe.yaml")
    assert recipe.every_seed == (3, 5, 8)
    claim(run, recipe_with(short_recipe, seeds=[3, 8, 5, 11]), overwrite=False)
    for seeds in ([3, 5], [5, 3, 8], [0, 3, 5, 8]):
        with pytest.raises(OutputError, match=r"another recipe \(seeds: \[3, 5, 8\] → \["):
            claim(run, recipe_with(short_recipe, seeds=seeds), overwrite=False)
    with pytest.raises(OutputError, match="seeds"):
        claim(run, recipe_with(short_recipe, seed=3), overwrite=False)


def test_fewer_seeds_leave_no_table_of_more(seeded, short_recipe, tmp_path, monkeypatch):
    one, run, _ = seeded
    monkeypatch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
    copy = shutil.copytree(run, tmp_path / "run")
    tangora.run(recipe_with(short_recipe, seed=3), copy, overwrite=True, progress=None)
    assert not (copy / "scores-by-seed.csv").exists()
    assert (copy / "scores.csv").read_bytes() == (one / "scores.csv").read_bytes()
    assert read_run(copy).seeds == ()


def test_reports_and_tables_of_the_run(seeded):
    one, run, _ = seeded
    summary = Summary(read_run(run))
    assert [len(each.rows) for each in summary.at_seeds] == [len(Summary(read_run(one)).rows)] * 3
    key, mean = next((k, m) for k, m in summary.at_largest().items() if k.method == "dare")
    alone = [each.at_largest()[key].score for each in summary.at_seeds]
    assert list(mean.seeds) == pytest.approx(alone, abs=2e-6)
    assert mean.sd == pytest.approx(stdev(alone), abs=5e-6)
    assert [row.score for row in read_scored(run).by_seed[3]] == [row.score for row in read_scored(one).scores]

    grid = tangora.table(run, digits=4)
    cell = next(cells for names, cells in grid.rows if names == ["DARE"])[grid.columns.index("mean")]
    assert (cell.text, cell.deviation) == (f"{fmean(alone):.4f}", f"{stdev(alone):.4f}")
    assert "mean ± sample standard deviation (n - 1) of 3 seeds" in grid.notes
    assert tangora.table(run, over="seed", digits=4).rows == grid.rows
    beside = tangora.table([one, run], methods=["dare"])
    assert {(names[0], cell.deviation is not None) for names, cells in beside.rows for cell in cells} == {
        ("one", False),
        ("run", True),
    }
    with pytest.raises(ArgumentError, match="same seed"):
        tangora.table([one, run], over="seed")


def test_runs_are_compared_with_the_seeds_that_both_have(seeded, tmp_path):
    one, run, _ = seeded
    made = compare_runs(run, None, CompareSettings(baseline="average", permutations=200))
    (dare,) = [row for row in made.rows if row.method == "dare"]
    assert list(dare.seeds) == [3, 5, 8]
    assert dare.test.difference == pytest.approx(fmean(dare.test.by_seed))
    assert "sd" in made.grid().columns
    same = compare_runs(one, run, CompareSettings(permutations=200))
    assert {row.test.difference for row in same.rows} == {0.0}, "both have seed 3"
    assert any("seeds 5, 8: left out" in note for note in same.notes)
    other = shutil.copytree(run, tmp_path / "other")
    rows = json.loads((other / "cache" / "rows.json").read_text())
    rows["seeds"] = {"0": rows["seeds"]["3"], "1": rows["seeds"]["5"]}
    (other / "cache" / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(ArgumentError, match=r"no seed in common, got '3, 5, 8 and 0, 1'"):
        compare_runs(run, other, CompareSettings())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["seeds=[]"], r"there is none: list at least one"),
        (["seeds=[1, 1]"], r"1 is listed twice.*seeds"),
        (["seeds=[1, '1']"], r"1 is listed twice.*seeds"),
        (["seeds=[0, -1]"], r"greater than or equal to 0, got -1 at seeds\.1"),
        (["seeds=[0, many]"], r"valid integer.*'many' at seeds\.1"),
        (["seeds=[many, 0]"], r"valid integer.*'many' at seeds\.0"),
        (["seeds=[0.5, 1]"], r"fractional part, got 0\.5 at seeds\.0"),
        (["seeds=0,1"], r"valid list, got '0,1' at seeds"),
        (["seed=1", "seeds=[1, 2]"], r"seed and seeds are both given"),
    ],
)
def test_seeds_that_are_none_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe("quickstart", settings)


def test_a_setting_replaces_the_seeds_of_a_file(tmp_path):
    one = load_recipe("quickstart")
    assert load_recipe("quickstart", ["seeds=[0]"]) == one
    several = load_recipe("quickstart", ["seeds=['4', 2]"])
    assert (several.seed, several.every_seed, several.first_seed) == (4, (4, 2), 4)
    (tmp_path / "r.yaml").write_text(several.to_yaml())
    assert load_recipe(tmp_path / "r.yaml") == several
    assert load_recipe(tmp_path / "r.yaml", ["seed=0"]).every_seed == (0,)
    assert Recipe.model_validate(several.model_dump(mode="json")) == several
