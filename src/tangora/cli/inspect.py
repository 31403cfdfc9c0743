"""``tangora inspect``: describe folders, and determine whether they can be fused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tangora.adapters.kinds import KINDS
from tangora.cli.command import Command
from tangora.cli.options import Options
from tangora.cli.output import Output
from tangora.support.printable import printable
from tangora.support.sizes import size_text

if TYPE_CHECKING:
    from tangora.inspection.folders import Inspected
    from tangora.inspection.fusable import Fusable

__all__ = ["COMMAND", "InspectOptions", "inspect"]


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Options):
    """The folders, and the level of detail."""

    folders: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Adapters, checkpoints, or both: folders, files, org/name of the Hub."),
    ]
    sites: Annotated[
        bool | None, typer.Option("--sites/--no-sites", help="A row for each site; default: for a single adapter.")
    ] = None


def inspect(options: InspectOptions, output: Output) -> int:
    """Describe adapters and checkpoints, and whether they can be fused, in which spaces and by which methods.

    The exit code is 2 if a folder cannot be read.
    """
    from tangora.inspection.folders import inspect as inspect_folder  # deferred: imports torch
    from tangora.inspection.fusable import fusable

    inspected = [inspect_folder(folder) for folder in options.folders]
    answer = fusable(inspected)
    document = {"folders": [one.to_dict() for one in inspected], "fusable": answer.to_dict()}
    shown: list[RenderableType] = []
    for one in inspected:
        shown += [Text(printable(one.path), style="bold"), *_lines(one)]
        if one.sites and (options.sites or (options.sites is None and len(inspected) == 1)):
            shown.append(_table(one))
    output.result(document, *shown, *_answer(answer))
    return 2 if any(one.problem for one in inspected) else 0


def _lines(one: Inspected) -> Iterator[str]:
    if one.problem is not None:
        yield f"  cannot be read: {one.problem}"
        return
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in one.dtypes.items())
    yield f"  {_kind(one)}: {one.parameters:,} parameters, {size_text(one.size)} ({dtypes})"
    base = ", ".join(f"{key} {_short(value)}" for key, value in one.base.items() if value)
    if base:
        yield f"  {'model' if one.kind == 'checkpoint' else 'base'}: {base}"
    about = {"task": one.task, "mode": one.mode, "linearized": one.linearize, "fused by": one.fused}
    about |= {"φ₀": one.initial and one.initial[:12]}
    if one.format is not None and one.format != KINDS[one.kind].format:
        yield f"  format: {one.format}" + (f", of {one.layout}" if one.layout else "")
    if text := ", ".join(f"{key} {value}" for key, value in about.items() if value):
        yield f"  {text}"
    if one.routed is not None:
        yield from (f"  {line}" for line in one.routed.lines())
    elif one.sites:
        yield f"  {_summary(one)}"
    if one.heads:
        yield f"  saved whole: {', '.join(one.heads[:6]) + (', …' if len(one.heads) > 6 else '')}"
    if one.needs_base:
        yield f"  needs --base: {one.needs_base}"
    if one.quantized:
        yield f"  quantized: {one.quantized}"
    for head, embedding in one.tied.items():
        yield f"  tied: {head} is {embedding}"


def _kind(one: Inspected) -> str:
    if one.kind == "checkpoint":
        return f"a checkpoint, {one.tensors} tensors in {one.shards} file{'s' if one.shards != 1 else ''}"
    return one.title or KINDS[one.kind].summary


def _summary(one: Inspected) -> str:
    kinds = Counter(site.kind for site in one.sites)
    parts = [", ".join(f"{count} {kind}" for kind, count in kinds.items()) + " sites"]
    ranks = sorted({site.rank for site in one.sites if site.rank is not None})
    scalings = sorted({site.scaling for site in one.sites if site.scaling is not None})
    parts += [f"rank {_range(ranks)}"] if ranks else []
    parts += [f"scaling {_range(scalings)}"] if scalings else []
    norms = [site.norm for site in one.sites if site.norm is not None]
    if norms:
        parts.append(f"norm {sum(norm**2 for norm in norms) ** 0.5:.4g}")
    return ", ".join(parts)


def _range(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _table(one: Inspected) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("site", overflow="fold")
    table.add_column("kind")
    for column in ("shape", "rank", "scaling", "norm"):
        table.add_column(column, justify="right", no_wrap=True)
    for site in one.sites:
        shape = "×".join(map(str, site.shape)) or "–"
        rank = "–" if site.rank is None else str(site.rank)
        table.add_row(site.name, site.kind, shape, rank, _number(site.scaling, "g"), _number(site.norm, ".4g"))
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _answer(answer: Fusable) -> Iterator[str]:
    if "all" in answer.reasons:
        yield f"cannot be fused: {answer.reasons['all']}"
        return
    groups: dict[str, list[str]] = {}
    for space, methods in answer.spaces.items():
        groups.setdefault(", ".join(methods), []).append(_how(space))
    for names, spaces in groups.items():
        yield f"can be fused with {' or '.join(spaces)}: {names}"
    if answer.routers:
        yield f"can be routed with fuse --method: {', '.join(answer.routers)}"
    for space, reason in answer.reasons.items():
        yield f"not with {_how(space)}: {reason}"
    yield from answer.notes


def _how(space: str) -> str:
    return "merge" if space == "full" else f"--space {space}"


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


COMMAND = Command(inspect, example="tangora inspect adapters/sst2 adapters/snips base")
