"""How strong experts are, and what their fusion keeps: every mode at several rates, numbers of steps and decays.

Data flow: `settings` makes of the recipe text7 one with a mode a variant and three tasks; the run writes its
summary.json; `rows` joins it with the variants; `table` and `figure` draw them. A variant is chosen by the fused score
on validation rows: not by the best experts, and by nothing on test rows.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

__all__ = ["TASKS", "VARIANTS", "Row", "Variant", "figure", "rows", "settings", "table"]

TASKS = ("sst2", "trec6", "tweet_emotion")
STEPS = 40
R32 = {"r": 32, "alpha": 64}
MODES: Mapping[str, Mapping[str, Any]] = {
    "LoRA, r = 8": {},
    "L-LoRA, r = 32": {"linearize": "module", "lora": R32},
    "tangent, r = 32": {"linearize": "model", "lora": R32},
}


@dataclass(frozen=True)
class Variant:
    """A mode as it is trained. ``decay`` is AdamW's: it pulls B towards 0, which is its start."""

    mode: str
    rate: float
    steps: int = STEPS
    decay: float = 0.0

    @property
    def name(self) -> str:
        """Its name as a mode of the run."""
        name = "".join(c if c.isalnum() else "-" for c in self.mode.replace(", r = ", "-r").lower())
        return f"{name}-at-{self.rate:g}-for-{self.steps}-decay-{self.decay:g}"

    @property
    def settings(self) -> dict[str, Any]:
        """Its mode in a recipe."""
        training = {"learning_rate": self.rate, "steps": self.steps, "weight_decay": self.decay}
        return {**MODES[self.mode], "training": training}


RATES: Mapping[str, Sequence[float]] = {
    "LoRA, r = 8": (5e-4, 1e-3, 2e-3),
    "L-LoRA, r = 32": (5e-4, 1e-3, 2e-3),
    "tangent, r = 32": (1e-3, 2e-3, 5e-3),
}
USUAL = {"tangent, r = 32": 2e-3}
VARIANTS = (
    *(Variant(mode, rate) for mode, rates in RATES.items() for rate in rates),
    *(Variant(mode, rate, steps=STEPS // 2) for mode, rate in USUAL.items()),
    *(Variant(mode, rate, decay=5.0) for mode, rate in USUAL.items()),
)


@dataclass(frozen=True)
class Row:
    """What became of a variant: means over the tasks, fused by task arithmetic with the λ that validation chose."""

    variant: Variant
    experts_seen: float
    fused_seen: float
    experts: float
    fused: float
    interval: tuple[float, float]
    kept: float


def settings() -> list[str]:
    """What is set in the recipe text7, apart from its tasks."""
    methods = [{"method": "task_arithmetic", "weights": [0.2, 0.4, 0.6, 0.8, 1.0]}]
    fusion = {"subsets": {"sizes": [len(TASKS)]}, "methods": methods}
    modes = {variant.name: variant.settings for variant in VARIANTS}
    training = {"steps": STEPS, "batch_size": 16, "checkpoint_every": None}
    told = {"modes": modes, "fusion": fusion, "training": training}
    return ["name=text7-frontier", *(f"{key}={json.dumps(value)}" for key, value in told.items())]


def rows(run: Path) -> list[Row]:
    """A row a variant, from a finished run."""
    means = json.loads((run / "summary.json").read_text())["rows"]
    seen = _validation(run)
    found = []
    for variant in VARIANTS:
        name = variant.name
        expert = next(m for m in means if (m["mode"], m["method"]) == (name, "expert"))
        fused = next(m for m in means if (m["mode"], m["method"], m["space"]) == (name, "task_arithmetic", "delta"))
        interval = (fused["absolute_low"], fused["absolute_high"])
        on = [seen[name, method] for method in ("expert", "task_arithmetic")]
        found.append(Row(variant, *on, expert["absolute"], fused["absolute"], interval, fused["kept"]))
    return found


def _validation(run: Path) -> dict[tuple[str, str], float]:
    """(mode, method) -> mean over the tasks of the scores on validation rows, each expert on its own task."""
    scores: dict[tuple[str, str], list[float]] = {}
    with (run / "scores.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            own = row["method"] != "expert" or row["subset"] == row["task"]
            if row["split"] == "validation" and row["task"] in TASKS and row["space"] in ("", "delta") and own:
                scores.setdefault((row["mode"], row["method"]), []).append(float(row["score"]))
    return {key: fmean(values) for key, values in scores.items()}


def table(found: Sequence[Row]) -> Iterator[str]:
    """The rows as Markdown; of each mode, the variant with the best fused score on validation rows is in bold."""
    heads = ["mode", "rate", "steps", "decay", "experts, validation", "fused, validation"]
    heads += ["experts, test", "fused, test", "kept"]
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'---:|' * (len(heads) - 1)}"
    for row in found:
        v = row.variant
        best = max(r.fused_seen for r in found if r.variant.mode == v.mode)
        chosen = f"**{row.fused_seen:.3f}**" if row.fused_seen == best else f"{row.fused_seen:.3f}"
        low, high = row.interval
        cells = [v.mode, f"{v.rate:g}", f"{v.steps}", f"{v.decay:g}", f"{row.experts_seen:.3f}", chosen]
        cells += [f"{row.experts:.3f}", f"{row.fused:.3f} [{low:.3f}, {high:.3f}]", f"{row.kept:.1%}"]
        yield f"| {' | '.join(cells)} |"


def figure(found: Sequence[Row], path: Path) -> None:
    """Experts' mean against what their fusion keeps; a line a mode through its rates, its other variants beside it."""
    from tangora.report.theme import WIDE as LAYOUT
    from tangora.report.theme import color, marker, panels, series_role, style

    with style(LAYOUT, "frontier"):
        drawn, (axis,) = panels(LAYOUT, 1, height=460)
        for i, mode in enumerate(MODES):
            own = [r for r in found if r.variant.mode == mode]
            line = [r for r in own if r.variant.steps == STEPS and r.variant.decay == 0]
            look = {"color": color(series_role(i)), "marker": marker(i)}
            axis.plot([r.experts for r in line], [100 * r.kept for r in line], label=mode, **look)
            for row in own:
                place = (row.experts, 100 * row.kept)
                if row not in line:
                    axis.plot(*place, markerfacecolor="none", **look)
                axis.annotate(_word(row.variant), place, (6, 4), textcoords="offset points", fontsize=9)
        axis.set(xlabel="mean of the experts, test accuracy", ylabel="kept by the three fused, %")
        axis.legend()
        drawn.savefig(path, dpi=110)


def _word(variant: Variant) -> str:
    if variant.decay:
        return "decay"
    return f"{variant.rate:g}" if variant.steps == STEPS else f"{variant.steps} steps"
