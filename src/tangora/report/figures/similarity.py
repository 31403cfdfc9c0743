"""Heat maps of a number for every pair of task vectors, a panel per mode: cosines, sign conflicts, subspaces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tangora.report.analyses import PairwiseEntry
from tangora.report.data import Similarity
from tangora.report.summary import Summary, mode_name
from tangora.report.theme import Layout, color, panels

__all__ = ["absent", "angles", "draw", "no_angles", "no_signs", "signs"]

_STRONGEST = 0.5  # opacity of the largest value: the number on it stays legible in both themes


def absent(summary: Summary) -> str | None:
    """Return why there is nothing to draw: no cosines."""
    if not summary.run.similarity:
        return summary.run.missing.get("similarity.json", "similarity.json is empty")
    return None


def draw(summary: Summary, layout: Layout) -> Figure:
    """Draw cosines."""
    return _draw(summary, layout, summary.run.similarity)


def no_signs(summary: Summary) -> str | None:
    """Return why there is nothing to draw: no sign conflicts."""
    return None if summary.run.analyses.signs else "analysis/signs.json has no entries"


def signs(summary: Summary, layout: Layout) -> Figure:
    """Draw sign conflicts, relative to random signs."""
    return _draw(summary, layout, _pairwise(summary.run.analyses.signs), middle=0.5, above="s1", below="s0")


def no_angles(summary: Summary) -> str | None:
    """Return why there is nothing to draw: no subspaces."""
    return None if summary.run.analyses.angles else "analysis/angles.json has no entries"


def angles(summary: Summary, layout: Layout) -> Figure:
    """Draw common directions."""
    return _draw(summary, layout, _pairwise(summary.run.analyses.angles))


def _pairwise(entries: Sequence[PairwiseEntry]) -> dict[str, Similarity]:
    return {entry.mode: Similarity(entry.tasks, entry.combined()) for entry in entries}


def _draw(
    summary: Summary,
    layout: Layout,
    by_mode: Mapping[str, Similarity],
    *,
    middle: float = 0.0,
    above: str = "s0",
    below: str = "s1",
) -> Figure:
    """Draw cells in series colours with opacities, so that they work on light and dark backgrounds."""
    modes = sorted(by_mode, key=lambda m: (summary.run.modes.index(m) if m in summary.run.modes else 99, m))
    size = max(len(by_mode[m].tasks) for m in modes)
    columns = 1 if layout.narrow else min(3, len(modes))
    letters = int((layout.width - 110) / columns / layout.text / 0.85)  # of a title, before it needs a further line
    titles = [fill(mode_name(mode), letters) for mode in modes]
    lines = max(title.count("\n") for title in titles)
    cell = min(44.0, (layout.width - 110) / columns / size)
    figure, axes = panels(layout, len(modes), height=cell * size + 32 + lines * layout.text, columns=columns)
    longest = max(len(t) for m in modes for t in by_mode[m].tasks)
    width, height = figure.get_size_inches()
    slanted = 0.42 * layout.text * longest  # the names below the lowest row, at 45 degrees
    figure.set_size_inches(width, height + (slanted - 20) / 72)
    shades = _Shades(
        middle, max((abs(x - middle) for m in modes for x in _off_diagonal(by_mode[m])), default=1.0), above, below
    )
    for axis, mode, title in zip(axes, modes, titles, strict=True):
        axis.set_title(title)
        _cells(axis, by_mode[mode], shades, layout.text - (1 if cell > 30 else 2))
    figure.draw_without_rendering()  # square panels need a second round of layout
    return figure


@dataclass(frozen=True)
class _Shades:
    """Colour and opacity of a value, by its distance from the middle."""

    middle: float
    largest: float
    above: str
    below: str

    def of(self, value: float) -> tuple[str, float]:
        """Return a colour and its opacity."""
        away = 0.0 if math.isnan(value) else value - self.middle
        return color(self.above if away >= 0 else self.below), min(1.0, abs(away) / (self.largest or 1.0)) * _STRONGEST


def _cells(axis: Axes, similarity: Similarity, shades: _Shades, text: float) -> None:
    size = len(similarity.tasks)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    for i, row in enumerate(similarity.cosine):
        for j, value in enumerate(row):
            if i == j:
                continue
            paint, strength = shades.of(value)
            axis.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, facecolor=paint, alpha=strength))
            axis.text(j, i, _number(value), ha="center", va="center_baseline", fontsize=text)
    axis.set_box_aspect(1)
    axis.set_xlim(-0.5, size - 0.5)
    axis.set_ylim(size - 0.5, -0.5)
    axis.set_xticks(range(size), similarity.tasks, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(size), similarity.tasks)


def _off_diagonal(similarity: Similarity) -> list[float]:
    rows = enumerate(similarity.cosine)
    return [x for i, row in rows for j, x in enumerate(row) if i != j and not math.isnan(x)]


def _number(value: float) -> str:
    """Return two decimals without the leading zero, which would not fit."""
    return "–" if math.isnan(value) else f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")
