"""Seven experts of text7 trained by one process with two threads, and by two processes with one thread each.

    python benchmarks/executors.py --data FOLDER --model FOLDER_OR_HUB_ID     # some minutes; writes the table
    python benchmarks/executors.py --render                                    # from the result that is there

A run of the recipe text7 with LoRA alone: seven trainings of some steps, their scores, one fusion and the report.
After a dry run that fills the page cache, serial and ``processes`` take turns, the other one first in the next round;
ratios are formed within a round. The experts' weights are compared afterwards:
with another number of threads they differ by what rounding does in so many steps.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from step_table import ratio, written
from step_worker import versions
from train_step import _machine as machine
from train_step import _source as source

HERE = Path(__file__).resolve().parent
RESULT, DOCS = HERE / "results" / "executors-cpu.json", HERE.parent / "docs" / "benchmarks.md"
MARKS = "<!-- executors:begin -->", "<!-- executors:end -->"
WAYS = {
    "serial": ["--executor", "serial", "--set", "machine.threads=2"],
    "processes": ["--executor", "processes", "--workers", "2", "--set", "machine.threads=1"],
}


def main(arguments: Sequence[str] | None = None) -> None:
    written(_parser().parse_args(arguments), measure, table, *MARKS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of the seven data sets")
    parser.add_argument("--model", help="folder or Hub name of all-MiniLM-L6-v2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--render", action="store_true", help="do not measure")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every run, and how far the experts' weights are apart."""
    order = list(WAYS)
    seconds: dict[str, list[float]] = {way: [] for way in order}
    started, load, differences = datetime.datetime.now(datetime.timezone.utc), os.getloadavg(), []
    with tempfile.TemporaryDirectory() as folder:
        _run("serial", Path(folder, "planned"), options, "--dry-run")
    for _ in range(options.rounds):
        order.reverse()
        with tempfile.TemporaryDirectory() as folder:
            for way in order:
                seconds[way].append(_run(way, Path(folder, way), options))
            differences.append(_difference(*(Path(folder, way) for way in WAYS)))
        print({way: samples[-1] for way, samples in seconds.items()}, differences[-1], flush=True)
    return {
        "date": started.isoformat(timespec="seconds"),
        "source": source(["benchmarks/executors.py", "src/tangora/runs", "src/tangora/modes"]),
        "machine": {**machine(), "load_before": load, "load_after": os.getloadavg()},
        "versions": versions(),
        "settings": {"steps": options.steps, "rounds": options.rounds},
        "seconds": seconds,
        "differences": differences,
    }


def _run(way: str, out: Path, options: argparse.Namespace, *more: str) -> float:
    settings = {
        "data.root": options.data,
        "base.model": options.model,
        "modes": "{lora: {}}",
        "training.steps": options.steps,
        "fusion.subsets": "{sizes: [7], per_size: 1}",
        "fusion.methods": "[{method: average}]",
        "machine.device": "cpu",
    }
    command = [sys.executable, "-m", "tangora", "run", "text7", "--out", str(out), "--quiet", *more, *WAYS[way]]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - start


def _difference(one: Path, other: Path) -> float:
    """Largest difference between the runs' adapters, of the largest entry."""
    from safetensors.numpy import load_file

    found = 0.0
    files = sorted(one.glob("adapters/lora/*/adapter_model.safetensors"))
    if len(files) != 7:
        raise SystemExit(f"expected seven adapters in {one}, found {len(files)}")
    for file in files:
        mine, theirs = load_file(file), load_file(other / file.relative_to(one))
        for name, value in mine.items():
            found = max(found, float(abs(value - theirs[name]).max() / abs(value).max()))
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: seconds, and the share of the time."""
    chip, settings, seconds = found["machine"], found["settings"], found["seconds"]
    names = ", ".join(f"{name} {text}" for name, text in found["versions"].items())
    value, low, high = ratio(seconds["serial"], seconds["processes"])
    serial, processes = (median(seconds[way]) for way in WAYS)
    return "\n".join(
        [
            f"{chip['cpu']}, {chip['cores']} cores; load before and after: {chip['load_before'][0]:.1f}, "
            f"{chip['load_after'][0]:.1f}. {names}. {found['date'][:10]}; {settings['steps']} steps an expert, "
            f"{settings['rounds']} rounds; every sample is in [`{RESULT.name}`](../benchmarks/results/{RESULT.name}).",
            "",
            "| one process, two threads, s | two processes, s | times as fast | weights differ by at most |",
            "|---:|---:|---:|---:|",
            f"| {serial:.0f} | {processes:.0f} | {value:.2f} ({low:.2f} – {high:.2f}) "
            f"| {max(found['differences']):.0e} |",
        ]
    )


if __name__ == "__main__":
    main()
