"""From the samples of `train_step.py` to the table in docs/benchmarks.md; the standard library only."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

__all__ = ["BEGIN", "END", "LABELS", "Ratio", "goals", "ratio", "render", "replace_between", "section", "written"]

BEGIN, END = "<!-- train_step:begin -->", "<!-- train_step:end -->"
LABELS = {
    "lora": "peft LoRA",
    "lora_frozen_a": "peft LoRA, A frozen",
    "l_lora": "**Tangora L-LoRA**",
    "jvp_wrapper": "jvp wrapper (fusion-bench)",
    "tangent": "**Tangora tangent LoRA**",
    "tangent_jvp": "the same by `torch.func.jvp`, and backward through it",
}
MIB = 2**20
Ratio = tuple[float, float, float]
"""A median and its 95 % interval."""


def ratio(samples: Sequence[float], reference: Sequence[float], seed: int = 0, draws: int = 2000) -> Ratio:
    """Median of ``sample / reference``, pair by pair, with a 95 % bootstrap interval of that median.

    The pairs are rounds: what slowed the machine in one round slowed both.

    Raises:
        ValueError: the two are not of one length, or empty.
    """
    if len(samples) != len(reference) or not samples:
        raise ValueError(f"need as many samples as references, got {len(samples)} and {len(reference)}")
    ratios = [a / b for a, b in zip(samples, reference, strict=True)]
    draw = random.Random(seed)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(draws))
    return median(ratios), medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; of one sample, itself."""
    if len(samples) < 2:
        return samples[0], samples[0]
    first, _, third = quantiles(samples, n=4, method="inclusive")
    return first, third


def render(results: Sequence[Path], document: Path, comparison: str = "train_step") -> None:
    """Put the table of every results file between a comparison's markers in a Markdown document."""
    text = document.read_text(encoding="utf-8")
    sections = [section(json.loads(path.read_text(encoding="utf-8")), path.name) for path in results]
    command = "python benchmarks/train_step.py" + ("" if comparison == "train_step" else f" --compare {comparison}")
    body = "\n\n".join(sections) or f"No results yet: run `{command}`."
    marks = (mark.replace("train_step", comparison) for mark in (BEGIN, END))
    document.write_text(replace_between(text, body, *marks), encoding="utf-8")


def replace_between(text: str, body: str, begin_mark: str = BEGIN, end_mark: str = END) -> str:
    """``text`` with ``body`` in place of what stands between the markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    before, begin, rest = text.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end or begin_mark in rest or end_mark in after:
        raise ValueError(f"need {begin_mark} and, after it, {end_mark}, once each")
    return f"{before}{begin_mark}\n{body}\n{end_mark}{after}"


def written(options: Any, measure: Callable[[Any], dict[str, Any]], table: Callable[[Any], str], *marks: str) -> None:
    """Measure into ``options.result``, unless it is only to be rendered, and put the table into ``options.docs``."""
    if not options.render:
        options.result.parent.mkdir(parents=True, exist_ok=True)
        options.result.write_text(json.dumps(measure(options), indent=1) + "\n", encoding="utf-8")
        print(f"wrote {options.result}")
    body = table(json.loads(options.result.read_text(encoding="utf-8")))
    text = options.docs.read_text(encoding="utf-8")
    options.docs.write_text(replace_between(text, body, *marks), encoding="utf-8")


def section(results: dict[str, Any], name: str) -> str:
    """Machine, one table per shape, and which goals were met."""
    parts = [_machine(results, name)]
    for shape in results["shapes"].values():
        contenders = shape["contenders"]
        parts.append(f"**{shape['title']}**\n\n{table(contenders)}")
        if met := goals(contenders):
            parts.append("\n".join(met))
    return "\n\n".join(parts)


def table(contenders: dict[str, Any]) -> str:
    """One row per contender, ratios against peft LoRA."""
    head = "| | step, ms | quartiles | / LoRA | step memory, MiB | / LoRA | peak, MiB | / LoRA | largest difference |"
    rows = [head, "|---" + "|---:" * 8 + "|"]
    reference = contenders["lora"]
    for key, found in contenders.items():
        first, third = quartiles(found["seconds"])
        time, low, high = ratio(found["seconds"], reference["seconds"])
        digits = 0 if first >= 0.1 else 1
        cells = [LABELS[key], f"{1000 * median(found['seconds']):.{digits}f}"]
        cells += [f"{1000 * first:.{digits}f} – {1000 * third:.{digits}f}"]
        cells += ["1" if key == "lora" else f"{time:.3f} ({low:.3f} – {high:.3f})"]
        for what in ("step", "peak"):
            if not (found["memory"] and reference["memory"]):
                cells += ["–", "–"]
                continue
            value = _memory(found, what)
            cells += [f"{value / MIB:.0f}", "1" if key == "lora" else f"{value / _memory(reference, what):.3f}"]
        cells.append("–" if key == "lora" else f"{_difference(found['check']):.0e}")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def goals(contenders: dict[str, Any]) -> list[str]:
    """Whether L-LoRA is at most 0.95 of LoRA in time and memory, and 1.3 times as fast as the wrapper.

    And whether tangent LoRA is at most 1.6 times LoRA in time and 1.5 times in a step's memory.
    """
    lines: list[str] = []
    if {"lora", "l_lora"} <= contenders.keys():
        lines += _against_lora(contenders, "l_lora", time=0.95, step=0.95, peak=0.95)
        if "jvp_wrapper" in contenders:
            speed = ratio(contenders["jvp_wrapper"]["seconds"], contenders["l_lora"]["seconds"])[0]
            lines.append(_goal("at least 1.3 times as fast as the wrapper", speed, least=1.3))
    if {"lora", "tangent"} <= contenders.keys():
        lines += _against_lora(contenders, "tangent", time=1.6, step=1.5)
    return lines


def _against_lora(contenders: dict[str, Any], name: str, *, time: float, **memory: float) -> Iterator[str]:
    ours, lora = contenders[name], contenders["lora"]
    value, low, high = ratio(ours["seconds"], lora["seconds"])
    crosses = ", though the interval reaches past it" if low <= time < high and value <= time else ""
    yield _goal(f"time, at most {time} of LoRA's", value, most=time) + crosses
    for what, most in memory.items():
        words = {"step": "memory of a step", "peak": "peak memory"}[what]
        yield _goal(f"{words}, at most {most} of LoRA's", _memory(ours, what) / _memory(lora, what), most=most)


def _goal(words: str, value: float, *, most: float = float("inf"), least: float = 0.0) -> str:
    return f"- {words}: {value:.3f}, {'met' if least <= value <= most else '**not met**'}"


def _memory(found: dict[str, Any], what: str) -> float:
    return median(sample[what] for sample in found["memory"])


def _difference(check: dict[str, float]) -> float:
    return max(value for name, value in check.items() if name != "effect_of_b")


def _machine(results: dict[str, Any], name: str) -> str:
    machine, settings = results["machine"], results["settings"]
    some = next(iter(results["shapes"].values()))["contenders"]
    versions = {package: text for found in some.values() for package, text in found["versions"].items()}
    device = next(iter(some.values()))["device_name"]
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 2**30:.0f} GiB, {machine['os']}"
    packages = ", ".join(f"{package} {text}" for package, text in versions.items())
    loads = [machine[when][0] for when in ("load_before", "load_after") if when in machine]
    load = f"; load before and after: {', '.join(f'{one:.1f}' for one in loads)}" if loads else ""
    dtype = settings.get("dtype", "float32")
    return (
        f"### {'CPU' if settings['device'] == 'cpu' else device}\n\n"
        f"{hardware}{load}; {settings['threads']} threads, {dtype}. {packages}. {results['date'][:10]}, "
        f"{settings['rounds']} rounds; every sample is in [`{name}`](../benchmarks/results/{name})."
    )
