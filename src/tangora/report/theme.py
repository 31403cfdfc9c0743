"""The style of figures: colours by role, two layouts, and output as SVG, PNG and PDF.

A figure is drawn once, in the light colours. Every colour belongs to exactly one role, so in the SVG of the page each
is replaced by a CSS variable, and the page's theme sets the colour.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter

from tangora.report.palette import COLORS

__all__ = ["LAYOUTS", "Layout", "color", "inline_svg", "log_if_wide", "marker", "panels", "save", "settle", "style"]

_SERIES = [role for role in COLORS if re.fullmatch(r"s\d", role)]
_MARKERS = "os^DvPX*<>pH"  # twice as many as colours: twelve modes differ


@dataclass(frozen=True)
class Layout:
    """A width in CSS pixels, the number of panels side by side, and a legible text size."""

    name: str
    width: float
    columns: int
    text: float

    @property
    def narrow(self) -> bool:
        """Whether this is the layout for phones."""
        return self.columns <= 2


WIDE = Layout("wide", width=920, columns=4, text=13)
NARROW = Layout("narrow", width=336, columns=2, text=12)
LAYOUTS = (WIDE, NARROW)


def color(role: str) -> str:
    """Return the light colour of a role."""
    return COLORS[role][0]


def series_role(index: int) -> str:
    """Return the colour role of the ``index``-th mode."""
    return _SERIES[index % len(_SERIES)]


def marker(index: int) -> str:
    """Return the marker of the ``index``-th mode, so that colour is never the only difference."""
    return _MARKERS[index % len(_MARKERS)]


@contextmanager
def style(layout: Layout, salt: str) -> Iterator[None]:
    """Use Matplotlib's defaults with our changes, ignoring the user's configuration; restore it afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = mpl.rcParams
        settings.update(_settings(layout.text, salt))
        yield


def _settings(text: float, salt: str) -> dict[str, Any]:
    colors = {f"{key}.color": color("muted") for key in ("xtick", "ytick")}
    return colors | {
        "text.color": color("fg"),
        "text.parse_math": False,  # a task may be called $x$
        "font.size": text,
        "axes.titlesize": text,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": text,
        "xtick.labelsize": text - 0.5,
        "ytick.labelsize": text - 0.5,
        "legend.fontsize": text,
        "legend.frameon": False,
        "axes.edgecolor": color("grid"),
        "axes.labelcolor": color("muted"),
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "grid.color": color("grid"),
        "grid.linewidth": 0.8,
        **dict.fromkeys((f"{side}tick.{kind}.size" for side in "xy" for kind in ("major", "minor")), 0),
        "lines.linewidth": 1.8,
        "lines.markersize": 5.5,
        "patch.linewidth": 0,
        "figure.facecolor": "none",
        "savefig.facecolor": color("bg"),
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "pdf.fonttype": 42,
        "path.simplify": True,
    }


def panels(
    layout: Layout,
    count: int,
    *,
    height: float,
    columns: int | None = None,
    share_x: bool = True,
    share_y: bool = True,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` panels of ``height`` pixels that share both axes, or one of them, or none."""
    across = min(columns or layout.columns, count)
    rows = -(-count // across)
    size = (layout.width / 72, (rows * height + 40) / 72)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    grid = figure.subplots(rows, across, sharex=share_x, sharey=share_y, squeeze=False)
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    for above in axes[max(0, count - across) : count]:  # the lowest panel of a column shows its ticks
        above.xaxis.set_tick_params(labelbottom=True)
    return figure, axes[:count]


def log_if_wide(axes: Axes, side: Literal["x", "y"], values: Iterable[float]) -> bool:
    """Use a logarithmic axis if values are positive and differ a hundredfold, as perplexities can; return whether."""
    defined = [value for value in values if math.isfinite(value)]
    if not defined or min(defined) <= 0 or max(defined) < 100 * min(defined):
        return False
    axes.set(**{f"{side}scale": "log"})
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # by default it is TeX, which is shown as is
    axis.set_minor_formatter(NullFormatter())
    return True


def settle(figure: Figure) -> None:
    """Compute the layout of the panels once for all three formats."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write ``name.png`` and ``name.pdf``, with the same bytes each time."""
    figure.savefig(folder / f"{name}.png", dpi=144, metadata={"Software": None})
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})


def inline_svg(figure: Figure, prefix: str) -> str:
    """Return the body of an ``<svg>`` for a page: text in the page's font, colours as CSS variables, unique ids."""
    buffer = io.StringIO()
    none = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=none, facecolor="none")
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", body)
    for role, (light, _) in COLORS.items():
        body = body.replace(light, f"var(--{role})")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(xlink:href="#|url\(#)', lambda m: f"{m[1].replace('xlink:', '')}{prefix}-", body)
    return re.sub(r"\s*\n\s*", " ", body).strip()
