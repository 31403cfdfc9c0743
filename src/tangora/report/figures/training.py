"""Training curves: a panel per task, a line per mode."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tangora.report.data import Training
from tangora.report.figures import legend
from tangora.report.summary import Summary
from tangora.report.theme import Layout, color, marker, panels, series_role

__all__ = ["absent", "draw"]


def absent(summary: Summary) -> str | None:
    """Return why there is nothing to draw: no logged losses."""
    if not summary.run.training:
        return summary.run.missing.get("training.json")
    return None if any(t.loss for t in summary.run.training.values()) else "no training.json holds a loss"


def draw(summary: Summary, layout: Layout) -> Figure:
    """Draw the loss by step, with shared axes, so that tasks are comparable."""
    trainings = summary.run.training
    modes = list(dict.fromkeys([*summary.run.modes, *(m for m, _ in trainings)]))
    trained = dict.fromkeys(t for _, t in trainings)
    tasks = [*(t for t in summary.run.tasks if t in trained), *(t for t in trained if t not in summary.run.tasks)]
    figure, axes = panels(layout, len(tasks), height=150 if layout.narrow else 190)
    for axis, task in zip(axes, tasks, strict=True):
        axis.set_title(task if len(task) <= 20 else task[:19] + "…")
        for index, mode in enumerate(modes):
            if (mode, task) in trainings:
                _curve(axis, trainings[mode, task], index, summary.run.trainings.get((mode, task), ()))
    figure.supxlabel("optimizer step", fontsize=layout.text, color=color("muted"))
    figure.supylabel("loss", fontsize=layout.text, color=color("muted"))
    legend.above(figure, layout, [legend.mode_line(modes, m) for m in modes if any(m == k for k, _ in trainings)])
    return figure


def _curve(axis: Axes, training: Training, index: int, with_seeds: Sequence[Training]) -> None:
    paint = color(series_role(index))
    if len(with_seeds) > 1:
        for one in with_seeds:
            smooth = _smooth(one.loss, max(1, len(one.loss) // 10))
            axis.plot(one.steps, smooth, color=paint, alpha=0.35, linewidth=0.8)
    else:
        axis.plot(training.steps, training.loss, color=paint, alpha=0.3, linewidth=0.8)
    axis.plot(training.steps, _smooth(training.loss, max(1, len(training.loss) // 10)), color=paint)
    measured = [(v["step"], v["loss"]) for v in training.validation if v.get("loss") is not None]
    axis.plot([s for s, _ in measured], [x for _, x in measured], marker(index), color=paint, markersize=5)


def _smooth(values: list[float], window: int) -> list[float]:
    """Return means over the last ``window`` values, over fewer at the start."""
    parts = [values[max(0, i - window + 1) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]
