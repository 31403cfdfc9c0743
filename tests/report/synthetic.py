"""A run on disk, made up: every file that the report reads, with plausible numbers."""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from pathlib import Path

TASKS = ["sst2", "trec6", "ag_news", "tweet_emotion", "snips", "banking77", "sms_spam"]
ZERO_SHOT = [0.62, 0.31, 0.58, 0.42, 0.71, 0.55, 0.66]
EXPERT = {
    "full": [0.91, 0.96, 0.91, 0.80, 0.98, 0.91, 0.99],
    "lora": [0.88, 0.95, 0.89, 0.77, 0.97, 0.88, 0.98],
    "l-lora": [0.85, 0.90, 0.88, 0.74, 0.96, 0.84, 0.97],
}
# (mode, method, space, selection): how much is kept of the way from zero-shot to the expert at n = 7
KEPT = {
    ("average", "delta", "given"): {"full": 0.42, "lora": 0.38, "l-lora": 0.36},
    ("task_arithmetic", "delta", "validation"): {"full": 0.74, "lora": 0.71, "l-lora": 0.72},
    ("task_arithmetic", "factors", "validation"): {"lora": 0.52},
    ("ties", "delta", "validation"): {"full": 0.69, "lora": 0.66, "l-lora": 0.64},
    ("lorahub", "delta", "validation"): {"lora": 0.70, "l-lora": 0.73},
    ("task_arithmetic", "delta", "oracle"): {"full": 0.75, "lora": 0.72, "l-lora": 0.73},
}
COLUMNS = [
    "mode",
    "method",
    "space",
    "subset",
    "n_tasks",
    "in_subset",
    "selection",
    "coefficients",
    "task",
    "split",
    "metric",
    "score",
    "normalized",
    "normalized_best",
    "ci_low",
    "ci_high",
]


def make_run(
    path: Path,
    tasks: list[str] | None = None,
    *,
    with_means: bool = True,
    with_analyses: bool = True,
    title: str = "Seven text tasks",
) -> Path:
    """Write a run to ``path``; other task names on request, without 'mean' rows on request."""
    names = list(tasks or TASKS)
    path.mkdir(parents=True, exist_ok=True)
    rows = score_rows(names, with_means=with_means)
    write_csv(path / "scores.csv", COLUMNS, rows)
    write_csv(path / "candidates.csv", list(candidate_rows(names)[0]), candidate_rows(names))
    (path / "similarity.json").write_text(json.dumps({m: similarity(names, m) for m in EXPERT}))
    for mode, task in itertools.product(EXPERT, range(len(names))):
        folder = path / "adapters" / mode / names[task].replace("/", "_")
        folder.mkdir(parents=True)
        (folder / "training.json").write_text(json.dumps(training(mode, task)))
    recipe = {"name": "text7", "title": title, "seed": 0, "modes": {m: {} for m in EXPERT}}
    (path / "recipe.yaml").write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    info = {
        "recipe": "text7",
        "seed": 0,
        "base": {"model": "all-MiniLM-L6-v2", "revision": None},
        "tasks": {name: {"train": 800, "validation": 200, "test": 1000} for name in names},
        "versions": {"tangora": "0.1.0", "torch": "2.13.0", "peft": "0.21.2"},
        "machine": {"cpu": "x86_64", "cores": 2},
        "seconds": {"prepare": 12.5, "experts": 1804.0, "fuse": 96.25},
    }
    (path / "summary.json").write_text(json.dumps({"rows": summary_rows(rows)}))
    (path / "run.json").write_text(json.dumps(info))
    (path / "polish.json").write_text(json.dumps({"rows": [polish(names, mode) for mode in EXPERT]}))
    if with_analyses:
        (path / "analysis").mkdir()
        for kind, entries in analyses(names).items():
            (path / "analysis" / f"{kind}.json").write_text(json.dumps({"entries": entries}))
    return path


def analyses(names: list[str]) -> dict[str, list[dict[str, object]]]:
    """What tangora analyze would leave, in every mode; planes of the first two pairs."""
    found: dict[str, list[dict[str, object]]] = {"signs": [], "angles": [], "planes": [], "linearity": []}
    for strength, mode in zip((0.6, 1.0, 0.35), EXPERT, strict=True):
        about = {"mode": mode, "key": mode}
        every = {**about, "tasks": names, "experts": [mode] * len(names)}
        shared = similarity(names, mode)["cosine"]
        conflict = [
            [0.0 if i == j else round(0.5 - x / 3, 4) for j, x in enumerate(row)] for i, row in enumerate(shared)
        ]
        rows = [[1.0] * len(names)] * len(names) if mode == "l-lora" else shared
        found["signs"].append(every | {"counted": conflict, "weighted": conflict})
        found["angles"].append(every | {"columns": shared, "rows": rows, "chance": {"columns": 0.02, "rows": 0.02}})
        pairs = [pair for pair in (names[:2], names[2:4]) if len(pair) == 2]
        found["planes"] += [
            about | {"tasks": pair, "experts": [mode] * 2} | plane(strength, i) for i, pair in enumerate(pairs)
        ]
        for task in names:
            path = [i / 4 for i in range(7)]
            gap = {"path": path, "distance": [strength * a / 2 for a in path]}
            gap["agreement"] = [1 - 0.1 * strength * a * a for a in path]
            found["linearity"].append(about | {"tasks": [task], "experts": [mode]} | gap)
    return found


def polish(names: list[str], mode: str) -> dict[str, object]:
    """A polish of the largest subset: its divergence falls, and every task gains."""
    place = {"mode": mode, "method": "task_arithmetic-polished", "space": "delta", "subset": "+".join(names)}
    curves = {
        "steps": list(range(1, 51)),
        "loss": [0.2 * 0.95**k for k in range(50)],
        "validation": [{"step": k, "loss": 0.2 * 0.96**k, "score": 0.2 * 0.96**k} for k in (10, 20, 30, 40, 50)],
        "trainable": 1000,
        "total": 20000,
    }
    return {
        **place,
        **curves,
        "selection": "validation",
        "before": dict.fromkeys(names, 0.2),
        "after": dict.fromkeys(names, 0.026),
        "scores": {name: [0.8, 0.85] for name in names},
        "polished": {"rows": dict.fromkeys(names, 64), "step": 50},
    }


def plane(strength: float, index: int) -> dict[str, object]:
    """Error that grows away from the axes, loss with a basin that the stronger interference makes the smaller."""
    grid = [k / 5 for k in range(-2, 8)]
    error = [
        [min(2.0, strength * abs(x * y) ** 0.7 + 0.1 * strength * abs(x - y) * (x * y != 0)) for y in grid]
        for x in grid
    ]
    loss = [[0.4 + 0.3 * index + (x - 0.7) ** 2 + (y - 0.7) ** 2 + strength * x * y for y in grid] for x in grid]
    return {"coefficients": grid, "error": error, "mean_error": 0.4 * strength, "loss": loss}


def summary_rows(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """What the run knows beyond scores.csv: intervals over all subsets of a size, and of the kept share."""
    groups: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for row in rows:
        if row["task"] == "mean" and row["method"] != "zero_shot":
            head = tuple(row[k] for k in ("mode", "method", "space", "selection", "n_tasks"))
            groups.setdefault(head, []).append(row)
    table = []
    for head, members in groups.items():
        entry = dict(zip(("mode", "method", "space", "selection", "n_tasks"), head, strict=True))
        entry["subsets"] = len(members)
        for name, column in (("absolute", "score"), ("kept", "normalized"), ("kept_best", "normalized_best")):
            value = sum(r[column] for r in members) / len(members)
            entry |= {name: value, f"{name}_low": value - 0.011, f"{name}_high": value + 0.012}
        table.append(entry)
    return table


def write_csv(path: Path, columns: list[str], rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def score_rows(names: list[str], *, with_means: bool) -> list[dict[str, object]]:
    index = {name: i for i, name in enumerate(names)}
    experts = {m: dict(zip(names, EXPERT[m], strict=False)) for m in EXPERT}
    zero = dict(zip(names, ZERO_SHOT, strict=False))
    rows = _outcome("-", "zero_shot", "", [], "none", "", zero, experts, with_means)
    for mode, own in itertools.product(EXPERT, names):
        scores = {t: experts[mode][t] if t == own else zero[t] - 0.03 for t in names}
        rows += _outcome(mode, "expert", "", [own], "none", "", scores, experts, with_means)
    for (method, space, selection), kept in KEPT.items():
        for mode, subset in itertools.product(kept, subsets(names)):
            share = kept[mode] ** ((len(subset) - 1) / (len(names) - 1))
            noise = random.Random(f"{method}{space}{mode}{subset}")
            scores = {
                t: zero[t] + (share * (experts[mode][t] - zero[t]) if t in subset else -0.02) + noise.gauss(0, 0.012)
                for t in sorted(names, key=index.__getitem__)
            }
            coefficients = json.dumps({"weights": [0.3] * len(subset)})
            rows += _outcome(mode, method, space, subset, selection, coefficients, scores, experts, with_means)
    return rows


def subsets(names: list[str]) -> list[list[str]]:
    chosen: list[list[str]] = []
    for size in (2, 3):
        possible = [list(c) for c in itertools.combinations(names, size)] if size < len(names) else []
        chosen += random.Random(size).sample(possible, min(5, len(possible)))
    return [*chosen, names]


def _outcome(mode, method, space, subset, selection, coefficients, scores, experts, with_means):
    head = {
        "mode": mode,
        "method": method,
        "space": space,
        "subset": "+".join(subset),
        "n_tasks": len(subset),
        "selection": selection,
        "coefficients": coefficients,
        "split": "test",
        "metric": "accuracy",
    }
    rows = []
    for task, score in scores.items():
        half = 1.96 * math.sqrt(max(score * (1 - score), 0.001) / 1000)
        best = max(e[task] for e in experts.values())
        own = score / experts[mode][task] if mode in experts else None
        rows.append(_row(head, task, task in subset, score, own, score / best, half))
    means = [("mean", [r for r in rows if r["in_subset"] == "true"]), ("mean_all", list(rows))]
    for task, inside in means if with_means else []:
        if inside:
            score = sum(r["score"] for r in inside) / len(inside)
            own = None if mode == "-" else sum(r["normalized"] for r in inside) / len(inside)
            best = sum(r["normalized_best"] for r in inside) / len(inside)
            rows.append(_row(head, task, task == "mean", score, own, best, 0.026 / math.sqrt(len(inside))))
    return rows


def _row(head, task, inside, score, own, best, half):
    ends = {"ci_low": round(score - half, 6), "ci_high": round(min(1.0, score + half), 6)}
    kept = {"normalized": own and round(own, 6), "normalized_best": round(best, 6)}
    return head | {"task": task, "in_subset": "true" if inside else "false", "score": round(score, 6)} | kept | ends


def candidate_rows(names: list[str]) -> list[dict[str, object]]:
    rows = []
    grid = [i / 20 for i in range(21)]
    peaks = {("full", "delta"): 0.35, ("lora", "delta"): 0.4, ("lora", "factors"): 0.25, ("l-lora", "delta"): 0.5}
    for method, densities in (("task_arithmetic", [None]), ("ties", [0.2, 0.5, 1.0])):
        for ((mode, space), peak), density, weight in itertools.product(peaks.items(), densities, grid):
            if method == "ties" and space == "factors":
                continue
            for i, task in enumerate(names):
                top = 0.9 * EXPERT[mode][i] - 0.03 * (density or 0)
                score = ZERO_SHOT[i] + (top - ZERO_SHOT[i]) * (
                    1 - min(1.6, abs(weight - peak) / max(peak, 1 - peak)) ** 2
                )
                rows.append(
                    {
                        "mode": mode,
                        "method": method,
                        "space": space,
                        "subset": "+".join(names),
                        "split": "validation",
                        "weights": json.dumps([weight] * len(names)),
                        "parameters": json.dumps({} if density is None else {"density": density}),
                        "task": task,
                        "score": round(score, 6),
                        "loss": round(1 - score, 6),
                    }
                )
    return rows


def similarity(names: list[str], mode: str) -> dict[str, object]:
    noise = random.Random(mode)
    scale = {"full": 0.2, "lora": 0.3, "l-lora": 0.1}[mode]
    size = len(names)
    matrix = [[1.0] * size for _ in range(size)]
    for i, j in itertools.combinations(range(size), 2):
        matrix[i][j] = matrix[j][i] = round(noise.gauss(scale, scale / 2), 4)
    return {"tasks": names, "cosine": matrix}


def training(mode: str, task: int) -> dict[str, object]:
    noise = random.Random(f"{mode}{task}")
    rate = {"full": 0.05, "lora": 0.03, "l-lora": 0.02}[mode]
    steps = list(range(5, 205, 5))
    loss = [round((1.5 + 0.3 * task) * math.exp(-rate * s) + 0.2 + noise.gauss(0, 0.05), 4) for s in steps]
    validation = [{"step": s, "loss": loss[s // 5 - 1] + 0.05, "score": EXPERT[mode][task % 7]} for s in (100, 200)]
    total = 22_700_000
    trainable = total if mode == "full" else 442_368
    return {
        "steps": steps,
        "loss": loss,
        "validation": validation,
        "seconds": 61.5,
        "trainable": trainable,
        "total": total,
    }
