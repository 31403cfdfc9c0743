"""``tangora inspect``: what it prints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tangora.cli.terminal import show

if TYPE_CHECKING:
    from rich.table import Table

    from tangora.inspection.folders import Inspected
    from tangora.inspection.fusable import Fusable

__all__ = ["AsJson", "Folders", "Sites", "inspect_folders"]

Folders = Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Adapters, checkpoints, or both.")]
Sites = Annotated[
    bool | None, typer.Option("--sites/--no-sites", help="A row per site; default for a single adapter only.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For machines: everything, as one JSON object.")]


def inspect_folders(folders: Sequence[Path], sites: bool | None, as_json: bool) -> int:
    """Print what the folders are, and whether they can be fused; the exit code is 2 where one cannot be read."""
    from tangora.inspection.folders import inspect
    from tangora.inspection.fusable import fusable

    found = [inspect(folder) for folder in folders]
    answer = fusable(found)
    if as_json:
        print(json.dumps({"folders": [one.told() for one in found], "fusable": answer.told()}, indent=2))
    else:
        for one in found:
            show(*_lines(one))
            if one.sites and (sites or (sites is None and len(found) == 1)):
                show(_table(one))
        show(*_answer(answer))
    return 2 if any(one.problem for one in found) else 0


def _lines(one: Inspected) -> Iterator[str]:
    yield f"[bold]{_plain(one.path)}[/bold]"
    if one.problem is not None:
        yield f"  cannot be read: {_plain(one.problem)}"
        return
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in one.dtypes.items())
    yield f"  {_kind(one)}: {one.parameters:,} parameters, {_size(one.size)} ({dtypes})"
    base = ", ".join(f"{key} {_short(value)}" for key, value in one.base.items() if value)
    if base:
        yield f"  {'model' if one.kind == 'checkpoint' else 'base'}: {_plain(base)}"
    told = {"task": one.task, "mode": one.mode, "linearized": one.linearize, "fused by": one.fused}
    told |= {"φ₀": one.initial and one.initial[:12]}
    if words := ", ".join(f"{key} {value}" for key, value in told.items() if value):
        yield f"  {_plain(words)}"
    if one.sites:
        yield f"  {_plain(_summary(one))}"
    if one.heads:
        yield f"  saved whole: {_plain(', '.join(one.heads[:6]) + (', …' if len(one.heads) > 6 else ''))}"
    if one.needs_base:
        yield f"  needs --base: {_plain(one.needs_base)}"
    for head, embedding in one.tied.items():
        yield f"  tied: {_plain(head)} is {_plain(embedding)}"


def _kind(one: Inspected) -> str:
    if one.kind == "checkpoint":
        return f"a checkpoint, {one.tensors} tensors in {one.shards} file{'s' if one.shards != 1 else ''}"
    return "a LoRA adapter" if one.kind == "lora" else "differences of all weights"


def _summary(one: Inspected) -> str:
    kinds = Counter(site.kind for site in one.sites)
    words = [", ".join(f"{count} {kind}" for kind, count in kinds.items()) + " sites"]
    ranks = sorted({site.rank for site in one.sites if site.rank is not None})
    scalings = sorted({site.scaling for site in one.sites if site.scaling is not None})
    words += [f"rank {_range(ranks)}"] if ranks else []
    words += [f"scaling {_range(scalings)}"] if scalings else []
    norms = [site.norm for site in one.sites if site.norm is not None]
    if norms:
        words.append(f"norm {sum(norm**2 for norm in norms) ** 0.5:.4g}")
    return ", ".join(words)


def _range(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _table(one: Inspected) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column("site", overflow="fold")
    table.add_column("kind")
    for column in ("shape", "rank", "scaling", "norm"):
        table.add_column(column, justify="right")
    for site in one.sites:
        cells: list[Any] = [
            site.rank,
            site.scaling and f"{site.scaling:g}",
            site.norm is not None and f"{site.norm:.4g}",
        ]
        shape = "×".join(map(str, site.shape))
        table.add_row(_plain(site.name), site.kind, shape, *("–" if c in (None, False) else str(c) for c in cells))
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _answer(answer: Fusable) -> Iterator[str]:
    if "all" in answer.reasons:
        yield f"cannot be fused: {_plain(answer.reasons['all'])}"
        return
    groups: dict[str, list[str]] = {}
    for space, methods in answer.spaces.items():
        groups.setdefault(", ".join(methods), []).append("--full" if space == "full" else f"--space {space}")
    for methods_, spaces in groups.items():
        yield f"can be fused with {' or '.join(spaces)}: {methods_}"
    for space, reason in answer.reasons.items():
        yield f"not with {'--full' if space == 'full' else f'--space {space}'}: {_plain(reason)}"
    yield from (_plain(note) for note in answer.notes)


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def _plain(text: str) -> str:
    """Names are data: no markup in them takes effect."""
    from rich.markup import escape

    return escape(text)
