"""The benches: a bundled recipe that compares the ways to one model, and the table and figure of its page from it.

    python experiments/bench.py text --data FOLDER --encoder FOLDER_OR_HUB_ID [--out FOLDER] [--set KEY=VALUE ...]
    python experiments/bench.py dense [--seeds 0 1] [--out FOLDER] [--set KEY=VALUE ...]
    python experiments/bench.py text --runs runs/bench-text-0 runs/bench-text-1

It goes on where it was stopped; finished runs, or those that are given, are only read. Each seed is a run of its own,
and the tables contain means over them; minutes are in each run's report. The time of a forward pass is measured here,
on the first run, all ways in turn, and written as a multiple of the base's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from text7 import DOCS, write

import tangora
from tangora.adapters.adapter import Adapter, load
from tangora.cli.bars import Bars
from tangora.config.recipe import load_recipe, load_run_recipe
from tangora.evaluation.evaluator import answering
from tangora.evaluation.tables import Row
from tangora.report.data import read_run
from tangora.report.summary import Summary, method_name, mode_name
from tangora.report.ways import Way, ways
from tangora.runs.context import prepare
from tangora.tasks import Base, Task

PAGES = {"text": "fuse-route-or-train.md", "dense": "dense.md", "vl": "vision-language.md"}
ROUNDS = 9


def main() -> None:
    """Run the recipe once for each seed, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=PAGES)
    parser.add_argument("--data", help="folder of the data sets, for text")
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2", help="for text")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--out", type=Path, help="folder of the runs, a run a seed")
    parser.add_argument("--runs", nargs="*", type=Path, help="finished runs to read")
    parser.add_argument("--set", nargs="*", default=[], help="keys of the recipe, as of tangora run")
    given = parser.parse_args()
    runs = given.runs or [trained(given, seed) for seed in given.seeds]
    page = DOCS / PAGES[given.bench]
    summaries = [Summary(read_run(run)) for run in runs]
    compared_ways = [ways(summary) for summary in summaries]
    if any(compared_ways):  # the towers' bench has neither joint nor routed ways
        write(page, f"ways-{given.bench}", ways_table(compared_ways))
        shutil.copy(runs[0] / "figures" / "ways.png", DOCS / "figures" / f"bench-{given.bench}-ways.png")
    write(page, f"scores-{given.bench}", score_table(summaries))
    write(page, f"latency-{given.bench}", latencies(runs[0]))


def trained(given: argparse.Namespace, seed: int) -> Path:
    """The run of one seed, finished."""
    name = f"bench-{given.bench}"
    where = [f"data.root={given.data}", f"base.model={given.encoder}"] if given.bench == "text" else []
    out: Path = (given.out or Path("runs") / name) / f"seed-{seed}"
    with Bars() as bars:
        return tangora.run(load_recipe(name, [*where, f"seed={seed}", *given.set]), out, progress=bars)


def ways_table(seeds: Sequence[Sequence[Way]]) -> Iterator[str]:
    """A row for each way: what it needs, scores, keeps, trains and stores; means over the seeds, and their range."""
    head = ["way", "kind", "data needed", "for one more task", "mean score", "kept", "trained per task"]
    rows = [[*head, "stored per task"]]
    for same in zip(*seeds, strict=True):
        way = same[0]
        score = spread([one.score for one in same], "{:.3f}")
        shares = spread([one.kept for one in same], "{:.1%}")
        costs = [mean([one.trainable for one in same], "{:,.0f}"), mean([one.stored for one in same], "{:,.0f}")]
        rows.append([way.name, way.group, way.data, way.added, score, shares, *costs])
    yield from markdown(rows)


def score_table(summaries: Sequence[Summary]) -> Iterator[str]:
    """A row for each way and a column a task, of its primary metric; means over the seeds."""
    listed = [dict(scores_of(summary)) for summary in summaries]
    tasks = summaries[0].run.tasks
    rows = [["way", *tasks]]
    rows += [
        [name, *(mean([one[name][task].score for one in listed], "{:.3f}") for task in tasks)] for name in listed[0]
    ]
    yield from markdown(rows)


def scores_of(summary: Summary) -> Iterator[tuple[str, Mapping[str, Row]]]:
    """The rows of each mode's adapters and of each fusion of all tasks, task by task."""
    for mode in summary.run.modes:
        yield mode_name(mode), summary.experts(mode, summary.run.tasks)
    for key in summary.at_largest():
        if not key.oracle:
            name = f"{mode_name(key.mode)}, {method_name(key.method, key.space)}"
            yield name, summary.fused_scores(key, summary.largest or "")


def mean(values: Sequence[float | None], form: str) -> str:
    """Their mean; a dash if one is missing."""
    known = [value for value in values if value is not None]
    return form.format(statistics.fmean(known)) if known and len(known) == len(values) else "–"


def spread(values: Sequence[float | None], form: str) -> str:
    """Their mean, and the least and the largest of several."""
    known = [value for value in values if value is not None]
    if len(known) < 2 or len(known) < len(values):
        return mean(values, form)
    return f"{mean(values, form)} ({form.format(min(known))}–{form.format(max(known))})"


def markdown(rows: list[list[str]]) -> Iterator[str]:
    """A table, its first row as the head."""
    yield f"| {' | '.join(rows[0])} |"
    yield f"|{'---|' * len(rows[0])}"
    for row in rows[1:]:
        yield f"| {' | '.join(row)} |"


def latencies(run: Path) -> Iterator[str]:
    """A row for each adapter that answers by modules of its own: time of a forward pass, and size."""
    base, tasks = prepare(load_run_recipe(run))
    first = tasks[0]
    found = {path.parent.relative_to(run): load(path.parent) for path in sorted(run.glob("fused/*/*/tangora.json"))}
    found |= {
        p.parent.relative_to(run): load(p.parent) for p in sorted(run.glob(f"adapters/*/{first.name}/tangora.json"))
    }
    timed = {str(name): one for name, one in found.items() if one.metadata.kind in ("modules", "routed")}
    rows = [["adapter", "forward pass, of the base's", "numbers in its file"]]
    for name, adapter in timed.items():
        ratio = compared(base, first, adapter)
        rows.append([f"`{name}`", f"{ratio:.2f}", f"{sum(u.dense().numel() for u in adapter.updates.values()):,}"])
    yield from markdown(rows)
    yield ""
    about = json.loads((run / "run.json").read_text())["machine"].get("processor") or "an unnamed processor"
    yield f"Medians of {ROUNDS} passes of 32 rows each, in turn with the base, on {about}."


def compared(base: Base, task: Task, adapter: Adapter) -> float:
    """The median over rounds of the ratio of two passes, one right after the other."""
    ratios = []
    for _ in range(ROUNDS):
        alone, own = (seconds(base, task, one) for one in (None, adapter))
        ratios.append(own / alone)
    return statistics.median(ratios)


def seconds(base: Base, task: Task, adapter: Adapter | None) -> float:
    """The time of one forward pass of 32 test rows; a pass before it warms up."""
    with ExitStack() as stack, torch.no_grad():
        model_of: Callable[[Task], tangora.tasks.TaskModel] = stack.enter_context(answering(adapter, base))
        model = model_of(task).eval()
        _, batch = next(iter(task.splits["test"].batches(32, model.collator)))
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        model.logits(inputs, batch["labels"])
        started = time.perf_counter()
        model.logits(inputs, batch["labels"])
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
