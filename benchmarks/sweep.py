"""The paper's sweep on columns of tangent adapters: every subset of 7 tasks, at 21 λ, scored on every task.

    make bench-sweep                        # writes results/sweep-cpu.json and docs/benchmarks.md
    python benchmarks/sweep.py --render     # the table alone, from the result that is there

MiniLM's shape with random weights, seven random experts (r = 32 on every linear layer), seven tasks of 300 rows with
text7's numbers of classes. For one task after the other: the columns are made; written and read back; all 2520
fusions are scored on them; and a few fusions are scored by a forward pass of their own tangent model, as all would be
without columns. Their logits are compared.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from step_table import _goal as goal
from step_table import written
from step_worker import versions
from train_step import _machine as machine
from train_step import _source as source

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.adapters.adapter import Adapter
    from tangora.tangent import Columns
    from tangora.tasks import Base, Task

HERE = Path(__file__).resolve().parent
RESULT, DOCS = HERE / "results" / "sweep-cpu.json", HERE.parent / "docs" / "benchmarks.md"
MARKS = "<!-- sweep:begin -->", "<!-- sweep:end -->"
SOURCES = ["benchmarks/sweep.py", "benchmarks/sweep_work.py", "src/tangora/tangent"]
TOLERANCE = 1e-4


def main(arguments: Sequence[str] | None = None) -> None:
    written(_parser().parse_args(arguments), measure, table, *MARKS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=["text7", "tiny"], default="text7")
    parser.add_argument("--by-forward", type=int, default=2, metavar="N", help="fusions scored by a forward pass")
    parser.add_argument("--rows", type=int, help="of each task, default: the work's")
    parser.add_argument("--batch-size", type=int, default=64, help="rows per forward pass")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--render", action="store_true", help="do not measure")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of everything, task by task, and what the results file says beside them."""
    import torch
    from sweep_work import WORKS, candidates, make_base, make_experts, make_task

    torch.set_num_threads(options.threads)
    started, load, work = datetime.datetime.now(datetime.timezone.utc), os.getloadavg(), WORKS[options.work]
    work = replace(work, rows=options.rows or work.rows)
    base, coefficients = make_base(work), candidates(work)
    experts, tasks = make_experts(work, base), []
    _warm_up(base, experts, work)
    for index in range(len(work.classes)):
        tasks.append(_measure_task(base, make_task(work, index), experts, coefficients, options))
        print(tasks[-1], flush=True)
    settings = {"threads": options.threads, "batch_size": options.batch_size, "rows": work.rows, "rank": work.rank}
    return {
        "format": 1,
        "date": started.isoformat(timespec="seconds"),
        "source": source(SOURCES),
        "machine": {**machine(), "load_before": load, "load_after": os.getloadavg()},
        "versions": versions(),
        "settings": {**settings, "candidates": len(coefficients)},
        "tasks": tasks,
    }


def _measure_task(
    base: Base, task: Task, experts: dict[str, Adapter], coefficients: Tensor, options: argparse.Namespace
) -> dict[str, Any]:
    from sweep_work import accuracies, forward_logits

    from tangora.tangent import make_columns

    found: dict[str, Any] = {"forward": [], "difference": [], "difference_of_change": []}
    columns, found["fill"] = _timed(make_columns, base, task, "test", experts, batch_size=options.batch_size)
    columns, found["stored"] = _timed(_stored, columns)
    _, found["sweep"] = _timed(accuracies, columns, coefficients)
    for chosen in random.Random(task.name).sample(range(len(coefficients)), options.by_forward):
        c = coefficients[chosen]
        expected, seconds = _timed(forward_logits, base, task, experts, c.tolist(), options.batch_size)
        wrong, change = (columns.logits(c) - expected).abs().max(), (expected - columns.origin).abs().max()
        found["forward"].append(seconds)
        found["difference"].append(float(wrong / expected.abs().max()))
        found["difference_of_change"].append(float(wrong / change) if change > 0 else None)  # λ = 0 changes nothing
    return {"classes": columns.origin.shape[-1], **found}


def _timed(function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    return function(*arguments, **named), time.perf_counter() - started


def _stored(columns: Columns) -> Columns:
    """Written to disk and read back."""
    from tangora.tangent import load_columns

    with tempfile.TemporaryDirectory() as scratch:
        columns.save(Path(scratch) / "columns.safetensors")
        return load_columns(Path(scratch) / "columns.safetensors")


def _warm_up(base: Base, experts: dict[str, Adapter], work: Any) -> None:
    """Imports, thread pools, kernels: a few rows of a task of their own."""
    from sweep_work import accuracies, forward_logits, make_task

    from tangora.tangent import make_columns

    task = make_task(replace(work, rows=4), 0, seed=1)
    columns = make_columns(base, task, "test", experts)
    ones = columns.columns.new_ones(1, len(experts))
    accuracies(columns, ones)
    forward_logits(base, task, experts, ones[0].tolist(), 4)


def table(found: dict[str, Any]) -> str:
    """Markdown: machine, a row a task, the sum, and which goals were met."""
    count, tasks = found["settings"]["candidates"], found["tasks"]
    head = ["task of classes", "columns made, s", "written and read, s", f"{count} fusions on them, s"]
    head += ["one fusion by a forward pass, s", "largest difference"]
    rows = [_row(str(task["classes"]), _seconds([task]), task["difference"]) for task in tasks]
    rows.append(_row("**all**", _seconds(tasks), [d for task in tasks for d in task["difference"]]))
    lines = [_about(found), "", "| " + " | ".join(head) + " |", "|" + "---:|" * len(head), *rows, ""]
    return "\n".join([*lines, *_goals(_seconds(tasks), found), "", _without(_seconds(tasks), found)])


def _seconds(tasks: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of all tasks together."""
    found = {part: sum(task[part] for task in tasks) for part in ("fill", "stored", "sweep")}
    return {**found, "forward": sum(median(task["forward"]) for task in tasks)}


def _row(name: str, seconds: dict[str, float], differences: Sequence[float]) -> str:
    cells = [name, *(f"{value:.3g}" for value in seconds.values()), f"{max(differences):.0e}"]
    return "| " + " | ".join(cells) + " |"


def _goals(seconds: dict[str, float], found: dict[str, Any]) -> Iterator[str]:
    """Of the time of everything, of one fusion's, and of the logits."""
    forward = seconds["forward"] * found["settings"]["candidates"]
    total = _total(seconds)
    yield goal("everything, at most 1.3 times the making of the columns", total / seconds["fill"], most=1.3)
    words = "times as fast as by a forward pass, at least 100"
    yield goal(f"a fusion, the making of the columns included: {words}", forward / total, least=100)
    yield goal(f"a fusion, once the columns stand: {words}", forward / seconds["sweep"], least=100)
    worst = max(max(task["difference"]) for task in found["tasks"])
    verdict = "met" if worst <= TOLERANCE else "**not met**"
    yield f"- logits against those of a forward pass, at most {TOLERANCE:.0e} of the largest: {worst:.0e}, {verdict}"


def _without(seconds: dict[str, float], found: dict[str, Any]) -> str:
    count, few = found["settings"]["candidates"], len(found["tasks"][0]["forward"])
    hours = seconds["forward"] * count / 3600
    return (
        f"By a forward pass, {few} fusions of each task were scored; all {count} on every task would take "
        f"{hours:.1f} hours at that speed (extrapolated). With columns it was {_total(seconds):.0f} seconds."
    )


def _total(seconds: dict[str, float]) -> float:
    return seconds["fill"] + seconds["stored"] + seconds["sweep"]


def _about(found: dict[str, Any]) -> str:
    settings, on = found["settings"], found["machine"]
    packages = ", ".join(f"{name} {found['versions'][name]}" for name in ("python", "torch", "transformers"))
    load = ", ".join(f"{on[when][0]:.1f}" for when in ("load_before", "load_after"))
    return (
        f"{on['cpu']}, {on['cores']} cores; load before and after: {load}; {settings['threads']} threads. {packages}. "
        f"{found['date'][:10]}. {len(found['tasks'])} experts of rank {settings['rank']}, {settings['rows']} rows a "
        f"task; every sample is in [`{RESULT.name}`](../benchmarks/results/{RESULT.name})."
    )


if __name__ == "__main__":
    main()
