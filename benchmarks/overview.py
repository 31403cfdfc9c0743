"""The table of goals at the top of docs/benchmarks.md: what was measured at first, the goal, and what is measured now.

    python benchmarks/overview.py

It reads what the other benchmarks have written to ``results/`` and measures nothing. *At first* are the figures of the
version for which a goal was set; a part of a work that takes more than the goal stands
beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import fuse_fast
from step_table import ratio, replace_between

HERE = Path(__file__).resolve().parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs" / "benchmarks.md"
MARKS = "<!-- overview:begin -->", "<!-- overview:end -->"


def main() -> None:
    """Write the table."""
    text = DOCS.read_text(encoding="utf-8")
    DOCS.write_text(replace_between(text, table(), *MARKS), encoding="utf-8")


def table() -> str:
    """Markdown: a row for each goal that has been measured."""
    head = "| work | at first | goal | now | |\n|---|---:|---:|---:|---|"
    rows = (f"| {' | '.join(cells)} |" for cells in (*_checkpoints(), *_adapters(), *_steps(), *_candidates()))
    return "\n".join([head, *rows])


def _checkpoints() -> Iterator[tuple[str, ...]]:
    if (fast := _read("fuse_fast")) is None or (peers := _read("fuse-cpu")) is None:
        return
    floor = fuse_fast.floor_of(fast)
    of_floor = {
        method: floor / median(sample["seconds"] for sample in samples["with"])
        for method, samples in fast["samples"].items()
    }
    ours, theirs = (
        median(sample["seconds"] for sample in peers["samples"][f"ties_per_tensor/{tool}"])
        for tool in ("tangora", "mergekit")
    )
    times = theirs / ours * median(fuse_fast.ratios(fast["samples"]["ties_per_tensor"]))
    name = "TIES per tensor, 5 checkpoints, `tangora[fast]`"
    yield _row(name, "8.9 × mergekit", "15 ×", f"{times:.0f} × (of two runs)", times >= 15)
    yield _row(
        "the same",
        "14 % of the floor",
        "30 %",
        f"{of_floor['ties_per_tensor']:.0%}",
        of_floor["ties_per_tensor"] >= 0.3,
    )
    share = of_floor["task_arithmetic"]
    yield _row("task arithmetic, 5 checkpoints", "66 % of the floor", "85 %", f"{share:.0%}", share >= 0.85)


def _adapters() -> Iterator[tuple[str, ...]]:
    if (found := _read("fuse_adapters")) is not None:
        scale = found["layers"]["tangora"] / found["layers"]["peft"]
        for work, name, first, least in (("svd", "`svd`", 150, 300), ("ties", "TIES", 11, 40)):
            samples = found["works"][work]
            ours, theirs = (median(sample["seconds"] for sample in samples[tool]) for tool in ("tangora", "peft"))
            times = scale * theirs / ours
            about = f"8 adapters to rank 16, {name}, {found['layers']['tangora']} layers"
            yield _row(about, f"{first} × peft", f"{least} ×", f"{times:.0f} ×", times >= least)
    if (many := _read("fuse_many")) is not None:
        count = max(many["samples"], key=int)
        share = median(one["disk"]["cat"] / one["disk"]["fuse"] for one in many["samples"][count])
        name = f"{count} adapters of a 7B shape averaged, from the disk"
        yield _row(name, "29 % of `cat`", "70 %", f"{share:.0%}", share >= 0.7)


def _steps() -> Iterator[tuple[str, ...]]:
    if (floors := _read("step_floor-cpu")) is None:
        return
    for shape in floors["shapes"].values():
        seconds = shape["seconds"]
        ours, floor = (ratio(seconds[name], seconds["lora"])[0] for name in ("l_lora", "through"))
        goal = 0.9 if "dropout" in shape["title"] else 0.95
        now = f"{ours:.2f}; its passes alone {floor:.2f}"
        yield _row(
            f"L-LoRA's step, {shape['title']}", "0.97–1.01 of LoRA's", f"{goal}", now, ours <= goal, floor > goal
        )
    for shape in floors["shapes"].values():
        seconds = shape["seconds"]
        both = [a + b for a, b in zip(seconds["pass"], seconds["through"], strict=True)]
        ours, floor = (ratio(samples, seconds["lora"])[0] for samples in (seconds["tangent"], both))
        now = f"{ours:.2f}; its passes alone {floor:.2f}"
        yield _row(f"tangent step, {shape['title']}", "1.41–1.48 of LoRA's", "1.25", now, ours <= 1.25, floor > 1.25)


def _candidates() -> Iterator[tuple[str, ...]]:
    if (found := _read("candidates-cpu")) is None:
        return
    seconds = found["seconds"]
    most = ratio(seconds["scored"], seconds["products"])[0]
    more = {name: ratio(seconds["scored"], [one / int(name.split()[1]) for one in samples])[0] for name, samples in
            seconds.items() if name.startswith("together")}  # fmt: skip
    best = max(more.values())
    now = f"{best:.1f} × in one pass; products alone {most:.2f} ×"
    yield _row("candidates a minute, by forward passes", "1 pass each", "3 ×", now, best >= 3, most < 3)


def _row(work: str, first: str, goal: str, now: str, met: bool, beyond: bool = False) -> tuple[str, ...]:
    return work, first, goal, now, "met" if met else "**not met**" + (", a part of it takes more" if beyond else "")


def _read(name: str) -> Any:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


if __name__ == "__main__":
    main()
