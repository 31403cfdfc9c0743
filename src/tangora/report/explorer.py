"""The fusion explorer: a page with a run's cached logits and a slider for each task vector."""

from __future__ import annotations

import base64
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.config.recipe import Recipe, load_run_recipe
from tangora.errors import ArgumentError, FileError, RecipeError
from tangora.report import _examples, _pack, _presets
from tangora.report._page import render
from tangora.report.seeds import named
from tangora.support.extras import require
from tangora.support.files import write_text
from tangora.support.seams import FAMILIES

if TYPE_CHECKING:
    from tangora.config.recipe import TaskSettings
    from tangora.tangent.columns import Columns

__all__ = ["build", "build_all", "modes"]

SPLITS = ("validation", "test")
_PAGE = 15_000_000  # the largest number of bytes of a page
_OWN = 160_000  # reserved for everything except logits and examples
_EXAMPLES = (300_000, 3_000_000)  # reserved for examples and predictions; and their largest size
_SITE_PREDICTIONS = 200_000  # largest size of predictions of fusions per site
_UNKNOWN = "its coefficients are per layer, and the run kept no predictions of it. Run the recipe again to have them."
_METRICS = ("accuracy", "exact_match", "macro_f1", "matthews")  # those of explorer_model.js
_RANGE = (-0.5, 1.5)  # of a slider


@dataclass(frozen=True)
class _Split:
    """Columns of one split as on the page, and the total number of rows of the split."""

    columns: Columns
    total: int

    @property
    def rows(self) -> list[int]:
        """Numbers of the rows in the split."""
        return self.columns.examples.tolist()


@dataclass
class _Content:
    """Everything that goes into a page."""

    recipe: Recipe
    mode: str
    tasks: list[TaskSettings]
    splits: dict[str, dict[str, _Split]] = field(default_factory=dict)
    bits: int = 24
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [task.name for task in self.tasks]

    def each(self) -> Iterator[tuple[TaskSettings, str, _Split]]:
        for task in self.tasks:
            for split in SPLITS:
                yield task, split, self.splits[task.name][split]


def modes(run: str | Path, recipe: Recipe) -> list[str]:
    """Return the modes of a run that have an explorer: those with cached logits of classes, in the recipe's order."""
    return [mode for mode in recipe.modes if _showable(Path(run), recipe, mode)[0]]


def build_all(run: str | Path, recipe: Recipe) -> list[Path]:
    """Write the explorer of every mode that has one, and remove those of other modes."""
    paths = [build(run, mode) for mode in modes(run, recipe)]
    for path in set(Path(run).glob("explorer-*.html")) - set(paths):
        path.unlink()
    return paths


def build(run: str | Path, mode: str | None = None, out: str | Path | None = None) -> Path:
    """Write the fusion explorer of one mode, by default as ``RUN/explorer-MODE.html``, and return its path.

    Logits of a tangent model are ``f(x; φ₀) + Σₜ λₜ J(x)τₜ``, linear in the coefficients. The page contains the terms
    and adds them up when a slider moves; it needs no network.

    Args:
        run: the folder that ``tangora run`` wrote.
        mode: one with ``linearize: model``; by default the first that has cached logits.
        out: path of the page.

    Raises:
        RecipeError: the run has no cached logits of classes, or its recipe is invalid.
        ArgumentError: the run has no cached logits of this mode.
        FileError: the folder is no run, or a file is invalid.
        OutputError: the page cannot be written.
        MissingExtraError: the extra ``report`` is not installed.
    """
    require("report", purpose="the explorer")
    folder = Path(run)
    recipe = load_run_recipe(folder)
    chosen = _chosen(folder, recipe, mode)
    path = Path(out) if out is not None else folder / f"explorer-{chosen}.html"
    write_text(path, _page(folder, _read(folder, recipe, chosen)))
    return path


def _chosen(folder: Path, recipe: Recipe, mode: str | None) -> str:
    available = modes(folder, recipe)
    if not available:
        fix = "the explorer shows tangent modes of classes: add modes.tangent: {linearize: model} and run again"
        raise RecipeError("the run has no cached logits of classes", where=folder, fix=fix)
    if mode is not None and mode not in available:
        fix = f"there are {', '.join(available)}"
        raise ArgumentError("no cached logits of this mode", got=mode, where=folder, fix=fix)
    return available[0] if mode is None else mode


def _paths(folder: Path, mode: str, task: str) -> dict[str, Path]:
    return {split: folder / "cache" / "columns" / mode / f"{task}-{split}.safetensors" for split in SPLITS}


def _showable(folder: Path, recipe: Recipe, mode: str) -> tuple[list[TaskSettings], list[str]]:
    """Return tasks with logits of classes, and notes on those left out or scored by another metric than the run's."""
    tasks, notes = [], []
    family = FAMILIES.get(recipe.base.family)
    for task in recipe.tasks:
        if family.form(task).logits_over != "classes":
            notes.append(f"{task.name} is left out: its answers are not classes.")
        elif not all(path.is_file() for path in _paths(folder, mode, task.name).values()):
            notes.append(f"{task.name} is left out: it has no cached logits.")
        else:
            tasks.append(task)
            if (metric := _metric(task)) != task.metric:
                notes.append(f"{task.name} is scored by {metric} on this page, which cannot compute {task.metric}.")
    return tasks, notes


def _metric(task: TaskSettings) -> str:
    """Return the page's metric of a task: the first of the task's that it can compute, else accuracy."""
    return next((name for name in task.all_metrics if name in _METRICS), "accuracy")


def _read(folder: Path, recipe: Recipe, mode: str) -> _Content:
    """Return the columns of a mode, reduced to what fits into a page."""
    from tangora.tangent.columns import load_columns  # deferred: imports torch

    tasks, notes = _showable(folder, recipe, mode)
    if recipe.seeds:
        notes.append(f"The run has {named(recipe.seeds)}. This page is of the adapters of seed {recipe.first_seed}.")
    content = _Content(recipe, mode, tasks, notes=notes)
    read = {}
    for task in tasks:
        columns_of = {split: load_columns(path) for split, path in _paths(folder, mode, task.name).items()}
        read[task.name] = {
            split: columns.subset(_shared(columns, content.names)) for split, columns in columns_of.items()
        }
    _fit(content, read)
    return content


def _shared(columns: Columns, names: Sequence[str]) -> list[str]:
    if missing := [name for name in names if name not in columns.vectors]:
        where = f"the columns of {columns.task}, {columns.split}"
        fix = "delete the run's cache/columns and run the recipe again"
        raise FileError("no column of a task vector", got=missing[0], where=where, fix=fix)
    return list(names)


def _fit(content: _Content, read: Mapping[str, Mapping[str, Columns]]) -> None:
    """Use as many bits as fit; if 16 do not fit, a seeded sample of the rows, in proportion to the classes."""
    from tangora.tasks.splits import sample  # deferred: only a page needs them

    everything = [columns for splits in read.values() for columns in splits.values()]
    room = (_PAGE - _OWN - _EXAMPLES[0]) * 3 // 4  # base64 turns three bytes into four
    content.bits = next((b for b in _pack.BITS if _size(everything, b) <= room), 16)
    most = max(len(columns.labels) for columns in everything)
    while _size(everything, content.bits, most) > room:
        most = math.floor(0.95 * most)
    for task, splits in read.items():
        content.splits[task] = {}
        for split, columns in splits.items():
            count = len(columns.labels)
            rows = sample(count, most, content.recipe.first_seed, columns.labels.tolist())
            content.splits[task][split] = _Split(columns.rows(rows), count)
            if len(rows) < count:
                content.notes.append(f"{task}, {split}: a sample of {len(rows):,} of {count:,} rows, to fit a page.")


def _size(columns: Sequence[Columns], bits: int, rows: int | None = None) -> int:
    return sum(_pack.packed_size(c, bits, rows) for c in columns)


def _page(folder: Path, content: _Content) -> str:
    logits, blocks = _packed(content)
    presets, taken = _all_presets(folder, content)
    examples = _all_examples(content, min(_PAGE - _OWN - len(logits) - taken, _EXAMPLES[1]))
    low = min([_RANGE[0], *(w for p in presets for w in p.weights)])
    high = max([_RANGE[1], *(w for p in presets for w in p.weights)])
    data = {
        "bits": content.bits,
        "tasks": [_task(content, t, blocks, examples) for t in content.tasks],
        "presets": [vars(p) for p in presets],
        "single": _presets.SINGLE,
        "adapters": [shlex.quote(f"adapters/{content.mode}/{name}") for name in content.names],
    }
    title = content.recipe.title or content.recipe.name
    return render(
        "explorer.html.jinja",
        styles=["report.css", "explorer.css"],
        scripts=["report.js", *(f"explorer_{part}.js" for part in ("model", "plane", "changes")), "explorer.js"],
        title=f"{title}: fusion explorer",
        heading=title,
        mode=content.mode,
        names=content.names,
        low=math.floor(low * 10) / 10,
        high=math.ceil(high * 10) / 10,
        subsets=_subsets(content, presets),
        notes=content.notes,
        exact=content.bits == 24 and all(len(s.columns.labels) == s.total for _, _, s in content.each()),
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        logits=logits,
    )


def _packed(content: _Content) -> tuple[str, dict[tuple[str, str], int]]:
    """Return all blocks of logits as one base64 text, and the start of each block."""
    data, starts = bytearray(), {}
    for task, split, shown in content.each():
        starts[task.name, split] = len(data)
        data += _pack.pack(_pack.stacked(shown.columns), content.bits)
    return base64.b64encode(data).decode(), starts


def _all_examples(content: _Content, budget: int) -> dict[str, dict[str, Any]]:
    """Return task -> its class names, and split -> a text or picture per row."""
    total = sum(len(shown.rows) for _, _, shown in content.each())
    shown_of: dict[str, dict[str, Any]] = {}
    for task in content.tasks:
        splits = content.splits[task.name]
        labels = {name: dict(zip(s.rows, s.columns.labels.tolist(), strict=True)) for name, s in splits.items()}
        examples = _examples.source(content.recipe, task, labels, splits["test"].columns.origin.shape[1])
        if examples.note:
            content.notes.append(examples.note)
        shown_of[task.name] = {"classes": examples.classes}
        for split, table in examples.tables.items():
            rows = splits[split].rows
            share = budget * len(rows) // total
            shown_of[task.name][split] = _examples.shown(table, task, content.recipe.base.family, rows, share)
    return shown_of


def _all_presets(folder: Path, content: _Content) -> tuple[list[_presets.Preset], int]:
    """Return presets, and the bytes of those with predictions per site: as many of these as fit."""
    from tangora.evaluation.predictions import read_site_predictions  # deferred: only a page needs them

    scores, kept = _presets.read_rows(folder, content.recipe), read_site_predictions(folder)
    presets = _presets.from_scores(content.recipe, scores, content.mode, content.names)
    rows = {name: {split: shown.rows for split, shown in splits.items()} for name, splits in content.splits.items()}
    taken, left_out = 0, [f"{label} is no preset: {_UNKNOWN}" for label in _presets.unknown(scores, kept, content.mode)]
    for preset in _presets.per_site(folder, content.recipe, kept, content.mode, rows):
        size = len(json.dumps(vars(preset), separators=(",", ":")))
        if taken + size > _SITE_PREDICTIONS:
            left_out.append(f"{preset.label} of {' + '.join(preset.tasks)} is no preset: there is no room for it.")
            continue
        taken += size
        presets.append(preset)
    content.notes += left_out
    return presets, taken


def _task(
    content: _Content,
    task: TaskSettings,
    starts: Mapping[tuple[str, str], int],
    examples: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the data of a task on the page, without its logits."""
    own = examples[task.name]
    splits = {
        split: {
            "start": starts[task.name, split],
            "labels": shown.columns.labels.tolist(),
            "rows": shown.rows,
            "of": shown.total,
            "examples": own.get(split),
        }
        for split, shown in content.splits[task.name].items()
    }
    return {"name": task.name, "metric": _metric(task), "classes": own["classes"], "splits": splits}


def _subsets(content: _Content, presets: Sequence[_presets.Preset]) -> dict[int, list[tuple[str, ...]]]:
    """Return the sets of tasks to choose from, by size, the largest first."""
    chosen = dict.fromkeys([tuple(content.names), *(p.tasks for p in presets)])
    sizes = sorted({len(tasks) for tasks in chosen}, reverse=True)
    return {size: [tasks for tasks in chosen if len(tasks) == size] for size in sizes}
