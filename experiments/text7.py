"""The text7 studies: three runs, and the tables and figures of docs/text7.md and docs/tangent.md from them.

    python experiments/text7.py --data FOLDER --encoder FOLDER_OR_HUB_ID [--out runs]

``frontier`` fine-tunes three tasks in every mode at several rates, numbers of steps and decays, and fuses the three
(`frontier.py`); ``results`` is the bundled recipe text7 as it is, ``tangent`` the recipe text7-tangent. All go on where
they were stopped; a finished run is only read. ``--only`` does one of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import frontier

import tangora
from tangora.cli.bars import Bars
from tangora.config.recipe import load_recipe

DOCS = Path(__file__).parents[1] / "docs"
PAGE, TANGENT = DOCS / "text7.md", DOCS / "tangent.md"
FIGURES = ("score_by_tasks", "kept_by_tasks")


def main() -> None:
    """Run them, then write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the seven data sets")
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--only", choices=["frontier", "results", "tangent"])
    given = parser.parse_args()
    where = [f"data.root={given.data}", f"base.model={given.encoder}"]
    wanted = [given.only] if given.only else ["frontier", "results", "tangent"]
    with Bars() as bars:
        if "frontier" in wanted:
            whole = load_recipe("text7", where + frontier.settings())
            recipe = whole.model_copy(update={"tasks": [t for t in whole.tasks if t.name in frontier.TASKS]})
            found = frontier.rows(tangora.run(recipe, given.out / "text7-frontier", progress=bars))
            write(PAGE, "rates", frontier.table(found))
            frontier.figure(found, DOCS / "figures" / "text7-frontier.png")
        for name, page in (("text7", PAGE), ("text7-tangent", TANGENT)):
            if ("results" if page == PAGE else "tangent") not in wanted:
                continue
            run = tangora.run(load_recipe(name, where), given.out / name, progress=bars)
            write(page, "results", result_table(run))
            for figure in FIGURES:
                shutil.copy(run / "figures" / f"{figure}.png", DOCS / "figures" / f"{name}-{figure}.png")


def write(page: Path, name: str, lines: Iterator[str]) -> None:
    """Put lines between the page's markers of that name."""
    body = "\n".join(lines) + "\n"
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    text = marked.sub(lambda found: found[1] + body + found[2], page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")


def result_table(run: Path) -> Iterator[str]:
    """The experts, then a row a fusion and a column a number of tasks, and how long it took."""
    rows = json.loads((run / "summary.json").read_text())["rows"]
    experts = ", ".join(f"{r['mode']} {r['absolute']:.3f}" for r in rows if r["method"] == "expert")
    yield f"Zero-shot {zero_shot(run):.3f}. Experts, mean over the seven tasks: {experts}."
    yield ""
    sizes = sorted({r["n_tasks"] for r in rows if r["method"] != "expert"})
    yield f"| mode | method | space | {' | '.join(f'n = {n}' for n in sizes)} | 95 % at n = {sizes[-1]} |"
    yield f"|---|---|---|{'---:|' * (len(sizes) + 1)}"
    places = dict.fromkeys((r["mode"], r["method"], r["space"]) for r in rows if r["method"] != "expert")
    for place in places:
        found = {r["n_tasks"]: r for r in rows if (r["mode"], r["method"], r["space"]) == place}
        cells = [f"{found[n]['absolute']:.3f} / {found[n]['kept']:.1%}" if n in found else "–" for n in sizes]
        last = found[sizes[-1]]
        interval = f"{last['absolute_low']:.3f}–{last['absolute_high']:.3f}"
        yield f"| {' | '.join(place)} | {' | '.join(cells)} | {interval} |"
    yield ""
    yield f"Wall time on {machine(run)}: {minutes(run)}."


def zero_shot(run: Path) -> float:
    """The base model's mean over all tasks' test rows."""
    with (run / "scores.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        return next(float(r["score"]) for r in rows if (r["method"], r["task"]) == ("zero_shot", "mean_all"))


def machine(run: Path) -> str:
    """What the run says it ran on."""
    about: Mapping[str, Any] = json.loads((run / "run.json").read_text()).get("machine", {})
    return f"{about.get('cores', '?')} cores of {about.get('processor') or 'an unnamed processor'}"


def minutes(run: Path) -> str:
    """The stages' wall times."""
    seconds: Mapping[str, float] = json.loads((run / "run.json").read_text())["seconds"]
    told = [f"{stage} {spent / 60:.1f} min" for stage, spent in seconds.items() if spent >= 6]
    return f"{', '.join(told)}; {sum(seconds.values()) / 60:.0f} min in all"


if __name__ == "__main__":
    main()
