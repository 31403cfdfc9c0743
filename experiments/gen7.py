"""The gen7 study: the bundled recipe on a real decoder, and the tables and figures of docs/gen7.md from it.

    python experiments/gen7.py --data FOLDER --decoder FOLDER_OR_HUB_ID [--out runs/gen7] [--set KEY=VALUE ...]

It goes on where it was stopped; a finished run is only read.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

from text7 import DOCS, FIGURES, result_table, write

import tangora
from tangora.cli.bars import Bars
from tangora.config.recipe import load_recipe

PAGE = DOCS / "gen7.md"


def main() -> None:
    """Run it, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the seven data sets")
    parser.add_argument("--decoder", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, default=Path("runs/gen7"))
    parser.add_argument("--set", nargs="*", default=[], help="keys of the recipe, as of tangora run")
    given = parser.parse_args()
    where = [f"data.root={given.data}", f"base.model={given.decoder}", *given.set]
    with Bars() as bars:
        run = tangora.run(load_recipe("gen7", where), given.out, progress=bars)
    write(PAGE, "experts", expert_table(run))
    write(PAGE, "results", result_table(run))
    for figure in FIGURES:
        shutil.copy(run / "figures" / f"{figure}.png", DOCS / "figures" / f"gen7-{figure}.png")


def expert_table(run: Path) -> Iterator[str]:
    """A row for the base and for each mode's experts, and for each mode's best fusion of all seven; a column a task."""
    with (run / "scores.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    primary = [r for r in rows if not r["task"].startswith("mean")]
    metrics = {r["task"]: r["metric"] for r in reversed(primary)}  # a task's first metric is its primary one
    tasks = list(dict.fromkeys(r["task"] for r in primary))
    yield f"| mode | method | {' | '.join(f'{task}<br>{metrics[task]}' for task in tasks)} | mean |"
    yield f"|---|---|{'---:|' * (len(tasks) + 1)}"
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in primary:
        own = row["method"] == "expert" and row["in_subset"] == "true"
        whole = row["method"] == "zero_shot" or row["n_tasks"] == str(len(tasks))
        if row["metric"] == metrics[row["task"]] and (own or whole):
            found.setdefault((row["mode"], row["method"]), {})[row["task"]] = float(row["score"])
    for (mode, method), scores in found.items():
        cells = [f"{scores[task]:.3f}" for task in tasks]
        yield f"| {mode or '–'} | {method} | {' | '.join(cells)} | {sum(scores.values()) / len(tasks):.3f} |"


if __name__ == "__main__":
    main()
