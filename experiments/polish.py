"""The polish of seven text tasks: what it keeps, by rows, steps, rank, student and start; the tables of docs/polish.md.

    python experiments/polish.py --data FOLDER --encoder FOLDER_OR_HUB_ID [--out runs/polish] [--only NAME...]
    python experiments/polish.py --out runs/polish --table

Each variant is a line of ``OUT/results.jsonl``: scores on up to 1000 test rows of every task, beside those of the
experts, which are trained first. Variants that are there are not done again, so several processes may share the
folder, each with its own ``--only``. ``--table`` writes the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import tangora
from tangora.adapters.adapter import Adapter
from tangora.config.recipe import FinetuneConfig, LoraSettings, Recipe, TrainingSettings, load_recipe
from tangora.evaluation.evaluator import evaluate
from tangora.modes.contract import Bench
from tangora.modes.finetuning import finetune
from tangora.modes.low_rank import train_lora
from tangora.polishing.rows import choose_rows, joined
from tangora.runs.context import prepare
from tangora.tasks import Base, Split, Task

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "polish.md"
FIGURE = DOCS / "figures" / "polish.png"
FRONTIER = DOCS / "figures" / "polish-frontier.png"
TASKS = ("sst2", "trec6", "ag_news", "tweet_emotion", "snips", "banking77", "sms_spam")


@dataclass(frozen=True)
class Variant:
    """One polish: its settings, the experts' mode, and how many of the tasks."""

    settings: Mapping[str, Any]
    mode: str = "lora"
    tasks: int = 7
    rows_of: str = "own"  # or "others": each expert is followed on the rows of the other tasks; or "both"
    dropout: bool = True  # of the base, while the student is trained
    change: str = ""  # "added": six tasks are polished first; "removed": seven are, and the last one is dropped
    old_rows: int | None = None  # rows of the tasks that were there, if fewer than of the new one
    start: str | None = None  # of the line whose adapter it starts from; by default the fusion


def _rows(rows: int, steps: int, **more: Any) -> Variant:
    return Variant({"rows": rows, "steps": steps, **more})


PLAIN = {"recombined": 0}
WARM = {"temperature": 2.0}
LOST = {"weigh": "lost", "learning_rate": 2e-3}
TANGENT = "modes.tangent={linearize: model, lora: {r: 32, alpha: 64}, training: {learning_rate: 2.0e-3}}"
FOLLOWED = "coefficients that follow the experts on 64 rows (SAMerging)"
NORMED = "mean_norm, λ 1.3, rank 16"
PRESENT = "64 rows, 200 steps, temperature 2"
ENTRIES = {"objective": "layers", "student": "entries", "learning_rate": 1e-2}
VARIANTS: dict[str, Variant] = {
    "64 rows, 50 steps": _rows(64, 50),
    "64 rows, 100 steps": _rows(64, 100),
    "64 rows, 200 steps": _rows(64, 200),
    "64 rows, nothing recombined, 100 steps": _rows(64, 100, **PLAIN),
    "16 rows, 100 steps": _rows(16, 100),
    "256 rows, 100 steps": _rows(256, 100),
    "256 rows, 200 steps": _rows(256, 200),
    "256 rows, nothing recombined, 100 steps": _rows(256, 100, **PLAIN),
    "1000 rows, nothing recombined, 100 steps": _rows(1000, 100, **PLAIN),
    "1000 rows, 200 steps": _rows(1000, 200, recombined=2000),
    "64 rows, 100 steps, rank 8": _rows(64, 100, rank=8),
    "64 rows, 100 steps, rank 32": _rows(64, 100, rank=32),
    "64 rows, 100 steps, from random factors": _rows(64, 100, initial="random"),
    "64 rows, 100 steps, only B (l-lora)": _rows(64, 100, student="l-lora", learning_rate=5e-3),
    "64 rows, 100 steps, features": _rows(64, 100, follow="features"),
    "64 rows, 100 steps, both": _rows(64, 100, follow="both"),
    "64 rows, 100 steps, weights by what is lost": _rows(64, 100, weigh="lost"),
    "64 rows, 100 steps, temperature 2": _rows(64, 100, temperature=2.0),
    "1000 rows, 200 steps, temperature 2": _rows(1000, 200, recombined=2000, temperature=2.0),
    "64 rows, 30 steps": _rows(64, 30),
    "64 rows, closed form, 0 steps": _rows(64, 0, initial="layers"),
    "64 rows, closed form, 30 steps": _rows(64, 30, initial="layers"),
    "64 rows, closed form, 100 steps": _rows(64, 100, initial="layers"),
    "64 rows, layers, 30 steps a block": _rows(64, 30, objective="layers"),
    "64 rows, layers, 100 steps a block": _rows(64, 100, objective="layers"),
    "64 rows, closed form, layers, 30 steps a block": _rows(64, 30, initial="layers", objective="layers"),
    "64 rows, ProDistill (entries), 100 steps a block": _rows(64, 100, rank=None, **ENTRIES),
    "64 rows, ProDistill (entries), 100 steps a block, cut to rank 16": _rows(64, 100, **ENTRIES),
    "64 rows, 200 steps, temperature 2": _rows(64, 200, temperature=2.0),
    "1000 rows, nothing recombined, 200 steps": _rows(1000, 200, **PLAIN),
    "64 rows, 200 steps, temperature 2, features beside": _rows(64, 200, follow="both", feature_weight=5.0, **WARM),
    "64 rows and those of the other tasks, 200 steps, temperature 2, without dropout": replace(
        _rows(64, 200, **WARM), rows_of="both", dropout=False
    ),
    "64 rows, 200 steps, temperature 2, without dropout": replace(_rows(64, 200, **WARM), dropout=False),
    "64 rows, 200 steps, temperature 2, by what is lost, rate 2e-3": _rows(64, 200, **WARM, **LOST),
    "256 rows, 200 steps, temperature 2": _rows(256, 200, **WARM),
    "1000 rows, 400 steps, temperature 2": _rows(1000, 400, recombined=3000, **WARM),
    "1000 rows, 400 steps, temperature 2, without dropout": replace(
        _rows(1000, 400, recombined=3000, **WARM), dropout=False
    ),
    "1000 rows, 400 steps, temperature 2, by what is lost, rate 2e-3": _rows(
        1000, 400, recombined=3000, **WARM, **LOST
    ),
    "64 labels, 200 steps": _rows(64, 200, labels=1.0, **PLAIN),
    "64 labels, 200 steps, from random factors": _rows(64, 200, initial="random", labels=1.0, **PLAIN),
    "1000 labels, 200 steps": _rows(1000, 200, labels=1.0, **PLAIN),
    "1000 labels, 200 steps, from random factors": _rows(1000, 200, initial="random", labels=1.0, **PLAIN),
    "64 rows, labels and experts, 200 steps": _rows(64, 200, labels=0.5),
    "64 rows, labels and experts, 200 steps, temperature 2": _rows(64, 200, labels=0.5, **WARM),
    "1000 rows, labels and experts, 200 steps": _rows(1000, 200, recombined=2000, labels=0.5),
    "64 rows, 200 steps, temperature 2, from random factors": _rows(64, 200, initial="random", **WARM),
    "1000 rows, 200 steps, temperature 2, from random factors": _rows(
        1000, 200, initial="random", recombined=2000, **WARM
    ),
    "64 rows, 200 steps, temperature 2, rank 8": _rows(64, 200, rank=8, **WARM),
    "1000 rows, 200 steps, temperature 2, rank 8": _rows(1000, 200, rank=8, recombined=2000, **WARM),
    "64 rows, 200 steps, temperature 2, rate 2e-3": _rows(64, 200, learning_rate=2e-3, **WARM),
    "64 rows, 200 steps, temperature 2, rate 4e-3": _rows(64, 200, learning_rate=4e-3, **WARM),
    "64 rows, 200 steps, temperature 2, class names": _rows(64, 200, **WARM, class_names=True),
    "64 rows, 200 steps, temperature 2, class names, nothing held out": _rows(
        64, 200, **WARM, class_names=True, held_out=0.0
    ),
    "384 rows of the other tasks, 200 steps, temperature 2": replace(_rows(384, 200, **WARM), rows_of="others"),
    "384 rows of the other tasks, 200 steps, temperature 2, class names": replace(
        _rows(384, 200, recombined=2000, class_names=True, **WARM), rows_of="others"
    ),
    "a task added to six: 64 rows, 50 steps": replace(_rows(64, 50, **WARM), change="added"),
    "a task added to six: 64 rows, of the six 16, 50 steps": replace(
        _rows(64, 50, **WARM), change="added", old_rows=16
    ),
    "a task removed from seven: 64 rows, 50 steps": replace(_rows(64, 50, **WARM), change="removed"),
    "64 rows of the other tasks, 100 steps": replace(_rows(64, 100), rows_of="others"),
    "64 rows, 200 steps, temperature 2, from coefficients that follow the experts": replace(
        _rows(64, 200, **WARM), start=FOLLOWED
    ),
    "64 rows, 200 steps, temperature 2, from mean_norm": replace(_rows(64, 200, **WARM), start=NORMED),
    "64 rows, 30 steps, temperature 2, rate 2e-3": _rows(64, 30, learning_rate=2e-3, **WARM),
    "64 rows, 50 steps, temperature 2, rate 2e-3": _rows(64, 50, learning_rate=2e-3, **WARM),
    "64 rows, 200 steps, temperature 2, sharpness .05": _rows(64, 200, sharpness=0.05, **WARM),
    "64 rows, 200 steps, temperature 2, sharpness .2": _rows(64, 200, sharpness=0.2, **WARM),
    "64 rows, 200 steps, temperature 2, mean of the last half": _rows(64, 200, averaged=0.5, **WARM),
    "1000 rows, 200 steps, temperature 2, mean of the last half": _rows(
        1000, 200, averaged=0.5, recombined=2000, **WARM
    ),
    "64 rows, 200 steps, temperature 2, nothing held out": _rows(64, 200, held_out=0.0, **WARM),
    "64 rows, 400 steps, temperature 2, nothing held out": _rows(64, 400, held_out=0.0, recombined=2000, **WARM),
    "64 rows, 200 steps, temperature 4, nothing held out": _rows(64, 200, held_out=0.0, temperature=4.0),
    "1000 rows, 600 steps, temperature 2, nothing held out": _rows(1000, 600, held_out=0.0, recombined=4000, **WARM),
}
for number in (2, 3, 5):
    VARIANTS |= {
        f"n = {number}: 64 rows, 200 steps, temperature 2": replace(_rows(64, 200, **WARM), tasks=number),
        f"n = {number}: 1000 rows, 200 steps, temperature 2": replace(
            _rows(1000, 200, recombined=2000, **WARM), tasks=number
        ),
    }
for mode in ("l-lora", "tangent"):
    VARIANTS |= {
        f"{mode} experts: 64 rows, 200 steps, temperature 2": replace(_rows(64, 200, **WARM), mode=mode),
        f"{mode} experts: 1000 rows, 200 steps, temperature 2": replace(
            _rows(1000, 200, recombined=2000, **WARM), mode=mode
        ),
    }


@dataclass
class Study:
    """The base, the tasks and the experts of one seed, each loaded once."""

    recipe: Recipe
    out: Path
    seed: int
    base: Base
    tasks: Sequence[Task]
    experts: dict[str, dict[str, Adapter]] = field(default_factory=dict)

    def of_mode(self, mode: str) -> dict[str, Adapter]:
        """Train the experts of a mode that are not there yet, and load them."""
        if mode not in self.experts:
            for task in self.tasks:
                folder = self.out / "experts" / f"{mode}-{self.seed}" / task.name
                if not folder.exists():
                    finetune(self.base, task, self.recipe.finetune_config(mode), out=folder)
            folder = self.out / "experts" / f"{mode}-{self.seed}"
            self.experts[mode] = {task.name: tangora.load(folder / task.name) for task in self.tasks}
        return self.experts[mode]

    def scores(self, adapter: Adapter, tasks: Sequence[Task]) -> dict[str, float]:
        """Return task -> test score."""
        return {name: result.score for name, result in evaluate(adapter, self.base, tasks).items()}

    def own(self, mode: str) -> dict[str, float]:
        """Return task -> test score of its expert; measured once."""
        rows = max(len(task.splits["test"]) for task in self.tasks)
        path = self.out / f"experts-{mode}-{self.seed}-{rows}.json"
        if not path.is_file():
            scores = {}
            for task in self.tasks:
                scores |= self.scores(self.of_mode(mode)[task.name], [task])
            path.write_text(json.dumps(scores, indent=2) + "\n")
        scored: dict[str, float] = json.loads(path.read_text())
        return scored

    def polished(self, variant: Variant) -> tuple[Adapter, Sequence[Task]]:
        """Return the polished adapter of a variant, and the tasks that it is for."""
        tasks = self.tasks[: variant.tasks]
        if variant.change == "removed":
            return self.polish(variant, tasks[:-1], start=self.present(variant.tasks)), tasks[:-1]
        if variant.change == "added":
            old = [self.few(task, variant.old_rows) for task in tasks[:-1]]
            return self.polish(variant, [*old, tasks[-1]], present=self.present(variant.tasks - 1)), tasks
        if variant.rows_of == "both":
            asked = [self.both(task, int(variant.settings["rows"])) for task in tasks]
            count = 2 * (len(self.tasks) - 1) * variant.settings["rows"]
            settings = {**variant.settings, "rows": count, "recombined": 2000}
            return self.polish(replace(variant, settings=settings), asked), tasks
        asked = [self.others(task, variant) for task in tasks] if variant.rows_of == "others" else tasks
        if variant.start is not None:
            return self.polish(variant, asked, start=BASELINES[variant.start](self)[0]), tasks
        return self.polish(variant, asked), tasks

    def polish(self, variant: Variant, tasks: Sequence[Task], **places: Any) -> Adapter:
        """Polish the experts of some tasks, or add the last one's to a present adapter."""
        experts = self.of_mode(variant.mode)
        taught = tasks[-1:] if "present" in places else tasks
        places = {"out": self.last, "overwrite": True, **places}
        with nullcontext() if variant.dropout else without_dropout(self.base):
            return tangora.polish(
                [experts[task.name] for task in taught],
                self.base,
                tasks,
                seed=self.seed,
                cache=self.out / "answers",
                progress=False,
                **places,
                **variant.settings,
            )

    @property
    def last(self) -> Path:
        """The folder of the polish that was made last."""
        return self.out / f"last-{self.seed}-{os.getpid()}"

    def present(self, count: int) -> Adapter:
        """Return the polished adapter of the first tasks; made once."""
        folder = self.out / f"present-{count}-{self.seed}"
        if not folder.exists():
            self.polish(VARIANTS[PRESENT], self.tasks[:count], out=folder)
        return tangora.load(folder)

    def few(self, task: Task, count: int | None) -> Task:
        """Return a task with the first of its drawn train rows alone."""
        return task if count is None else replace(task, splits={"train": _first(task, count, self.seed)})

    def both(self, task: Task, count: int) -> Task:
        """Return a task whose train rows are half its own, repeated, and half rows of each other task."""
        parts = []
        for other in self.tasks:
            parts += [_first(other, count, self.seed)] * (len(self.tasks) - 1 if other.name == task.name else 1)
        return replace(task, splits={"train": joined(parts)})

    def others(self, task: Task, variant: Variant) -> Task:
        """Return a task with rows of the other tasks as its train rows."""
        count = -(-int(variant.settings["rows"]) // (len(self.tasks) - 1))
        parts = [_first(other, count, self.seed) for other in self.tasks if other.name != task.name]
        return replace(task, splits={"train": joined(parts)})

    def fused(
        self,
        *,
        mode: str = "lora",
        rank: int = 16,
        count: int = 7,
        method: str = "task_arithmetic",
        weight: float = 0.5,
    ) -> tuple[Adapter, str, int]:
        """Return the fusion of the first experts, cut to a rank."""
        experts = list(self.of_mode(mode).values())[:count]
        return tangora.fuse(experts, method, weights=weight, rank=rank), mode, count

    def followed(self, per: str) -> tuple[Adapter, str, int]:
        """Return the fusion of the experts with the coefficients that follow them on the rows of a polish."""
        few = [replace(t, splits={"validation": _first(t, 64, self.seed)}) for t in self.tasks]
        experts, settings = self.of_mode("lora"), {"per": per, "steps": 30}
        found = tangora.search(
            experts, self.base, few, "samerging", rank=16, seed=self.seed, scored=None, progress=False, **settings
        )
        return found.adapter, "lora", 7

    def joint(self) -> Adapter:
        """Train one LoRA of rank 16 on 1000 labelled rows of every task, with the same steps and rows per step."""
        few = [replace(t, splits={"train": _first(t, 1000, self.seed)}) for t in self.tasks]
        lora = LoraSettings(r=16, alpha=16, target_modules=self.recipe.lora.target_modules)
        training = TrainingSettings(
            steps=100, batch_size=5, gradient_accumulation=len(few), learning_rate=1e-3, schedule="cosine"
        )
        config = FinetuneConfig(mode="joint", lora=lora, training=training, seed=self.seed)
        return next(iter(train_lora(Bench(self.base), few, config).values()))


def _first(task: Task, count: int, seed: int) -> Split:
    return task.splits["train"].select(choose_rows(task, "train", count, seed))


@contextmanager
def without_dropout(base: Base) -> Iterator[None]:
    """Switch off the dropout of a base, which other variants of the same process train with."""
    places = [(m, "p") for m in base.backbone.modules() if isinstance(m, torch.nn.Dropout)]
    places += [(m, "dropout_prob") for m in base.backbone.modules() if hasattr(m, "dropout_prob")]
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


BASELINES: dict[str, Callable[[Study], tuple[Adapter, str, int]]] = {
    "start": lambda study: study.fused(),
    "start, rank 8": lambda study: study.fused(rank=8),
    **{f"n = {number}: start": partial(Study.fused, count=number) for number in (2, 3, 5)},
    **{f"{mode} experts: start": partial(Study.fused, mode=mode) for mode in ("l-lora", "tangent")},
    NORMED: lambda study: study.fused(method="mean_norm", weight=1.3),
    FOLLOWED: lambda study: study.followed("task"),
    f"{FOLLOWED}, for each layer": lambda study: study.followed("site"),
    "joint LoRA with labels, 1000 rows, 100 steps": lambda study: (study.joint(), "lora", 7),
}
"""Name -> makes the adapter; returns it, its experts' mode, and for how many tasks it is."""


def study_of(data: str, encoder: str, out: Path, seed: int, test: int = 1000) -> Study:
    """Load the base and the seven tasks, with up to ``test`` test rows each."""
    limits = [f"tasks.{name}.limit.test={test}" for name in TASKS]
    where = [f"data.root={data}", f"base.model={encoder}", f"seed={seed}", TANGENT, *limits]
    recipe = load_recipe("text7", where)
    base, tasks = prepare(recipe)
    return Study(recipe, out, seed, base, tasks)


def measure(study: Study, name: str) -> dict[str, Any]:
    """Return the line of a variant or baseline."""
    began, info = time.process_time(), None
    tasks: Sequence[Task]
    if name in BASELINES:
        adapter, mode, count = BASELINES[name](study)
        tasks = study.tasks[:count]
    else:
        mode = VARIANTS[name].mode
        adapter, tasks = study.polished(VARIANTS[name])
        info = adapter.metadata.polished
    seconds = time.process_time() - began
    scores, own = study.scores(adapter, tasks), study.own(mode)
    kept = fmean(scores[task] / own[task] for task in scores)
    line = {"name": name, "seed": study.seed, "mean": fmean(scores.values()), "kept": kept, "scores": scores}
    line |= {"experts": {task: own[task] for task in scores}, "cpu_seconds": round(seconds, 1)}
    if info is not None:
        line |= {"before": fmean(info.before.values()), "after": fmean(info.after.values()), "step": info.step}
        record = json.loads((study.last / "training.json").read_text())
        line["curve"] = [[one["step"], round(one["score"], 5)] for one in record["validation"]]
        line["wall_seconds"] = record["seconds"]
    return line


def arguments(description: str | None) -> argparse.Namespace:
    """Parse the command line that the experiments on these experts share; ``--data`` is given unless ``--table`` is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the seven data sets")
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, default=Path("runs/polish"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of lines, as in the tables")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.data is None and not given.table:
        parser.error("--data is needed")
    return given


def main() -> None:
    """Do what is missing, or write the tables."""
    given = arguments(__doc__)
    results = given.out / "results.jsonl"
    if given.table:
        write(read(results))
        figure(read(results), FIGURE)
        frontier(read(results), FRONTIER)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    study = study_of(given.data, given.encoder, given.out, given.seed)
    for name in given.only or [*BASELINES, *VARIANTS]:
        if (name, given.seed) not in {(line["name"], line["seed"]) for line in read(results)}:
            line = measure(study, name)
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name}: mean {line['mean']:.4f}, kept {line['kept']:.4f}, {line['cpu_seconds']} s", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a Markdown table: means over seeds."""
    yield "| | seeds | mean | kept | divergence before | after |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name in names:
        if not (of_name := [line for line in lines if line["name"] == name]):
            continue
        first, cells = of_name[0], [str(len(of_name))]
        for key, form in (("mean", ".3f"), ("kept", ".1%"), ("before", ".3f"), ("after", ".3f")):
            cells.append(format(fmean(line[key] for line in of_name), form) if key in first else "–")
        yield f"| {name} | {' | '.join(cells)} |"


def write(lines: Sequence[Mapping[str, Any]]) -> None:
    """Put the table between the page's markers."""
    body = "\n".join(table(lines, [*BASELINES, *VARIANTS])) + "\n"
    text = PAGE.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
    PAGE.write_text(marked.sub(lambda found: found[1] + body + found[2], text), encoding="utf-8")


ROWS = (64, 256, 1000)
BY_ROWS = {  # curve -> what a line of so many rows is called, and at which numbers of rows there are some
    "rows of the tasks": ("{} rows, 200 steps, temperature 2", ROWS),
    "from random factors": ("{} rows, 200 steps, temperature 2, from random factors", (64, 1000)),
    "labels in place of experts": ("{} labels, 200 steps", (64, 1000)),
    "labels, from random factors": ("{} labels, 200 steps, from random factors", (64, 1000)),
}
CURVES = {f"{rows} rows": f"{rows} rows, 200 steps, temperature 2" for rows in ROWS}
CURVES |= {"1000 rows, from random factors": BY_ROWS["from random factors"][0].format(1000)}


def figure(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw what is kept by the number of rows, and the divergence on held-out rows by steps; means over seeds."""
    from tangora.report.theme import WIDE, color, marker, panels, series_role, style

    def mean(name: str, key: str) -> float | None:
        found = [line[key] for line in lines if line["name"] == name]
        return fmean(found) if found else None

    with style(WIDE, "polish"):
        drawn, (kept, curve) = panels(WIDE, 2, height=430, share_x=False, share_y=False)
        for i, (label, (name, counts)) in enumerate(BY_ROWS.items()):
            places = [(rows, value) for rows in counts if (value := mean(name.format(rows), "kept")) is not None]
            if not places:
                continue
            look = {"color": color(series_role(i)), "marker": marker(i), "label": label}
            kept.plot([rows for rows, _ in places], [100 * value for _, value in places], **look)
        start = mean("start", "kept")
        if start is not None:
            kept.axhline(100 * start, color=color("muted"), linestyle=":", label="the fusion, without rows")
        for i, (label, name) in enumerate(CURVES.items()):
            found = [line for line in lines if line["name"] == name and "curve" in line]
            of_name = [[(0, line["before"]), *line["curve"]] for line in found]
            if not of_name:
                continue
            by_step = [(steps[0][0], fmean(value for _, value in steps)) for steps in zip(*of_name, strict=True)]
            look = {"color": color(series_role(i)), "marker": marker(i), "label": label}
            curve.plot([step for step, _ in by_step], [value for _, value in by_step], **look)
        kept.set(xscale="log", xlabel="rows a task", ylabel="kept of the experts, %")
        kept.set_xticks(ROWS, [str(rows) for rows in ROWS])
        kept.minorticks_off()
        curve.set(xlabel="steps", ylabel="divergence on held-out rows, nats", ylim=(0, None))
        kept.legend(loc="lower left", bbox_to_anchor=(0.25, 0.1))
        curve.legend()
        drawn.savefig(path, dpi=110)


WITH = {  # what is known besides the experts -> what a line is called after the mode of its experts
    "the experts alone": "start",
    "64 rows": "64 rows, 200 steps, temperature 2",
    "256 rows": "256 rows, 200 steps, temperature 2",
    "1000 rows": "1000 rows, 200 steps, temperature 2",
    "1000 labels": "1000 labels, 200 steps",
}
EXPERTS = {"LoRA": "", "L-LoRA": "l-lora experts: ", "tangent": "tangent experts: "}


def frontier(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw what one adapter for seven tasks scores against what its experts score, by what it was made with.

    A point is the mean over seeds; lines of equal shares of the experts are dotted.
    """
    from tangora.report.theme import WIDE, color, marker, panels, series_role, style

    with style(WIDE, "frontier"):
        drawn, (axes,) = panels(WIDE, 1, height=430)
        ends: list[float] = []
        for i, (known, name) in enumerate(WITH.items()):
            for k, (mode, prefix) in enumerate(EXPERTS.items()):
                found = [line for line in lines if line["name"] == prefix + name]
                if not found:
                    continue
                own = fmean(fmean(line["experts"].values()) for line in found)
                look = {"color": color(series_role(i)), "marker": marker(k), "linestyle": "none", "markersize": 8}
                axes.plot([own], [fmean(line["mean"] for line in found)], label=f"{mode}: {known}", **look)
                ends.append(own)
        across = [min(ends) - 0.004, max(ends) + 0.004]
        for share in (0.94, 0.96, 0.98, 1.0):
            axes.plot(across, [share * x for x in across], color=color("muted"), linestyle=":", linewidth=1)
            axes.annotate(f"{share:.0%}", (across[1], share * across[1]), color=color("muted"), va="center")
        axes.set(xlabel="mean score of the experts", ylabel="mean score of one adapter for all tasks")
        axes.legend(loc="center left", bbox_to_anchor=(1.06, 0.5))
        drawn.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
