"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangora.progress import duration
from tangora.support.shown import decimal

if TYPE_CHECKING:
    from rich.table import Table

    from tangora.evaluation.evaluator import Result
    from tangora.evaluation.harness import HarnessScores
    from tangora.methods import Method
    from tangora.report.wide import Wide
    from tangora.routing.contract import Router
    from tangora.runs.preflight import Preflight

__all__ = [
    "answer_table",
    "harness_table",
    "method_table",
    "plan_lines",
    "plan_table",
    "router_settings",
    "router_table",
    "score_table",
]

_EXAMPLE = 72  # characters of a row


def score_table(scores: Mapping[str, Mapping[str, Result]], metrics: Mapping[str, str], split: str) -> Wide:
    """Return a table of scores, with a row for each candidate, the mean first and then the tasks.

    Args:
        scores: candidate -> task -> result.
        metrics: task -> its metric. There is no mean if they have no common scale.
        split: the split that was scored.
    """
    from tangora.report.wide import Column, Wide  # deferred: with the readers of a run, which --help does without
    from tangora.tasks.metrics import direction  # deferred: --help does without numpy

    columns = []
    if direction(metrics.values()):
        means = [sum(results[name].score for name in metrics) / len(metrics) for results in scores.values()]
        columns.append(Column("mean", [decimal(mean) for mean in means]))
    for name in metrics:
        columns.append(Column(name, [decimal(results[name].score) for results in scores.values()], most=8))
    return Wide(f"score on {split}", Column("adapter", list(scores), numbers=False), columns)


def answer_table(task: str, examples: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Wide:
    """Return a table of answers, with a row for each row that was answered.

    Args:
        task: its name.
        examples: the rows as texts; empty if they are none.
        columns: of the answers, from `tangora.evaluation.answer_files.answer_columns`.
    """
    from tangora.report.wide import Column, Wide  # deferred: as above

    count = len(columns["answer"])
    shown = []
    if any(examples):
        shown.append(Column("row", [_shortened(text) for text in examples], most=36, numbers=False))
    for name, values in columns.items():
        number = name != "answer"
        most = 11 if number else 20 if len(columns) > 1 else 33
        header = name.removeprefix("probability_")
        shown.append(Column(header, [_answer(value) for value in values], most=most, numbers=number))
    title = f"{task}: {count} row{'s' if count != 1 else ''}"
    return Wide(title, Column("", [str(row) for row in range(count)], numbers=False), shown)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXAMPLE else line[: _EXAMPLE - 2] + " …"


def _answer(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_answer, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def harness_table(scores: Mapping[str, HarnessScores]) -> Wide:
    """Return a table of the harness's scores, with a row for each candidate and a column for each task and metric."""
    from tangora.report.wide import Column, Wide  # deferred: as above

    first = next(iter(scores.values()))
    columns = [
        Column(f"{task} {metric}", [f"{results[task][metric]:.3f}" for results in scores.values()])
        for task, metrics in first.items()
        for metric in metrics
    ]
    return Wide("scores by lm-evaluation-harness", Column("adapter", list(scores), numbers=False), columns)


def method_table(methods: Mapping[str, Method]) -> Table:
    """Return a table of all fusion methods."""
    from rich import box  # deferred: --json prints no table
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("what it does", overflow="fold", ratio=1)
    table.add_column("parameters", overflow="fold", max_width=18)
    table.add_column("weight", justify="right", no_wrap=True)
    for name, method in methods.items():
        parameters = "\n".join(f"{key}={value}" for key, value in method.parameters.items())
        table.add_row(name, f"{method.summary} {method.reference}", parameters, f"{method.default_weight:g}")
    return table


def router_settings(router: Router) -> dict[str, Any]:
    """Return the settings of a router and their defaults."""
    return {name: field.default for name, field in router.settings.model_fields.items() if name != "name"}


def router_table(routers: Mapping[str, Router]) -> Table:
    """Return a table of all routers, which leave the experts as they are and choose among them for every input."""
    from rich import box  # deferred: --json prints no table
    from rich.table import Table

    from tangora.routing.contract import summary_of  # deferred: torch

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("router", no_wrap=True)
    table.add_column("what it does", overflow="fold", ratio=1)
    table.add_column("settings", overflow="fold", max_width=18)
    table.add_column("needs", no_wrap=True)
    for name, router in routers.items():
        settings = "\n".join(f"{key}={value}" for key, value in router_settings(router).items())
        table.add_row(name, f"{summary_of(router)} {router.reference}", settings, router.needs)
    return table


def plan_table(plan: Preflight) -> Wide:
    """Return a table of the adapters that a run would train, with a row for each mode."""
    from tangora.report.wide import Column, Wide  # deferred: as above
    from tangora.support.sizes import size_text

    modes = plan.modes
    columns = [
        Column("adapters", [str(mode.adapters) for mode in modes]),
        *([Column("given", [str(mode.given) for mode in modes])] if any(mode.given for mode in modes) else []),
        Column("done", [str(mode.done) for mode in modes]),
        Column("steps each", [str(mode.steps or "–") for mode in modes]),
        Column("rate", [f"{mode.learning_rate:g}" if mode.steps else "–" for mode in modes]),
        Column("sites", [str(mode.sites) for mode in modes]),
        Column("trainable", [_span(*mode.trainable) if mode.steps else "–" for mode in modes]),
        Column("disk", [size_text(mode.size) for mode in modes]),
    ]
    return Wide(f"{plan.name} -> {plan.run}", Column("mode", [mode.mode for mode in modes], numbers=False), columns)


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def plan_lines(plan: Preflight) -> Iterator[str]:
    """Yield the totals of a planned run, line by line."""
    from tangora.support.sizes import size_text  # deferred: as above

    yield (
        f"{_several(len(plan.tasks), 'task')}, {_several(plan.subsets, 'subset')}, "
        f"{_several(plan.comparisons, 'comparison')}; adapters take "
        f"{size_text(plan.size)}, {size_text(plan.free)} are free"
    )
    for mode in plan.modes:
        yield f"memory of {mode.mode}, estimated: {mode.memory}"
    for mode in plan.modes:
        if (step := mode.seconds_per_step) is not None:
            left = mode.left
            all_of_it = f"{_several(left, 'adapter')} of {mode.steps} steps take{'s' if left == 1 else ''} about"
            yield f"training of {mode.mode}: {all_of_it} {duration(left * mode.steps * step)}, {step:.2g} s a step"
    done = sum(job.done for job in plan.jobs)
    planned = f"{len(plan.jobs)} jobs, {done} done"
    if done == len(plan.jobs):
        yield planned
    elif plan.seconds is None:
        yield f"{planned}; how long they take is known after the first ones"
    else:
        about = f"{planned}; the others take about {duration(plan.seconds)} in one process"
        yield (
            f"{about}, and {plan.unknown} of them longer: their searches do not say how long" if plan.unknown else about
        )
