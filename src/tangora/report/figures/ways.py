"""Score of each way to one model: against the numbers that it stores, and against the data that it needs."""

from __future__ import annotations

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, Locator, LogLocator, NullFormatter

from tangora.report.figures import legend
from tangora.report.summary import Summary
from tangora.report.theme import Layout, color, marker, panels, series_role
from tangora.report.ways import DATA, GROUPS, Way, ways

__all__ = ["absent", "draw"]


def absent(summary: Summary) -> str | None:
    """Return why there is nothing to draw: nothing to compare fusions with."""
    return None if ways(summary) else "the run has neither joint modes nor routed fusions"


def draw(summary: Summary, layout: Layout) -> Figure:
    """Draw a point for each way, in two panels; the colour is its group."""
    listed = [way for way in ways(summary) if _height(way) is not None]
    height, columns = (240, 1) if layout.narrow else (330, 2)
    figure, (sizes, needs) = panels(layout, 2, height=height, columns=columns, share_x=False)
    for way in listed:
        if way.stored is not None:
            _point(sizes, listed, way, way.stored)
        _point(needs, listed, way, DATA.index(way.data) + _shift(listed, way))
    sizes.set_xscale("log")
    sizes.xaxis.set_major_locator(_sizes([way.stored for way in listed if way.stored is not None]))
    sizes.xaxis.set_major_formatter(EngFormatter(sep=""))  # by default it is TeX, which is shown as is
    sizes.xaxis.set_minor_formatter(NullFormatter())
    sizes.set_xlabel("numbers stored per task")
    needs.set_xticks(range(len(DATA)), [textwrap.fill(name, 7 if layout.narrow else 12) for name in DATA])
    needs.set_xlabel("data needed")
    sizes.set_ylabel("mean test score" if summary.direction else "share of the experts' scores")
    legend.above(figure, layout, [_sample(listed, way) for way in listed])
    return figure


def _sizes(stored: list[float]) -> Locator:
    """Return the ticks of sizes: powers of ten, and 2 and 5 between them if few powers would be seen."""
    few = not stored or max(stored) < 100 * min(stored)
    return LogLocator(subs=(1, 2, 5) if few else (1,))


def _height(way: Way) -> float | None:
    return way.score if way.score is not None else way.kept


def _point(axis: Axes, listed: list[Way], way: Way, x: float) -> None:
    paint, shape = _look(listed, way)
    axis.plot([x], [_height(way) or 0.0], color=paint, marker=shape, linestyle="none")
    if way.sd is not None and way.score is not None:
        axis.vlines([x], [way.score - way.sd], [way.score + way.sd], color=paint, linewidth=1.1)


def _look(listed: list[Way], way: Way) -> tuple[str, str]:
    """Return colour and marker: the group's colour, and a marker of the way's own within it."""
    own = [other.name for other in listed if other.group == way.group].index(way.name)
    return color(series_role(GROUPS.index(way.group))), marker(own)


def _sample(listed: list[Way], way: Way) -> Line2D:
    paint, shape = _look(listed, way)
    return Line2D([], [], color=paint, marker=shape, linestyle="none", label=way.name)


def _shift(listed: list[Way], way: Way) -> float:
    """Return a shift to the side, so that ways with equal needs and scores can be told apart."""
    alike = [other.name for other in listed if other.data == way.data]
    return 0.7 * (alike.index(way.name) - (len(alike) - 1) / 2) / len(alike)
