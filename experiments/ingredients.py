"""Experts that are trained to be fused: one setting of the training each, and some together, on seven text tasks.

    python experiments/ingredients.py --data FOLDER --encoder FOLDER_OR_HUB_ID [--out runs/ingredients] [--seed N]
    python experiments/ingredients.py --table

Data flow: `settings` makes of the recipe text7 one with a mode for each of `VARIANTS`, all of the same steps and rows,
and three fusions ──▶ `tangora.run` goes on where it was stopped ──▶ `lines` reads a line a variant from its scores.csv
──▶ ``benchmarks/results/ingredients-text7.jsonl`` ──▶ the table of docs/quality.md. Weights are chosen on validation
rows; all scores of the table are of test rows.
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
from tangora.config.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "quality.md", ROOT / "benchmarks" / "results" / "ingredients-text7.jsonl"
STEPS, ROWS = 60, 16

SHARP, CALM = {"sharpness": 0.05}, {"progressive": 0.75, "averaged": 0.5}
L_LORA = {"train": "l-lora", "lora": {"r": 32, "alpha": 64}, "training": {"learning_rate": 2e-3}}
VARIANTS: dict[str, Mapping[str, Any]] = {
    "LoRA": {},
    "sharpness .05": {"training": SHARP},
    "sharpness .2": {"training": {"sharpness": 0.2}},
    "orthogonality 1e-3": {"training": {"orthogonality": 1e-3}},
    "orthogonality 1e-2": {"training": {"orthogonality": 1e-2}},
    "progressive .75": {"training": {"progressive": 0.75}},
    "averaged .5": {"training": {"averaged": 0.5}},
    "weight decay 1": {"training": {"weight_decay": 1.0}},
    "attention only": {"lora": {"target_modules": ["query", "key", "value"]}},
    "A of each task (LoRI)": {"lora": {"a_init": "per_task"}},
    "progressive, averaged": {"training": CALM},
    "sharpness .05, progressive, averaged": {"training": {**SHARP, **CALM}},
    "L-LoRA": L_LORA,
    "L-LoRA, A of each task (LoRI)": {**L_LORA, "lora": {**L_LORA["lora"], "a_init": "per_task"}},
    "L-LoRA, sharpness .05": {**L_LORA, "training": {**L_LORA["training"], **SHARP}},
}
METHODS = [
    {"method": "task_arithmetic", "weights": [0.3, 0.4, 0.5, 0.6, 0.8]},
    {"method": "mean_norm", "weights": [0.8, 1.0, 1.3]},
    {"method": "knots", "weights": [0.5, 1.0]},
]


def mode(name: str) -> str:
    """Return a variant's name as that of a mode.

    >>> mode("L-LoRA, sharpness .05")
    'l-lora-sharpness-05'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def settings(names: Sequence[str], seed: int) -> list[str]:
    """Return what is set in the recipe text7."""
    fusion = {"subsets": {"sizes": [7]}, "methods": METHODS}
    training = {"steps": STEPS, "batch_size": ROWS, "checkpoint_every": None}
    modes = {mode(name): VARIANTS[name] for name in names}
    changed = {"modes": modes, "fusion": fusion, "training": training, "evaluation": {"others": False}, "seed": seed}
    return ["name=text7-ingredients", *(f"{key}={json.dumps(value)}" for key, value in changed.items())]


def lines(run: Path, names: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    """Yield a line for each variant of a finished run."""
    with (run / "scores.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["task"].startswith("mean")]
    for name in names:
        own = [row for row in rows if row["mode"] == mode(name)]
        experts = {row["task"]: float(row["score"]) for row in _of(own, "expert") if row["subset"] == row["task"]}
        fused = {m["method"]: {r["task"]: float(r["score"]) for r in _of(own, m["method"])} for m in METHODS}
        seen = {m["method"]: fmean(float(r["score"]) for r in _of(own, m["method"], "validation")) for m in METHODS}
        yield {"name": name, "seed": seed, "experts": experts, "fused": fused, "validation": seen}


def _of(rows: Sequence[Mapping[str, str]], method: Any, split: str = "test") -> list[Mapping[str, str]]:
    return [row for row in rows if (row["method"], row["split"]) == (method, split)]


def table(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table: means over seeds, by the fusion that is best on validation rows."""
    yield "| training | seeds | experts | fused | kept | fused by |"
    yield "|---|---:|---:|---:|---:|---|"
    rows = []
    for name in VARIANTS:
        if not (own := [line for line in found if line["name"] == name]):
            continue
        chosen = [max(line["validation"], key=line["validation"].get) for line in own]
        fused = [line["fused"][method] for line, method in zip(own, chosen, strict=True)]
        pairs = list(zip(own, fused, strict=True))
        kept = fmean(fmean(scores[t] / line["experts"][t] for t in scores) for line, scores in pairs)
        means = [fmean(fmean(line["experts"].values()) for line in own), fmean(fmean(f.values()) for f in fused)]
        rows.append((means[1], f"| {name} | {len(own)} | {means[0]:.3f} | {means[1]:.3f} | {kept:.1%} "
                               f"| {', '.join(dict.fromkeys(chosen))} |"))  # fmt: skip
    yield from (row for _, row in sorted(rows, key=lambda one: -one[0]))


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the seven data sets")
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, default=Path("runs/ingredients"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="experts that are trained at once")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--table", action="store_true", help="only write the table from the results there are")
    given = parser.parse_args()
    if not given.table:
        names = given.only or list(VARIANTS)
        where = [f"data.root={given.data}", f"base.model={given.encoder}", *settings(names, given.seed)]
        where.append(f"executor={json.dumps({'name': 'processes', 'workers': given.workers})}")
        with Bars() as bars:
            run = tangora.run(load_recipe("text7", where), given.out, progress=bars)
        known = [line for line in _read() if (line["seed"], line["name"]) not in {(given.seed, n) for n in names}]
        made = [*known, *lines(run, names, given.seed)]
        RESULTS.write_text("".join(json.dumps(line) + "\n" for line in made), encoding="utf-8")
    body = "\n".join(table(_read())) + "\n"
    marked = re.compile(r"(<!-- ingredients -->\n).*?(<!-- /ingredients -->)", re.DOTALL)
    text, count = marked.subn(lambda found: found[1] + body + found[2], PAGE.read_text(encoding="utf-8"))
    assert count == 1, "the page has no place for the table"
    PAGE.write_text(text, encoding="utf-8")


def _read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


if __name__ == "__main__":
    main()
