"""The benches: a bundled recipe that compares the ways to one model, and the table and figure of its page from it.

    python experiments/bench.py text --data FOLDER --encoder FOLDER_OR_HUB_ID [--out FOLDER] [--set KEY=VALUE ...]
    python experiments/bench.py text --run runs/bench-text

It goes on where it was stopped; a finished run, or one that is given, is only read. The time of a forward pass is
measured here, all ways in turn, and written as a multiple of the base's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from text7 import DOCS, write

import tangora
from tangora.adapters.adapter import Adapter, load
from tangora.cli.bars import Bars
from tangora.config.recipe import load_recipe, load_run_recipe
from tangora.evaluation.evaluator import answering
from tangora.report.data import read_run
from tangora.report.summary import Summary
from tangora.report.tables import ways_table
from tangora.runs.context import prepare
from tangora.tasks import Base, Task

PAGES = {"text": DOCS / "fuse-route-or-train.md"}
ROUNDS = 9


def main() -> None:
    """Run the recipe, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=PAGES)
    parser.add_argument("--data", help="folder of the data sets")
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", type=Path, help="a finished run to read")
    parser.add_argument("--set", nargs="*", default=[], help="keys of the recipe, as of tangora run")
    given = parser.parse_args()
    name = f"bench-{given.bench}"
    run = given.run
    if run is None:
        where = [f"data.root={given.data}", f"base.model={given.encoder}", *given.set]
        with Bars() as bars:
            run = tangora.run(load_recipe(name, where), given.out or Path("runs") / name, progress=bars)
    page = PAGES[given.bench]
    table = ways_table(Summary(read_run(run)))
    assert table is not None
    write(page, f"ways-{given.bench}", markdown([table.columns, *table.rows]))
    write(page, f"latency-{given.bench}", latencies(run))
    shutil.copy(run / "figures" / "ways.png", DOCS / "figures" / f"{name}-ways.png")


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
        model.logits(inputs)
        started = time.perf_counter()
        model.logits(inputs)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
