"""The leaderboards of docs/quality.md: many entries beside each other on seven tasks, and what each needs.

    python experiments/leaderboard.py text7 --data FOLDER --model FOLDER_OR_HUB_ID [--out FOLDER] [--seeds 0,1,2]
    python experiments/leaderboard.py gen7 --data FOLDER --model FOLDER_OR_HUB_ID [--set KEY=VALUE ...]
    python experiments/leaderboard.py text7 --run FOLDER   # only read a finished run, also of a part of the recipe
    python experiments/leaderboard.py text7 --table        # only write the table from the results there are

text7 is the bundled recipe leaderboard. gen7 is the bundled recipe of this name with LoRA experts and `GENERATIVE`.

Data flow: `tangora.run` goes on where it was stopped ──▶ `lines` joins the run's summary.json with its recipe (what an
entry needs), candidates.csv (how many candidates it chose from) and `tangora.compare` (paired tests against the best
entry without a polish, on test rows, with Holm's correction over all entries) ──▶
``benchmarks/results/leaderboard-SUITE.json`` ──▶ the table, and one figure of all suites that were run.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import tangora
from tangora.cli.bars import Bars
from tangora.config.recipe import load_recipe, load_run_recipe

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "quality.md", ROOT / "benchmarks" / "results"
FIGURE = ROOT / "docs" / "figures" / "leaderboard.png"
NAMED = 3
"""So many entries of a row of the figure have their name there: the best."""
GENERATIVE: list[dict[str, Any]] = [
    {"method": "average"},
    {"method": "task_arithmetic", "weights": 0.5},
    {"method": "mean_norm", "weights": 1.3},
    {"method": "knots", "weights": 0.7, "parameters": {"density": 0.3}},
    {"method": "mean_norm", "name": "mean_norm-1.0", "weights": 1.0},
    {"method": "tsv_m", "weights": 1.0},
    {"method": "iso_c", "weights": 1.0},
    {"method": "tsv_m", "name": "tsv_m-rank32", "rank": 32, "weights": 1.0},
]
"""Fusions of generative experts: one setting each, since every candidate has to generate for minutes."""
SUITES: dict[str, tuple[str, list[str]]] = {
    "text7": ("leaderboard", []),
    "gen7": (
        "gen7",
        [
            "name=leaderboard-gen7",
            f"modes={json.dumps({'lora': {}})}",
            f"fusion={json.dumps({'subsets': {'sizes': [7]}, 'methods': GENERATIVE})}",
        ],
    ),
}
"""Suite -> recipe, and what is set in it."""


def collected(run: Path) -> dict[str, Any]:
    """Return what is kept of a finished run."""
    recipe = load_run_recipe(run)
    rows = json.loads((run / "summary.json").read_text())["rows"]
    validation, test = (max(task.limit.get(split, 0) for task in recipe.tasks) for split in ("validation", "test"))
    size = max(row["n_tasks"] for row in rows)
    wanted = [row for row in rows if row["method"] == "expert" or row["n_tasks"] == size]
    return {
        "tasks": size,
        "seeds": list(recipe.every_seed),
        "rows": {"validation": validation, "test": test},
        "zero_shot": _zero_shot(run),
        "lines": list(_lines(run, recipe, wanted, validation)),
    }


def _lines(run: Path, recipe: Any, rows: Sequence[Mapping[str, Any]], validation: int) -> Iterator[dict[str, Any]]:
    entries = {entry.label: entry for entry in recipe.fusion.methods}
    counts, tests, joint = _candidates(run), _tests(run, rows, entries), _of_experts(run)
    for row in rows:
        mode, method = row["mode"], row["method"]
        line = {"mode": mode, "method": method, "mean": row["absolute"], "kept": row["kept"]}
        line |= {"low": row["absolute_low"], "high": row["absolute_high"]}
        for name in ("absolute_sd", "kept_sd", "absolute_seeds", "kept_seeds"):
            if name in row:
                line[name] = row[name]
        if mode in joint:  # its only expert is itself
            line["kept"] = joint[mode]
        if method in entries:
            chosen_from = counts.get((mode, method), 0)
            line |= {"needs": needs(entries[method], chosen_from, validation), "candidates": chosen_from}
            line |= {"rank": _rank(entries[method]), **tests.get((mode, method), {})}
        yield line


def needs(entry: Any, candidates: int, validation: int) -> str:
    """Return what an entry needs apart from the experts, of each task."""
    if entry.polish is not None:
        return f"{entry.polish.rows} {'labels' if entry.polish.labels else 'rows'}"
    if entry.search is not None:
        count = getattr(entry.search, "labels", None) or validation
        return f"{count} {'rows' if entry.search.name in ('adamerging', 'samerging') else 'labels'}"
    if entry.method in ("regmean", "fisher"):
        return "statistics of rows"
    return f"{validation} labels" if candidates > 1 else "nothing"


def _rank(entry: Any) -> str:
    rank = entry.polish.rank if entry.polish is not None else entry.rank
    shared = entry.parameters.get("shared_rank", "sum")
    return str(rank or (shared[0] if isinstance(shared, list) else shared))


def _of_experts(run: Path) -> dict[str, float]:
    """Mode that leaves nothing to fuse -> mean share, over seeds and tasks, of the experts of the mode ``lora``."""
    found: dict[tuple[str, str, str], float] = {}
    table = run / "scores-by-seed.csv"
    with (table if table.exists() else run / "scores.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["method"], row["split"], row["subset"]) == ("expert", "test", row["task"]):
                found[row["mode"], row.get("seed", ""), row["task"]] = float(row["score"])
    shares: dict[str, list[float]] = {}
    for (mode, seed, task), score in found.items():
        if mode.startswith("joint"):
            shares.setdefault(mode, []).append(score / found["lora", seed, task])
    return {mode: fmean(values) for mode, values in shares.items()}


def _zero_shot(run: Path) -> float:
    with (run / "scores.csv").open(newline="") as file:
        found = (
            r for r in csv.DictReader(file) if (r["method"], r["task"], r["split"]) == ("zero_shot", "mean_all", "test")
        )
        return float(next(found)["score"])


def _candidates(run: Path) -> dict[tuple[str, str], int]:
    """(mode, entry) -> number of candidates that were scored on validation rows, of one seed."""
    found: dict[tuple[str, str], set[tuple[str, str]]] = {}
    first = ""
    with (run / "candidates.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            first = first or row.get("seed", "")
            if row.get("seed", "") == first:
                found.setdefault((row["mode"], row["method"]), set()).add((row["weights"], row["parameters"]))
    return {key: len(values) for key, values in found.items()}


def _tests(
    run: Path, rows: Sequence[Mapping[str, Any]], entries: Mapping[str, Any]
) -> dict[tuple[str, str], dict[str, Any]]:
    """(mode, entry) -> difference from the best entry of its mode that is not polished, with Holm's p-value."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for mode in dict.fromkeys(row["mode"] for row in rows):
        plain = [r for r in rows if r["mode"] == mode and r["method"] in entries and not entries[r["method"]].polish]
        if not plain:
            continue
        best = max(plain, key=lambda row: row["absolute"])["method"]
        for one in tangora.compare(run, baseline=best, modes=[mode]).rows:
            found[mode, one.method] = {"against": best, "difference": one.test.difference, "holm": one.holm}
    return found


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a Markdown table, the best first."""
    several = len(results["seeds"]) > 1
    modes = [line["mode"] for line in results["lines"] if "needs" in line]
    many = len(set(modes)) > 1
    heads = [*(["experts"] if many else []), "entry", "needs, of each task", "rank", "candidates", "mean", "kept"]
    yield f"| {' | '.join([*heads, 'difference', 'p (Holm)'])} |"
    yield f"|{'---|' * (len(heads) - 4)}{'---:|' * 6}"
    for line in sorted(results["lines"], key=lambda one: -one["mean"]):
        if "needs" not in line:
            name = "the experts" if line["mode"] in modes else "one LoRA trained on all tasks"
            cells = [f"**{name}**", "all labels", "–", "–", f"{line['mean']:.3f}", _share(line), "–", "–"]
        else:
            share = f"{line['kept']:.1%}" + (
                f" ± {100 * line['kept_sd']:.1f}" if several and line.get("kept_sd") else ""
            )
            paired = [f"{line['difference']:+.3f}", f"{line['holm']:.2g}"] if "difference" in line else ["–", "–"]
            count = str(line["candidates"]) if line["candidates"] > 1 else "–"
            cells = [line["method"], line["needs"], line["rank"], count, f"{line['mean']:.3f}", share]
            cells += paired
        yield f"| {' | '.join([*([line['mode']] if many else []), *cells])} |"
    yield ""
    experts = ", ".join(f"{x['mode']} {x['mean']:.3f}" for x in results["lines"] if x["method"] == "expert")
    seeds, rows = ", ".join(map(str, results["seeds"])), results["rows"]
    about = f"Up to {rows['test']} test rows a task; seeds {seeds}."
    yield f"Zero-shot {results['zero_shot']:.3f}; experts {experts}. {about}"


def _share(line: Mapping[str, Any]) -> str:
    return "100%" if line["kept"] is None else f"{line['kept']:.1%}"


def figure(suites: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw every entry's mean by what it needs, beside its experts', the joint LoRA's and the base's."""
    from tangora.report.theme import WIDE, color, panels, series_role, style

    groups = {
        "nothing": lambda line: line["needs"] == "nothing",
        "statistics": lambda line: line["needs"] == "statistics of rows",
        "coefficients from labels": lambda line: line["needs"].endswith(" labels") and not _is_trained(line),
        "coefficients from rows": lambda line: line["needs"][0].isdigit() and _of_rows(line) and not _is_trained(line),
        "a polish on rows": lambda line: _of_rows(line) and _is_trained(line),
        "a polish on labels": lambda line: line["needs"].endswith(" labels") and _is_trained(line),
    }
    with style(WIDE, "leaderboard"):
        drawn, places = panels(WIDE, len(suites), height=460, share_x=False, share_y=False)
        for place, (name, results) in zip(places, suites.items(), strict=True):
            entries = [line for line in results["lines"] if "needs" in line]
            shown = [group for group, holds in groups.items() if any(map(holds, entries))]
            for y, group in enumerate(shown):
                found = sorted((line for line in entries if groups[group](line)), key=lambda line: -line["mean"])
                means = [line["mean"] for line in found]
                place.plot(means, [y] * len(means), "o", color=color(series_role(0)), alpha=0.5, markersize=5)
                best = ", ".join(line["method"] for line in found[:NAMED])
                place.annotate(best, (means[0], y), (4, 7), textcoords="offset points", ha="right", fontsize=8)
            lines = {line["mode"]: line["mean"] for line in results["lines"] if line["method"] == "expert"}
            place.axvline(lines["lora"], color=color("muted"), linestyle="--", label="the experts")
            if "joint-lora" in lines:
                joint = {"color": color(series_role(1)), "linestyle": ":", "label": "one LoRA, jointly"}
                place.axvline(lines["joint-lora"], **joint)
            place.axvline(results["zero_shot"], color=color("muted"), linestyle=":", label="the base")
            place.set_yticks(range(len(shown)), shown)
            place.set(xlabel=f"mean of {results['tasks']} tasks", title=name, ylim=(-0.5, len(shown) + 0.4))
            place.legend(loc="upper left", fontsize=9)
        drawn.savefig(path, dpi=110)


def _of_rows(line: Mapping[str, Any]) -> bool:
    return bool(line["needs"].endswith(" rows"))


def _is_trained(line: Mapping[str, Any]) -> bool:
    return line["rank"] in ("16", "32") and line["candidates"] == 0


def main() -> None:
    """Run or read, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=list(SUITES))
    parser.add_argument("--data", help="folder of the seven data sets")
    parser.add_argument("--model", help="folder or Hub name; by default the recipe's")
    parser.add_argument("--out", type=Path, help="by default runs/leaderboard-SUITE")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", nargs="*", default=[], help="keys of the recipe, as of tangora run")
    parser.add_argument("--run", type=Path, help="a finished run to read")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    results = RESULTS / f"leaderboard-{given.suite}.json"
    if not given.table:
        run = given.run
        if run is None:
            name, changes = SUITES[given.suite]
            seeds = [int(seed) for seed in given.seeds.split(",")]
            where = [f"data.root={given.data}", f"seeds={json.dumps(seeds)}", *changes, *given.set]
            where += [f"base.model={given.model}"] if given.model else []
            with Bars() as bars:
                run = tangora.run(
                    load_recipe(name, where), given.out or Path(f"runs/leaderboard-{given.suite}"), progress=bars
                )
        results.write_text(json.dumps(collected(run), indent=1) + "\n", encoding="utf-8")
    body = "\n".join(table(json.loads(results.read_text()))) + "\n"
    mark = f"leaderboard-{given.suite}"
    marked = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    text, count = marked.subn(lambda found: found[1] + body + found[2], PAGE.read_text(encoding="utf-8"))
    assert count == 1, "the page has no place for the table"
    PAGE.write_text(text, encoding="utf-8")
    files = {suite: RESULTS / f"leaderboard-{suite}.json" for suite in SUITES}
    figure({suite: json.loads(file.read_text()) for suite, file in files.items() if file.exists()}, FIGURE)


if __name__ == "__main__":
    main()
