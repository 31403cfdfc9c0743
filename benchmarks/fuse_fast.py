"""Merges of full checkpoints with the compiled kernels of `tangora[fast]` and without them: whole processes, in turns.

    pip install -e '.[fast]'
    python benchmarks/fuse_fast.py             # under ten minutes on 2 cores; 6 GB in a temporary folder
    python benchmarks/fuse_fast.py --render    # the table alone, from the results that are there

The work, a sample and the floor are those of `fuse.py`. Both contenders run in the same environment; the one without
kernels finds no numba. A pair is measured one right after the other, in an order that changes from round to round, and
ratios are formed within a pair. The outputs of a pair must have the same bytes. Compiled code is in numba's cache, as
after the first merge on a machine.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from fuse import BARE, HERE, LAYERS, MODELS, ROOT, _bandwidth, _commit, _make, process
from fuse_table import LABELS, MIB
from train_step import _machine as machine

BEGIN, END = "<!-- fuse_fast:begin -->", "<!-- fuse_fast:end -->"
METHODS = {"task_arithmetic": 0.3, "ties_per_tensor": 1.0, "ties": 1.0}
FLOOR = {"task_arithmetic": 0.85, "ties_per_tensor": 0.3}  # the goals: shares of it
TIMES = {"task_arithmetic": 4.0, "ties_per_tensor": 15.0}  # and times mergekit's speed
WITH = "import sys; from tangora.cli import main; sys.exit(main())"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--folder", type=Path, help="where the work is made; default the system's")
    parser.add_argument("--result", type=Path, default=HERE / "results" / "fuse_fast.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--render", action="store_true", help="do not measure")
    options = parser.parse_args(arguments)
    if not options.render:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="tangora-fuse-") as scratch:
            found = measure(options, Path(scratch))
        options.result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads(options.result.read_text(encoding="utf-8"))
    peers = json.loads((HERE / "results" / "fuse-cpu.json").read_text(encoding="utf-8"))["samples"]
    before, begin, rest = options.docs.read_text(encoding="utf-8").partition(BEGIN)
    if not begin or END not in rest:
        raise SystemExit(f"{options.docs}: need {BEGIN} and, after it, {END}")
    text = f"{before}{BEGIN}\n{section(found, peers)}\n{END}{rest.partition(END)[2]}"
    options.docs.write_text(text, encoding="utf-8")


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Samples of both, in turns, and the floor in every round."""
    started, load = datetime.datetime.now(datetime.timezone.utc), os.getloadavg()
    work = scratch / "work"
    numbers = _make(work, options.layers)
    samples: dict[str, dict[str, list[dict[str, float]]]] = {m: {"without": [], "with": []} for m in options.methods}
    bandwidth = []
    for method in options.methods:  # compiles, and fills the page cache
        _sample(method, "with", work, scratch / "out")
    for number in range(options.rounds):
        bandwidth.append(_bandwidth(work, scratch / "bytes"))
        for method in options.methods:
            digests = set()
            for which in ("without", "with") if number % 2 == 0 else ("with", "without"):
                sample, digest = _sample(method, which, work, scratch / "out")
                samples[method][which].append(sample)
                digests.add(digest)
                print(f"round {number + 1}: {method} {which}: {sample['seconds']:.2f} s", flush=True)
            if len(digests) > 1:
                raise SystemExit(f"{method}: the outputs differ")
    return {
        "format": 1, "date": started.isoformat(timespec="seconds"), "commit": _commit(),
        "machine": {**machine(), "load_before": load, "load_after": os.getloadavg()},
        "versions": {"python": sys.version.split()[0], **{n: metadata.version(n) for n in ("numpy", "torch", "numba")}},
        "parameters": numbers, "rounds": options.rounds, "bandwidth": bandwidth, "samples": samples,
    }  # fmt: skip


def _sample(method: str, which: str, work: Path, out: Path) -> tuple[dict[str, float], str]:
    """One process, and a digest of what it wrote."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", WITH if which == "with" else BARE]
    command += ["fuse", *(str(work / model) for model in ("base", *MODELS)), "--full", "--out", str(out)]
    command += ["--method", method, "--weights", str(METHODS[method])]
    command += ["--set", "density=0.2"] if "ties" in method else []
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    sample = process(f"{method} {which}", command, out, {**os.environ, "PYTHONPATH": path})
    digest = hashlib.sha256()
    for file in sorted(out.glob("*.safetensors")):
        with file.open("rb") as opened:
            while piece := opened.read(2**24):
                digest.update(piece)
    return sample, digest.hexdigest()


def section(found: dict[str, Any], peers: dict[str, Any]) -> str:
    """Machine, table, goals."""
    about = found["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    load = ", ".join(f"{about[key][0]:.1f}" for key in ("load_before", "load_after"))
    floor = floor_of(found)
    rows = [
        "| | wall, s | processor, s | peak, MiB | times as fast | by processor time | of the floor |",
        "|---" + "|---:" * 6 + "|",
    ]
    for method, samples in found["samples"].items():
        for which, label in (("without", "without"), ("with", "**with `fast`**")):
            wall, processor, peak = (
                median(sample[key] for sample in samples[which]) for key in ("seconds", "cpu_seconds", "peak")
            )
            cells = [f"{LABELS[method]}: {label}", f"{wall:.1f}", f"{processor:.1f}", f"{peak / MIB:.0f}"]
            times = [_interval(ratios(samples, key)) if which == "with" else "–" for key in ("seconds", "cpu_seconds")]
            cells += [*times, f"{floor / wall:.0%}"]
            rows.append("| " + " | ".join(cells) + " |")
    head = (
        f"{about['cpu']}, {about['cores']} cores; load before and after: {load}. {versions}. {found['date'][:10]}, "
        f"{found['rounds']} rounds, medians; ratios within a round: median, smallest and largest. Every sample is in "
        f"[`fuse_fast.json`](../benchmarks/results/fuse_fast.json). Five checkpoints of "
        f"{found['parameters'] / 1e6:.0f} M parameters in bfloat16; the floor is {floor:.1f} s."
    )
    return "\n\n".join([head, "\n".join(rows), "\n".join(goals(found, peers))])


def goals(found: dict[str, Any], peers: dict[str, Any]) -> list[str]:
    """Which goals are met; mergekit was measured in another run, so that its ratio is a product of two."""
    lines = []
    for method, least in FLOOR.items():
        if method in found["samples"]:
            share = floor_of(found) / median(s["seconds"] for s in found["samples"][method]["with"])
            lines.append(_goal(f"{LABELS[method]}: at least {least:.0%} of the floor", f"{share:.0%}", share >= least))
    for method, least in TIMES.items():
        ours, theirs = (peers.get(f"{method}/{tool}") for tool in ("tangora", "mergekit"))
        if method in found["samples"] and ours and theirs:
            before = median(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True))
            times = before * median(ratios(found["samples"][method]))
            words = f"{LABELS[method]}: at least {least:g} times mergekit's speed, derived from the two runs"
            lines.append(_goal(words, f"{before:.1f} · {times / before:.1f} = {times:.1f}", times >= least))
    return lines


def ratios(samples: dict[str, list[dict[str, float]]], key: str = "seconds") -> list[float]:
    """How many times as fast the kernels are, round by round, in order of size."""
    pairs = zip(samples["without"], samples["with"], strict=True)
    return sorted(without[key] / fast[key] for without, fast in pairs)


def floor_of(found: dict[str, Any]) -> float:
    """Seconds in which the bytes are plainly read and written."""
    size = 2 * found["parameters"]
    return median((1 + len(MODELS)) * size / b["read"] + size / b["write"] for b in found["bandwidth"])


def _interval(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({values[0]:.2f} – {values[-1]:.2f})"


def _goal(words: str, value: str, met: bool) -> str:
    return f"- {words}: {value}, {'met' if met else '**not met**'}"


if __name__ == "__main__":
    main()
