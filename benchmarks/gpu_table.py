"""From the samples of `gpu.py` to its part of docs/benchmarks.md; the standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from fuse_table import LABELS as METHODS
from step_table import quartiles, ratio
from step_table import table as steps_table

__all__ = ["MARKS", "failures", "table"]

MARKS = "<!-- gpu:begin -->", "<!-- gpu:end -->"
NONE = "Not measured: it waits for a machine with a GPU, where `make bench-gpu` puts its figures here."
WHOLE = 32
"""Layers of the 7B shape."""
SCORING = {
    "peft": "peft, a plain loop",
    "peft_merged": "peft, merged into the weights",
    "tangora": "**Tangora**, `Evaluator`",
    "tangora_tangent": "**Tangora**, tangent adapter",
}
COLUMNS = {
    "columns": "**columns of all vectors**",
    "forwards": "a forward pass of the tangent model for each vector",
    "plain": "one forward pass of the base alone",
}
TOOLS = {
    "tangora/host": "**Tangora**, CPU",
    "tangora/device": "**Tangora**, GPU",
    "peft/host": "peft, CPU",
    "peft/device": "peft, GPU",
}
ROLES = {"host": "CPU", "device": "**GPU**"}
WORKS = {"svd": "sum, cut by SVD", "ties": "TIES, cut by SVD"}
Row = Sequence[str]


def table(found: Mapping[str, Any] | None, name: str = "gpu.json") -> str:
    """Markdown: machine, a part for each section, and what failed."""
    if found is None:
        return NONE
    parts, sections = [_about(found, name)], found["sections"]
    for section, write in PARTS.items():
        if section in sections:
            parts += write(sections[section])
    if failed := failures(found):
        parts.append("\n".join(["Not measured:", "", *failed]))
    return "\n\n".join(parts)


def failures(found: Mapping[str, Any]) -> list[str]:
    """A line for each contender, part or section that has an error."""

    def within(place: str, value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            if isinstance(value.get("error"), str):
                yield f"- {place}: {value['error']}"
            for key, inner in value.items():
                yield from within(f"{place}, {key}", inner)

    return [line for name, section in found["sections"].items() for line in within(name, section)]


def _about(found: Mapping[str, Any], name: str) -> str:
    device, on, settings = found["device"], found["machine"], found["settings"]
    memory = f", {device['memory'] / 2**30:.0f} GiB" if device["memory"] else ""
    cuda = f", CUDA {device['cuda']}" if device["cuda"] else ""
    packages = ", ".join(f"{package} {version}" for package, version in device["versions"].items())
    tiny = " Tiny sizes, which measure nothing." if settings["tiny"] else ""
    return (
        f"### {device['name']}\n\n{device['name']}{memory}{cuda}; {on['cpu']}, {on['cores']} cores, "
        f"{on['memory'] / 2**30:.0f} GiB, {on['os']}; load before and after: {on['load_before'][0]:.1f}, "
        f"{on['load_after'][0]:.1f}. {packages}. {found['date'][:10]}, {settings['dtype']}, "
        f"{found['seconds']:.0f} seconds in all; every sample is in [`{name}`](../benchmarks/results/{name}).{tiny}"
    )


def _steps(section: Mapping[str, Any]) -> Iterator[str]:
    for shape in section.get("shapes", {}).values():
        timed = _timed(shape["contenders"])
        if "lora" in timed:
            yield f"**A step: {shape['title']}**\n\n{steps_table(timed)}"


def _scoring(section: Mapping[str, Any]) -> Iterator[str]:
    for work in section.get("works", {}).values():
        timed = _timed(work.get("contenders", {}))
        if "peft" not in timed:
            continue
        rows = [[SCORING[key], *_rates(work["rows"], taken, timed["peft"])] for key, taken in timed.items()]
        yield f"**An adapter scored: {work['title']}, {work['rows']} rows**\n\n" + _markdown(
            ["", "rows per second", "quartiles", "times as fast as peft"], rows
        )
        if "difference" not in work:
            continue
        yield (
            f"Losses of `Evaluator` and of peft differ by {work['difference']:.0e} of the largest, where the adapter "
            f"changes them by {work['effect']:.0e}; {work['agreeing']:.1%} of the answers agree."
        )


def _columns(section: Mapping[str, Any]) -> Iterator[str]:
    for work in section.get("works", {}).values():
        timed = _timed(work.get("contenders", {}))
        if "forwards" not in timed:
            continue
        rows = [[COLUMNS[key], *_rates(work["rows"], taken, timed["forwards"])] for key, taken in timed.items()]
        yield f"**Columns: {work['title']}, {work['rows']} rows, {work['vectors']} task vectors**\n\n" + _markdown(
            ["", "rows per second", "quartiles", "times as fast"], rows
        )
        if "difference" not in work:
            continue
        yield (
            f"Logits from columns and from a forward pass differ by {work['difference']:.0e} of the largest, where the "
            f"adapter changes them by {work['effect']:.0e}."
        )


def _adapters(section: Mapping[str, Any]) -> Iterator[str]:
    if not section.get("works"):
        return
    sizes, rows = section["sizes"], []
    for work, found in section["works"].items():
        timed, times = _timed(found["contenders"]), sizes["layers"] / sizes["peer_layers"]
        seconds = {key: [s * (times if "peft" in key else 1) for s in taken["seconds"]] for key, taken in timed.items()}
        for key, samples in seconds.items():
            peer = seconds.get(key.replace("tangora", "peft")) if "tangora" in key else None
            host = seconds.get(key.replace("device", "host")) if "device" in key else None
            cells = [f"{WORKS[work]}: {TOOLS[key]}", f"{median(samples):.3g}", _span(samples)]
            rows.append([*cells, _faster(peer, samples), _faster(host, samples), f"{found['errors'][key]:.6f}"])
    about = (
        f"**Adapters fused**: {sizes['adapters']} of rank {sizes['rank']}, every linear layer of "
        f"{sizes['layers']} layers of width {sizes['hidden']}, cut to rank {sizes['rank']}. "
        f"peft: {sizes['peer_layers']}, times {times:g}."
    )
    head = ["", "seconds", "quartiles", "times as fast as peft on the same", "as on the CPU", "error"]
    yield f"{about}\n\n{_markdown(head, rows)}"


def _merge(section: Mapping[str, Any]) -> Iterator[str]:
    if "calls" not in section:
        return
    moved, calls = section["read"] + section["written"], _timed(section["calls"])
    speeds = {key: median(one[key] for one in section["bandwidth"]) for key in section["bandwidth"][0]}
    plain = section["read"] / speeds["read"] + section["written"] / speeds["write"]
    link = section["read"] / speeds["to_device"] + section["written"] / speeds["from_device"]
    copied = moved / speeds["host_copy"]
    rows = []
    for key, taken in calls.items():
        method, role = key.split("/")
        samples, whole = taken["seconds"], section["processes"].get(key, {})
        host = calls[f"{method}/host"]["seconds"] if role == "device" and f"{method}/host" in calls else None
        cells = [f"{METHODS[method]}: {ROLES[role]}", f"{median(samples):.3g}", _span(samples)]
        cells += [f"{moved / 1e9 / median(samples):.2f}", _faster(host, samples)]
        cells += [f"{floor / median(samples):.0%}" for floor in (plain, copied, link)]
        cells += [f"{whole['seconds']:.1f}", f"{whole['peak'] / 2**20:.0f}"] if "seconds" in whole else ["–", "–"]
        rows.append(cells)
    yield (
        f"**Checkpoints merged**: five of {section['parameters'] / 1e9:.2f} billion parameters in bfloat16, a 7B shape "
        f"with {section['layers']} of its {WHOLE} layers; {moved / 1e9:.1f} GB are read and written."
    )
    head = ["", "seconds", "quartiles", "GB/s", "times as fast as the CPU", "of plain reading and writing"]
    head += ["of a copy in memory", "of the link", "whole process, s", "peak, MiB"]
    yield _markdown(head, rows)
    told = ", ".join(f"{label} {speeds[key] / 1e9:.1f}" for key, label in SPEEDS.items())
    differing = ", ".join(f"{METHODS[m]} {share:.0e}" for m, share in section["differing"].items())
    yield (
        f"GB/s: {told}. *Of …*: the time in which the same bytes are plainly read and written, copied once within the "
        f"host's memory, or copied to the GPU and back, over that of a call. Share of entries that differ between CPU "
        f"and GPU by more than two steps of bfloat16: {differing or '–'}."
    )


SPEEDS = {
    "read": "plain reading",
    "write": "plain writing",
    "host_copy": "copying in memory",
    "to_device": "to the GPU, pinned",
    "to_device_pageable": "pageable",
    "from_device": "back",
}
PARTS = {"steps": _steps, "scoring": _scoring, "columns": _columns, "adapters": _adapters, "merge": _merge}


def _timed(contenders: Mapping[str, Any]) -> dict[str, Any]:
    """Those that have samples."""
    return {key: taken for key, taken in contenders.items() if "error" not in taken and taken.get("seconds")}


def _rates(rows: int, taken: Mapping[str, Any], peer: Mapping[str, Any]) -> list[str]:
    """Rows per second, and how many times as fast as the peer."""
    first, third = quartiles(taken["seconds"])
    cells = [f"{rows / median(taken['seconds']):.0f}", f"{rows / third:.0f} – {rows / first:.0f}"]
    return [*cells, "1" if taken is peer else _faster(peer["seconds"], taken["seconds"])]


def _faster(reference: Sequence[float] | None, samples: Sequence[float]) -> str:
    """How many times as fast as the reference, round by round, with the interval of that."""
    if reference is None or len(reference) != len(samples):
        return "–"
    middle, low, high = ratio(reference, samples)
    return f"{middle:.2f} ({low:.2f} – {high:.2f})"


def _span(samples: Sequence[float]) -> str:
    first, third = quartiles(samples)
    return f"{first:.3g} – {third:.3g}"


def _markdown(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
