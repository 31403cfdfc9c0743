"""The fusion explorer in a browser: how large its page is, and how long a move of a slider takes.

    make bench-explorer                     # writes results/explorer-cpu.json and docs/benchmarks.md
    python benchmarks/explorer.py --render  # the table alone, from the result that is there

Seven tasks of 500 validation and 500 test rows, with text7's numbers of classes and with 77 each, made-up logits. The
page is opened in a headless Chromium. One slider, and all of them, are moved to random places; the page itself
measures what it does then: scores of all rows of both splits, and the figures that it shows (``update``). From the move
until the next frame is measured too: that is what a person sees, layout and painting included.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from step_table import written
from train_step import _machine as machine
from train_step import _source as source

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULT, DOCS = HERE / "results" / "explorer-cpu.json", ROOT / "docs" / "benchmarks.md"
MARKS = "<!-- explorer:begin -->", "<!-- explorer:end -->"
SOURCES = ["benchmarks/explorer.py", "src/tangora/report"]
GOALS = {"update": 50.0, "page": 15e6}  # milliseconds, bytes
MOVES = {"one": "one slider", "all": "all sliders"}
PAGES = {"text7's": None, "77 each": 77}

MOVE = """async (places) => {
  const sliders = [...document.querySelectorAll(".tasks [type=range]")];
  const frames = [];
  performance.clearMeasures("update");
  for (const [moved, at] of places) {
    const begun = performance.now();
    for (const [i, k] of moved.entries()) { sliders[k].value = at[i]; sliders[k].dispatchEvent(new Event("input")); }
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    frames.push(performance.now() - begun);
  }
  return { frames, updates: performance.getEntriesByName("update").map((entry) => entry.duration) };
}"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=200, metavar="N", help="of each kind")
    parser.add_argument("--rows", type=int, default=500, help="of each split of each task")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--render", action="store_true", help="do not measure")
    written(parser.parse_args(arguments), measure, table, *MARKS)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every duration in milliseconds, and what the results file says beside them."""
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(ROOT / "tests" / "report"))
    from chromium import CHROMIUM

    started, load, pages = datetime.datetime.now(datetime.timezone.utc), os.getloadavg(), {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, classes in PAGES.items():
            pages[name] = _measured(browser, classes, options)
        version = browser.version
    return {
        "format": 1,
        "date": started.isoformat(timespec="seconds"),
        "source": source(SOURCES),
        "machine": {**machine(), "load_before": load, "load_after": os.getloadavg()},
        "versions": {"python": sys.version.split()[0], "chromium": version},
        "settings": {"rows": options.rows, "moves": options.moves},
        "pages": pages,
    }


def _measured(browser: Any, classes: int | None, options: argparse.Namespace) -> dict[str, Any]:
    """One page: built, opened, and its sliders moved."""
    from explorer_run import CLASSES, make_run

    from tangora.report import explorer

    chosen = {name: classes or own for name, own in CLASSES.items()}
    drawn = random.Random(0)
    everything = list(range(len(chosen)))
    kinds = {"one": lambda: [drawn.choice(everything)], "all": lambda: everything}
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_run(Path(scratch) / "run", chosen, {"validation": options.rows, "test": options.rows})
        begun = time.perf_counter()
        built = explorer.build(folder)
        found: dict[str, Any] = {"build": time.perf_counter() - begun, "bytes": built.stat().st_size, "moves": {}}
        page = browser.new_page()
        begun = time.perf_counter()
        page.goto(built.as_uri())
        page.locator("#figures[aria-busy=false]").wait_for()
        found["open"] = time.perf_counter() - begun
        page.locator("#planes[aria-busy=false]").wait_for()
        for kind, which in kinds.items():
            moves = [which() for _ in range(options.moves + 20)]
            places = [[moved, [round(drawn.uniform(-0.5, 1.5), 2) for _ in moved]] for moved in moves]
            page.evaluate(MOVE, places[:20])  # compiled by then
            found["moves"][kind] = page.evaluate(MOVE, places[20:])
        page.close()
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: machine, a row a page and kind of move, and which goals were met."""
    head = [
        "classes",
        "page, MB",
        "built, s",
        "opened, s",
        "moved",
        "update, ms",
        "95 %",
        "most",
        "to the frame, ms",
    ]
    lines = [_about(found), "", "| " + " | ".join(head) + " |", "|---|---:|---:|---:|---|---:|---:|---:|---:|"]
    lines += [_row(name, page, kind) for name, page in found["pages"].items() for kind in MOVES]
    return "\n".join([*lines, "", *_goals(found)])


def _row(name: str, page: dict[str, Any], kind: str) -> str:
    updates, frames = page["moves"][kind]["updates"], page["moves"][kind]["frames"]
    cells = [name, f"{page['bytes'] / 1e6:.1f}", f"{page['build']:.1f}", f"{page['open']:.1f}", MOVES[kind]]
    cells += [f"{value:.1f}" for value in (median(updates), _high(updates), max(updates), median(frames))]
    return "| " + " | ".join(cells) + " |"


def _high(values: Sequence[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1]


def _goals(found: dict[str, Any]) -> Iterator[str]:
    pages = found["pages"].values()
    slowest = max(_high(moves["updates"]) for page in pages for moves in page["moves"].values())
    largest = max(page["bytes"] for page in pages)
    for words, value, most in (
        ("an update, 95 % of them, under 50 ms", slowest, GOALS["update"]),
        ("the page, under 15 000 000 bytes", largest, GOALS["page"]),
    ):
        yield f"- {words}: {value:,.0f}, {'met' if value < most else '**not met**'}"


def _about(found: dict[str, Any]) -> str:
    on, settings = found["machine"], found["settings"]
    load = ", ".join(f"{on[when][0]:.1f}" for when in ("load_before", "load_after"))
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{on['cpu']}, {on['cores']} cores; load before and after: {load}. {packages}. {found['date'][:10]}. "
        f"Seven tasks, {settings['rows']} rows a split, {settings['moves']} moves of each kind; every "
        f"sample is in [`{RESULT.name}`](../benchmarks/results/{RESULT.name})."
    )


if __name__ == "__main__":
    main()
