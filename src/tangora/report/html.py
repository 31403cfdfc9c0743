"""The report as one self-contained HTML file, which needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tangora.report import tables
from tangora.report._page import render
from tangora.report.figures import PLOTS, Plot
from tangora.report.headline import headline
from tangora.report.summary import Summary
from tangora.report.theme import LAYOUTS, inline_svg, save, settle, style

__all__ = ["Drawing", "draw_all", "page"]

_WARNINGS = 12  # that the page shows


@dataclass(frozen=True)
class Drawing:
    """A figure of the page: an SVG per layout, or the reason why there is none."""

    plot: Plot
    svg: Mapping[str, Markup]
    absent: str | None = None


def draw_all(summary: Summary, folder: Path) -> list[Drawing]:
    """Draw every figure, as ``name.png`` and ``name.pdf`` in ``folder`` and as SVG for the page."""
    return [_draw(summary, plot.of(summary), folder) for plot in PLOTS if not (plot.extra and plot.absent(summary))]


def _draw(summary: Summary, plot: Plot, folder: Path) -> Drawing:
    reason = plot.absent(summary)
    if reason is not None:
        return Drawing(plot, {}, reason)
    svg = {}
    for layout in LAYOUTS:
        salt = f"{plot.name}-{layout.name}"
        with style(layout, salt):
            figure = plot.draw(summary, layout)
            settle(figure)
            if not layout.narrow:
                save(figure, folder, plot.name)
            width, height = (round(72 * x, 1) for x in figure.get_size_inches())
            svg[layout.name] = _labelled(inline_svg(figure, salt), plot, salt, f"0 0 {width} {height}")
    return Drawing(plot, svg)


def _labelled(body: str, plot: Plot, salt: str, box: str) -> Markup:
    head = Markup('<svg viewBox="{box}" role="img" aria-labelledby="{salt}-title {salt}-desc">').format(
        box=box, salt=salt
    )
    description = Markup('<title id="{0}-title">{1}</title><desc id="{0}-desc">{2}</desc>').format(
        salt, plot.title, plot.caption
    )
    return head + description + Markup(body) + Markup("</svg>")


def page(summary: Summary, drawings: list[Drawing]) -> str:
    """Return the complete page."""
    run = summary.run
    all_rows = tables.csv_table(run.path / "scores.csv")
    return render(
        "report.html.jinja",
        styles=["report.css"],
        scripts=["report.js"],
        title=str(run.recipe.get("title") or run.recipe.get("name") or run.path.resolve().name),
        description=str(run.recipe.get("description") or ""),
        headline=headline(summary),
        warnings=run.warnings[:_WARNINGS],
        more_warnings=max(0, len(run.warnings) - _WARNINGS),
        drawings=drawings,
        overview=tables.overview(summary),
        by_size=tables.by_size(summary) if summary.fused else None,
        training=tables.training(summary) if run.training else None,
        polish=tables.polish(summary),
        ways=tables.ways_table(summary),
        both_ways=tables.both_ways(summary),
        analyses=tables.analyses(summary) if run.analyses.modes else None,
        rows=all_rows if len(all_rows.rows) <= tables.MOST_ROWS else None,
        row_count=len(all_rows.rows),
        has_candidates=bool(run.candidates),
        recipe=run.recipe_text,
        facts=facts(run.info),
        missing=run.missing,
        explorers=[path.name for path in sorted(run.path.glob("explorer-*.html"))],
    )


_GROUPS = {"seconds": "wall time", "tasks": "rows", "cut": "rows that were cut"}


def facts(info: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return the content of ``run.json`` as groups of names and values, nested names joined by dots."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, value in info.items():
        group, pairs = (name, value) if isinstance(value, Mapping) else ("run", {name: value})
        groups.setdefault(_GROUPS.get(group, group.replace("_", " ")), []).extend(
            _flat(pairs, timed="second" in name or "time" in name)
        )
    return {name: pairs for name, pairs in groups.items() if pairs}


def _flat(values: Mapping[str, Any], *, timed: bool, prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and not timed:
            pairs.append((prefix + str(name), ", ".join(f"{k} {_plain(v)}" for k, v in value.items())))
        elif isinstance(value, Mapping):
            pairs += _flat(value, timed=timed or "second" in name, prefix=f"{prefix}{name}.")
        else:
            seconds = (timed or "second" in name) and isinstance(value, (int, float)) and not isinstance(value, bool)
            pairs.append((prefix + str(name), duration(value) if seconds else _plain(value)))
    return pairs


def duration(seconds: float) -> str:
    """Return ``3725`` as ``1 h 2 min 5 s``; below a minute with one decimal."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours} h " if hours else "") + f"{minutes} min {rest} s"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
