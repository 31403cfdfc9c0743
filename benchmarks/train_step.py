"""What one training step costs: peft LoRA, LoRA with A frozen, Tangora's L-LoRA, and fusion-bench's jvp wrapper.

    make bench-peers                                  # once: the other tool, in its own environment
    python benchmarks/train_step.py                   # CPU; writes results/train_step-cpu.json and docs/benchmarks.md
    python benchmarks/train_step.py --device cuda --dtype bfloat16
    python benchmarks/train_step.py --compare tangent_step      # LoRA, tangent LoRA, and tangent LoRA the naive way
    python benchmarks/train_step.py --render          # the table alone, from the results that are there

A step is forward, backward and AdamW. Every contender runs in processes of its own. Time: one process each, all alive
at once, taking turns in an order that changes from round to round, so that what slows the machine slows all of them;
ratios are formed within a round. Memory: a fresh process per sample. Before any of it their outputs are compared.
This process imports nothing heavy: a child's peak resident set would start at its parent's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from step_models import COMPARISONS, CONTENDERS, SHAPES
from step_table import render

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"
SOURCES = [f"benchmarks/{name}.py" for name in ("train_step", "step_models", "step_networks", "step_worker")]
SOURCES += ["src/tangora/linearize.py", "src/tangora/_lora.py", "src/tangora/tangent"]
TOLERANCE = 1e-4
"""Largest difference between contenders, of the largest entry: float32, summed in another order."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    chosen = COMPARISONS[options.compare]
    options.contenders = options.contenders or chosen.contenders
    options.shapes = options.shapes or chosen.shapes
    if not options.render:
        dtype = "" if options.dtype == "float32" else f"-{options.dtype}"
        path = options.results / f"{options.compare}-{options.device}{dtype}.json"
        found = measure(options)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}")
    for name in COMPARISONS if options.render else [options.compare]:
        render(sorted(options.results.glob(f"{name}-*.json")), options.docs, name)
    print(f"wrote {options.docs}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of what is measured")
    parser.add_argument("--compare", choices=COMPARISONS, default="train_step", help="which table")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="default: those of the table")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="default: those of the table")
    parser.add_argument("--rounds", type=int, default=20, help="samples of time per contender")
    parser.add_argument("--steps", type=int, help="steps per sample (default: 1, on a GPU 20)")
    parser.add_argument("--memory-samples", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the interpreter that has fusion-bench")
    parser.add_argument("--render", action="store_true", help="do not measure")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Check, weigh and time every contender on every shape; what the results file says."""
    if "jvp_wrapper" in options.contenders and not options.peers.exists():
        raise SystemExit(f"fusion-bench's environment is not at {options.peers}: run `make bench-peers` first")
    options.steps = options.steps or (20 if options.device == "cuda" else 1)
    settings = {key: getattr(options, key) for key in ("device", "dtype", "rounds", "steps", "threads", "seed")}
    started, load = datetime.datetime.now(datetime.timezone.utc), os.getloadavg()
    shapes = {name: _measure_shape(name, options) for name in options.shapes}
    machine = {**_machine(), "load_before": load, "load_after": os.getloadavg()}
    date = started.isoformat(timespec="seconds")
    return {"format": 1, "date": date, "source": _source(), "machine": machine, "settings": settings, "shapes": shapes}


def _measure_shape(name: str, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {contender: {} for contender in options.contenders}
    with tempfile.TemporaryDirectory() as reference:
        for contender in options.contenders:
            found[contender]["check"] = _once(name, contender, "check", options, "--reference", reference)
            _refuse_unequal(name, contender, found[contender]["check"])
    for contender in options.contenders:
        samples = [_once(name, contender, "memory", options) for _ in range(options.memory_samples)]
        found[contender]["memory"] = samples
    for contender, timed in _time(name, options).items():
        found[contender].update(timed)
    return {"title": SHAPES[name].title, "contenders": found}


def _refuse_unequal(shape: str, contender: str, check: dict[str, float]) -> None:
    """Contenders that compute different things have no business in one table."""
    differences = {name: value for name, value in check.items() if name != "effect_of_b"}
    told = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    print(f"{shape}: {contender}: differs by {told}", flush=True)
    # value by value: a NaN compares as false, and `max` would lose it
    if not (all(value <= TOLERANCE for value in differences.values()) and check["effect_of_b"] > 100 * TOLERANCE):
        raise SystemExit(f"{contender} does not compute what the others do on {shape}: {check}")


def _time(shape: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    order, shuffle = list(options.contenders), random.Random(options.seed)
    with ExitStack() as stack:
        workers = {c: stack.enter_context(_worker(shape, c, "time", options)) for c in order}
        found = {c: {**_read(workers[c], c), "seconds": [], "cpu_seconds": []} for c in order}
        for done in range(options.rounds):
            shuffle.shuffle(order)
            for contender in order:
                print(options.steps, file=workers[contender].stdin, flush=True)
                for key, value in _read(workers[contender], contender).items():
                    found[contender][key].append(value)
            _progress(shape, done + 1, options.rounds, {c: found[c]["seconds"][-1] for c in options.contenders})
    return found


def _once(shape: str, contender: str, mode: str, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    with _worker(shape, contender, mode, options, *more) as worker:
        return _read(worker, contender)


@contextmanager
def _worker(
    shape: str, contender: str, mode: str, options: argparse.Namespace, *more: str
) -> Iterator[subprocess.Popen[str]]:
    """A running `step_worker.py`, which ends when its input does."""
    python = str(options.peers) if contender == "jvp_wrapper" else sys.executable
    command = [python, "-W", "ignore", str(HERE / "step_worker.py"), shape, contender, mode, "--device", options.device]
    command += ["--dtype", "float32" if mode == "check" else options.dtype]
    command += ["--threads", str(options.threads), "--seed", str(options.seed), *more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as worker:
        try:
            yield worker
        except BaseException:
            worker.kill()
            raise


def _read(worker: subprocess.Popen[str], contender: str) -> dict[str, Any]:
    line = worker.stdout.readline() if worker.stdout else ""
    if not line:
        raise SystemExit(f"{contender} stopped with exit code {worker.wait()}: its message is above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _progress(shape: str, done: int, rounds: int, seconds: dict[str, float]) -> None:
    times = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
    print(f"{shape}: round {done} of {rounds}: {times}", flush=True)


def _machine() -> dict[str, Any]:
    """Of what kind the machine is; not which one."""
    cpu, memory = platform.processor() or platform.machine(), None
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    system = f"{platform.system()} {platform.release()}"
    return {"cpu": cpu, "cores": os.cpu_count(), "memory": memory, "os": system, "arch": platform.machine()}


def _source(files: Sequence[str] = SOURCES) -> dict[str, Any]:
    """The commit that was measured, and which of the measured files differ from it."""

    def git(*arguments: str) -> str:
        if shutil.which("git") is None:
            return ""
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.rstrip()

    changed = [line[3:] for line in git("status", "--porcelain", "--", *files).splitlines()]
    return {"commit": git("rev-parse", "HEAD") or None, "changed": changed}


if __name__ == "__main__":
    main()
