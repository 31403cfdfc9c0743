"""From the samples of `fuse.py` to the table and the figure in docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["BEGIN", "END", "goals", "growth", "render", "section", "table"]

BEGIN, END = "<!-- fuse:begin -->", "<!-- fuse:end -->"
LABELS = {
    "task_arithmetic": "task arithmetic",
    "ties_per_tensor": "TIES, trimmed per tensor",
    "ties": "TIES, trimmed over the whole model",
}
MIB = 2**20


def render(results: Sequence[Path], document: Path, figures: Path) -> None:
    """Put the tables between the markers of a Markdown document, and the figure beside it."""
    text = document.read_text(encoding="utf-8")
    parts = []
    for path in results:
        found = json.loads(path.read_text(encoding="utf-8"))
        parts.append(section(found, path.name))
        if found["growth"]:
            figures.mkdir(parents=True, exist_ok=True)
            _figure(found["growth"], figures / f"{path.stem}-growth.png")
            parts.append(f"![Wall time and memory against size](figures/{path.stem}-growth.png)")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"need {BEGIN} and, after it, {END}")
    body = "\n\n".join(parts) or "No results yet: run `make bench-fuse`."
    document.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")


def section(results: dict[str, Any], name: str) -> str:
    """Machine, table, goals, growth."""
    machine = results["machine"]
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 2**30:.0f} GiB, {machine['os']}"
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    read, write = (median(b[key] for b in results["bandwidth"]) / 1e9 for key in ("read", "write"))
    load = ", ".join(f"{machine[key][0]:.1f}" for key in ("load_before", "load_after"))
    title = "CPU" if results["device"] == "cpu" else "CUDA"
    head = (
        f"### {title}\n\n{hardware}; load before and after: {load}. {versions}. "
        f"{results['date'][:10]}, {results['rounds']} rounds, medians; every sample is in "
        f"[`{name}`](../benchmarks/results/{name}). Five checkpoints of {results['parameters'] / 1e6:.0f} M "
        f"parameters in bfloat16; plain reading {read:.1f} GB/s, plain writing {write:.1f} GB/s."
    )
    return "\n\n".join([head, table(results), "\n".join(goals(results)), growth(results["growth"])]).strip()


def table(results: dict[str, Any]) -> str:
    """A row per contender; ratios are formed within a round."""
    rows = [
        "| | wall, s | processor, s | peak, MiB | times as fast | of its memory | of the floor |",
        "|---" + "|---:" * 6 + "|",
    ]
    samples = results["samples"]
    for name, taken in samples.items():
        method, tool = name.split("/")
        peer = samples.get(f"{method}/mergekit") if tool == "tangora" else None
        cells = [f"{LABELS[method]}: {'**Tangora**' if tool == 'tangora' else tool}"]
        cells += [
            f"{_median(taken, 'seconds'):.1f}",
            f"{_median(taken, 'cpu_seconds'):.1f}",
            f"{_median(taken, 'peak') / MIB:.0f}",
        ]
        cells += [f"{_ratio(peer, taken, 'seconds'):.1f}", f"{_ratio(taken, peer, 'peak'):.2f}"] if peer else ["–", "–"]
        rows.append("| " + " | ".join([*cells, f"{_floor(results) / _median(taken, 'seconds'):.0%}"]) + " |")
    note = (
        "*Times as fast* and *of its memory*: against mergekit. *Of the floor*: the time in which the same bytes are "
        f"plainly read and written, {_floor(results):.1f} s, over the wall time; importing torch is a part of that."
    )
    return "\n".join(rows) + "\n\n" + note


def goals(results: dict[str, Any]) -> list[str]:
    """Which of the goals were met."""
    samples, lines = results["samples"], []
    for method, least in (("task_arithmetic", 4.0), ("ties_per_tensor", 10.0)):
        ours, theirs = samples.get(f"{method}/tangora"), samples.get(f"{method}/mergekit")
        if ours and theirs:
            speed, memory = _ratio(theirs, ours, "seconds"), _ratio(ours, theirs, "peak")
            lines.append(_goal(f"{LABELS[method]}: at least {least:g} times mergekit's speed", speed, speed >= least))
            lines.append(_goal(f"{LABELS[method]}: at most 0.2 of mergekit's memory", memory, memory <= 0.2))
    whole, each = samples.get("ties/tangora"), samples.get("ties_per_tensor/tangora")
    if whole and each:
        time, memory = _ratio(whole, each, "seconds"), _ratio(whole, each, "peak")
        lines.append(_goal("TIES over the whole model: at most 1.5 times the time of per tensor", time, time <= 1.5))
        lines.append(_goal("TIES over the whole model: the memory of per tensor", memory, memory <= 1.1))
    return lines


def growth(rows: Sequence[dict[str, Any]]) -> str:
    """Wall time and memory against the bytes read and written."""
    if not rows:
        return ""
    lines = ["| layers | read and written, GB | task arithmetic, s | peak, MiB | TIES per tensor, s | peak, MiB |"]
    lines.append("|---:" * 6 + "|")
    for row in rows:
        cells = [f"{row['layers']}", f"{row['bytes'] / 1e9:.2f}"]
        for method in ("task_arithmetic", "ties_per_tensor"):
            cells += [f"{row[method]['seconds']:.1f}", f"{row[method]['peak'] / MIB:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figure(rows: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    size = [row["bytes"] / 1e9 for row in rows]
    for method in ("task_arithmetic", "ties_per_tensor"):
        left.plot(size, [row[method]["seconds"] for row in rows], marker="o", label=LABELS[method])
        right.plot(size, [row[method]["peak"] / MIB for row in rows], marker="o", label=LABELS[method])
    for axis, word in ((left, "wall time, s"), (right, "peak resident memory, MiB")):
        axis.set(xlabel="read and written, GB", ylabel=word, ylim=(0, None), xlim=(0, None))
    left.legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _floor(results: dict[str, Any]) -> float:
    size = 2 * results["parameters"]
    return median(5 * size / b["read"] + size / b["write"] for b in results["bandwidth"])


def _median(samples: Sequence[dict[str, float]], key: str) -> float:
    return median(sample[key] for sample in samples)


def _ratio(samples: Sequence[dict[str, float]], reference: Sequence[dict[str, float]], key: str) -> float:
    return median(a[key] / b[key] for a, b in zip(samples, reference, strict=True))


def _goal(words: str, value: float, met: bool) -> str:
    return f"- {words}: {value:.2f}, {'met' if met else '**not met**'}"
