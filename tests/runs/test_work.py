"""Estimated work of jobs that fuse: what searches say of themselves, and what is unknown."""

from __future__ import annotations

import pytest

import plugins
from tangora.cli.tables import plan_lines
from tangora.coefficients.searches.adamerging import AdamergingSettings
from tangora.coefficients.searches.convex import ConvexSettings
from tangora.coefficients.searches.learned import LearnedSettings
from tangora.coefficients.searches.lorahub import LorahubSettings
from tangora.config.fusion import SearchSettings
from tangora.config.recipe import Recipe
from tangora.progress import Progress
from tangora.runs.preflight import preflight
from tangora.runs.sources import Sources, TaskFacts
from tangora.runs.stages.cells import cells
from tangora.runs.stages.work import cells_work
from tangora.support.seams import SEARCHES

TEST, VALIDATION = 100, {"plain": 10, "good": 40}
SCORED = 2 * TEST


@pytest.fixture
def work(short_recipe):
    """Resources of one comparison of both tasks in a mode."""
    rows = {name: {"train": 9, "validation": count, "test": TEST} for name, count in VALIDATION.items()}
    sources = Sources("base", {name: TaskFacts(name, of_task, classes=True) for name, of_task in rows.items()})

    def of(entry, mode="lora", selection=("validation",)):
        raw = short_recipe.model_dump(mode="json")
        raw |= {"modes": {mode: {"train": mode}}}
        raw["fusion"] = {"methods": [{"method": "task_arithmetic", **entry}], "selection": list(selection)}
        recipe = Recipe.model_validate(raw)
        return cells_work(recipe, sources, list(cells(recipe)))

    return of


def test_a_search_says_how_many_rows_it_passes():
    rows = list(VALIDATION.values())
    assert LorahubSettings(budget=7).passes(rows) == 7 * 50
    assert LearnedSettings(steps=5, rows_per_step=16).passes(rows) == 3 * (5 * (10 + 16) + 50)
    assert AdamergingSettings(rows_per_step=8).passes(rows) == 3 * (500 * 16 + 50)
    assert AdamergingSettings(rows_per_step=8, steps=2).passes(rows) == 3 * (2 * 16 + 50)
    assert ConvexSettings().passes(rows) is None
    assert SearchSettings(name="any").passes(rows) is None


@pytest.mark.parametrize(
    ("entry", "chosen"),
    [
        ({"weights": 0.3}, 0),
        ({"weights": [0.1, 0.2, 0.3]}, 3 * 50),
        ({"search": {"name": "lorahub", "budget": 7}}, 7 * 50),
        ({"search": {"name": "learned", "steps": 5}}, 3 * (5 * (10 + 16) + 50)),
        ({"search": {"name": "learned", "steps": 5, "labels": 20}}, 3 * (5 * (10 + 16) + 30)),
        ({"search": {"name": "adamerging", "per": "site", "steps": 2}}, 3 * (2 * (10 + 16) + 50)),
    ],
    ids=str,
)
def test_work_is_what_is_passed_to_choose_and_then_to_score(work, entry, chosen):
    found = work(entry)
    assert (found.work, found.known) == (chosen + SCORED, True)


def test_each_way_of_selecting_looks_at_its_own_split(work):
    found = work({"weights": [0.1, 0.2, 0.3]}, selection=("validation", "oracle"))
    assert found.work == 3 * (50 + 2 * TEST) + SCORED


def test_searches_on_columns_pass_nothing_more(work):
    for search in ("convex", "learned", "lorahub"):
        found = work({"search": search}, mode="tangent")
        assert found.known
        assert found.work < 0.1 * SCORED + 40 * 50 * 0.01 + 1
    assert not work({"search": {"name": "convex", "per": "site"}}, mode="tangent").known


def test_a_search_that_does_not_say_is_unknown(work, tmp_path, short_recipe):
    folder = plugins.install(tmp_path / "site", "search")
    with plugins.installed(folder, SEARCHES):
        found = work({"search": "coordinates"})
        assert (found.work, found.known) == (SCORED, False)
        raw = short_recipe.model_dump(mode="json")
        raw["fusion"]["methods"] = [{"method": "task_arithmetic", "search": "coordinates"}]
        records = tmp_path / "run" / "cache" / "jobs"
        records.mkdir(parents=True)
        (records / "one.json").write_text('{"kind": "expert", "work": 10.0, "seconds": 1.0}')
        planned = preflight(Recipe.model_validate(raw), tmp_path / "run", Progress())
    assert planned.unknown == 1
    assert list(plan_lines(planned))[-1].endswith(
        "in one process, and 1 of them longer: their searches do not say how long"
    )
