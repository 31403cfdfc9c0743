"""What `tangora fuse` does if the method is a router that learns from rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tangora.cli.row_files import row_files

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.metadata import FusedInfo
    from tangora.cli.fuse import FuseOptions
    from tangora.cli.output import Output
    from tangora.fusion.fusion import Fusion
    from tangora.tasks import Task

__all__ = ["learn", "learned_lines"]


def learn(options: FuseOptions, fusion: Fusion, settings: Any, output: Output) -> Adapter | None:
    """Return the routed adapter; None for a dry run, which prints what would be done.

    Raises:
        ArgumentError: there are no rows, or those of other tasks.
    """
    base = None if options.base is None else str(options.base)
    files = row_files(options.method, options.data, options.recipe, options.recipe_settings, base)
    from tangora.cli.experts import from_files, from_recipe  # deferred: imports torch
    from tangora.fusion.routed import routed
    from tangora.modes.belonging import refuse_another_base
    from tangora.modes.contract import reporting
    from tangora.modes.finetuning import in_work_folder
    from tangora.routing.contract import RoutingBench
    from tangora.tasks.cuts import cut_lines, cuts

    trust, scratch = options.trust_remote_code, options.out.parent / f".{options.out.name}.training"
    with output.progress() as progress:
        if options.recipe is None:
            labelled = getattr(settings, "objective", None) == "labels"
            loaded, tasks = from_files(options.adapters, files, base, labelled=labelled, trust=trust)
        else:
            chosen = options.recipe_settings or []
            loaded, tasks = from_recipe(options.adapters, options.recipe, chosen, progress, trust=trust)
        for line in cut_lines({task.name: cuts(task) for task in tasks}, [settings.rows_of]):
            progress.note(f"warning: {line}")
        if options.dry_run:
            output.result(*_plan(options, settings, tasks))
            return None
        for adapter in fusion.adapters:
            refuse_another_base(adapter, loaded, same_base=options.same_base)
        progress.begin(options.method, getattr(settings, "steps", 0))
        with in_work_folder(scratch, options.out):
            on_step = reporting(progress, None, digits=4)
            bench = RoutingBench(loaded, tasks, options.seed, scratch, scratch / "answers", on_step)
            made = routed(fusion, settings, bench, where="--method")
        progress.end()
    return made


def learned_lines(about: FusedInfo | None) -> Iterator[str]:
    """What a router learned, line by line; nothing for one that does not learn."""
    record = about.selection if about is not None else None
    if not record or "objective" not in record:
        return
    count = " and ".join(str(one) for one in sorted(set(record["rows"].values())))
    where = f"{count} {record['split']} rows of each task"
    yield f"learned by {record['objective']} on {where}, {record['trained']:,} numbers; step {record['step']} was kept"
    if record["oracle"]:
        yield "these are test rows: scores on them say little"
    for key, what in (("pruning_error", "pruning"), ("truncation_error", "factors of pruned matrices")):
        if key in record:
            yield f"relative error of the {what}: {record[key]:.3g}"
    yield f"{record['objective']} on {record['measured_on'].replace('the same', 'the same rows')}, in nats:"
    width = max(map(len, record["before"]))
    for name, before in record["before"].items():
        yield f"  {name:<{width}}  {before:.4f} → {record['after'][name]:.4f}"


def _plan(options: FuseOptions, settings: Any, tasks: list[Task]) -> tuple[dict[str, Any], str]:
    """Return what would be done: rows, and the work in rows that pass forward through the model."""
    rows = {task.name: len(task.splits.get(settings.rows_of, ())) for task in tasks}
    classes = all(task.form.logits_over == "classes" for task in tasks)
    passes = settings.passes(list(rows.values()), classes=classes)
    document = {"dry_run": True, "rows": rows, "passes": passes, "settings": settings.model_dump(mode="json")}
    line = f"would route {len(tasks)} adapters by {options.method}: about {passes:,.0f} rows through the model"
    return document, line
