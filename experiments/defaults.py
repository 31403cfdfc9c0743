"""Fusion with nothing but the experts: every method with one fixed setting, since no row can choose another.

    python experiments/defaults.py --data FOLDER --encoder FOLDER_OR_HUB_ID [--out runs/polish] [--only NAME...]
    python experiments/defaults.py --out runs/polish --table

Data flow: the LoRA experts of `polish.Study` (trained once, shared with that experiment) ── a method at its default
weight, or at a weight that is written here ──▶ scores on up to 300 test rows of 3 and of all 7 tasks ──▶ a line of
``OUT/defaults.jsonl`` ──▶ the table of docs/quality.md. The last column of the table is the least that an entry keeps
over numbers of tasks and seeds: a default has to do for all of them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from polish import Study, arguments, read, study_of

import tangora

PAGE = Path(__file__).parents[1] / "docs" / "quality.md"
NUMBERS = (3, 7)


@dataclass(frozen=True)
class Entry:
    """A fusion without a choice; None is the method's default weight."""

    method: str
    weight: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None


_NAMES = """
average task_arithmetic ties dare_ties della breadcrumbs magnitude_prune consensus pcb model_stock knots tsv_m iso_c
wudi cart do_merging robust_merge pico equal_norms mean_norm mean_norm+tsv_m mean_norm+ties_per_tensor mean_norm+pico
ctm
"""
ENTRIES: dict[str, Entry] = {name: Entry(name) for name in _NAMES.split()}
ENTRIES |= {
    "task_arithmetic, λ 0.5": Entry("task_arithmetic", 0.5),
    "mean_norm, λ 1.3": Entry("mean_norm", 1.3),
    "mean_norm, λ 1.6": Entry("mean_norm", 1.6),
    "mean_norm, rank 16": Entry("mean_norm", rank=16),
    "mean_norm, λ 1.3, rank 16": Entry("mean_norm", 1.3, rank=16),
    "knots, density 0.5": Entry("knots", parameters={"density": 0.5}),
}


def measure(study: Study, name: str, count: int) -> dict[str, Any]:
    """Return the line of an entry on the first tasks."""
    entry, tasks = ENTRIES[name], study.tasks[:count]
    experts = [study.of_mode("lora")[task.name] for task in tasks]
    began = time.process_time()
    fused = tangora.fuse(experts, entry.method, entry.weight, rank=entry.rank, **entry.parameters)
    seconds = time.process_time() - began
    scores, own = study.scores(fused, tasks), study.own("lora")
    kept = fmean(scores[task.name] / own[task.name] for task in tasks)
    line = {"name": name, "seed": study.seed, "tasks": count, "mean": fmean(scores.values()), "kept": kept}
    return {
        **line,
        "scores": scores,
        "experts": {t.name: own[t.name] for t in tasks},
        "fuse_seconds": round(seconds, 2),
    }


def main() -> None:
    """Do what is missing, or write the table."""
    given = arguments(__doc__)
    results = given.out / "defaults.jsonl"
    if given.table:
        write(read(results))
        return
    study = study_of(given.data, given.encoder, given.out, given.seed, test=300)
    for name in given.only or ENTRIES:
        for count in NUMBERS:
            if (name, given.seed, count) in {(one["name"], one["seed"], one["tasks"]) for one in read(results)}:
                continue
            line = measure(study, name, count)
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name}, {count} tasks: mean {line['mean']:.4f}, kept {line['kept']:.4f}", flush=True)


def table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table: means over seeds, the best for all tasks first."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        by_name.setdefault(line["name"], []).append(line)
    largest = max(NUMBERS)

    def mean(name: str, key: str, count: int) -> float:
        return fmean(line[key] for line in by_name[name] if line["tasks"] == count)

    yield "| | " + " | ".join(f"mean of {n} | kept" for n in NUMBERS) + " | least kept |"
    yield "|---|" + "---:|" * (2 * len(NUMBERS) + 1)
    for name in sorted(by_name, key=lambda one: -mean(one, "mean", largest)):
        cells = [form for n in NUMBERS for form in (f"{mean(name, 'mean', n):.3f}", f"{mean(name, 'kept', n):.1%}")]
        least = min(line["kept"] for line in by_name[name])
        yield f"| {name.replace('|', '')} | {' | '.join(cells)} | {least:.1%} |"


def write(lines: Sequence[Mapping[str, Any]]) -> None:
    """Put the table between the page's markers."""
    text = PAGE.read_text(encoding="utf-8")
    body = "\n".join(table(lines)) + "\n"
    marked = re.compile(r"(<!-- defaults -->\n).*?(<!-- /defaults -->)", re.DOTALL)
    PAGE.write_text(marked.sub(lambda found: found[1] + body + found[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
