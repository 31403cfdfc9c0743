"""Speeds of two checkouts of Tangora side by side: a change's, and those from before it.

    git worktree add /tmp/before REVISION
    python benchmarks/before_after.py /tmp/before                 # all works, 5 rounds
    python benchmarks/before_after.py /tmp/before --works help fuse/svd --rounds 9

Both checkouts do the same work on the same inputs, in processes that take turns (before, after, after, before, ...).
Printed are ratios after / before, pair by pair: their median, and the smallest and largest. A ratio above 1 is slower.
A work is a whole process, from the interpreter's start to its end, or training steps inside one (`step_worker.py`), or
columns of tangent adapters (`sweep.py`), by each checkout's own script, or
adapters in memory that are cut to a rank (`memory/svd`), as in `fuse_adapters.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
CONTENDERS, SHAPE, STEPS = ("lora", "l_lora", "tangent"), "minilm", 4


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--works", nargs="+", help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="1 disturbs least on a machine that others use")
    parser.add_argument("--layers", type=int, default=6, help="of the models whose adapters or checkpoints are fused")
    parser.add_argument("--result", type=Path, help="a file for the samples, as JSON")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    trees = {"before": options.before.resolve(), "after": ROOT}
    if not (trees["before"] / "src" / "tangora").is_dir():
        parser.error(f"{options.before} is no checkout of Tangora")
    with tempfile.TemporaryDirectory() as folder:
        works = _works(Path(folder), options.layers, options.works)
        if unknown := sorted({*(options.works or ())} - set(works)):
            parser.error(f"no such work: {', '.join(unknown)}; there are: {', '.join(works)}")
        samples = {name: _paired(works[name], trees, options.rounds, name) for name in options.works or works}
    if options.result:
        about = {"rounds": options.rounds, "layers": options.layers, "threads": options.threads}
        about |= {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
        about |= {"revisions": {which: _revision(tree) for which, tree in trees.items()}}
        options.result.write_text(json.dumps({**about, "samples": samples}, indent=1) + "\n")


def _revision(tree: Path) -> str:
    command = ["git", "-C", str(tree), "log", "-1", "--format=%H", "--", "src"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _works(folder: Path, layers: int, wanted: Sequence[str] | None) -> dict[str, Callable[[Path], dict[str, float]]]:
    """Name -> what measures it once in a checkout; inputs are made for those that are wanted."""
    adapters, models = folder / "adapters", folder / "models"
    make = f"import fuse_adapters, pathlib; fuse_adapters.make(pathlib.Path({str(adapters)!r}), {layers})"
    _run([sys.executable, "-c", make])
    if wanted is None or any(name.startswith("full/") for name in wanted):
        _run([sys.executable, "fuse_work.py", str(models), "--layers", str(layers)])
    ours, all_models = sorted(map(str, adapters.iterdir())), sorted(map(str, models.glob("*")))
    cut = ["--weights", "1.0", "--rank", "16", "--no-verify"]
    commands = {
        "import": ["-c", "import tangora"],
        "help": ["-m", "tangora", "--help"],
        "fuse/exact": ["-m", "tangora", "fuse", *ours, "--weights", "0.3"],
        "fuse/svd": ["-m", "tangora", "fuse", *ours, *cut],
        "fuse/ties": ["-m", "tangora", "fuse", *ours, *cut, "--method", "ties_per_tensor", "--set", "density=0.2"],
    }
    for method, weight in (("task_arithmetic", "0.3"), ("ties_per_tensor", "1.0"), ("ties", "1.0")):
        density = ["--set", "density=0.2"] if "ties" in method else []
        full = ["-m", "tangora", "fuse", *all_models, "--full", "--method", method, "--weights", weight, *density]
        commands[f"full/{method}"] = full
    works: dict[str, Callable[[Path], dict[str, float]]] = {}
    for name, command in commands.items():
        out = folder / "out" if "fuse" in command else None
        works[name] = lambda tree, command=command, out=out: _process(tree, command, out)
    works["memory/svd"] = lambda tree: _memory(tree, adapters)
    for contender in CONTENDERS:
        works[f"step/{contender}"] = lambda tree, contender=contender: _steps(tree, contender)
    works["sweep"] = lambda tree: _sweep(tree, folder / "sweep.json")
    return works


def _paired(
    work: Callable[[Path], dict[str, float]], trees: Mapping[str, Path], rounds: int, name: str
) -> dict[str, list[dict[str, float]]]:
    samples: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for tree in trees.values():
        work(tree)  # bytecode, files in the page cache
    for number in range(rounds):
        for which in ("before", "after") if number % 2 == 0 else ("after", "before"):
            samples[which].append(work(trees[which]))
    for figure in samples["after"][0]:
        pairs = zip(samples["after"], samples["before"], strict=True)
        ratios = sorted(after[figure] / before[figure] for after, before in pairs)
        values = (median(sample[figure] for sample in samples[which]) for which in ("before", "after"))
        before, after = (f"{value:.4g}" for value in values)
        text = f"{median(ratios):.3f} ({ratios[0]:.3f} - {ratios[-1]:.3f})"
        print(f"{name:22} {figure:12} {text:26} before {before}, after {after}", flush=True)
    return samples


def _process(tree: Path, command: Sequence[str], out: Path | None) -> dict[str, float]:
    """Seconds of wall clock and processor, and peak resident MiB, of a whole process."""
    destination = ["--out", str(out)] if out else []
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, *command, *destination], env=_environment(tree), stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        if status:
            errors.seek(0)
            raise SystemExit(f"{tree}: {' '.join(command)} failed:\n{errors.read().decode(errors='replace')[-2000:]}")
    if out:
        shutil.rmtree(out)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "processor": usage.ru_utime + usage.ru_stime, "peak, MiB": peak / 2**20}


def _memory(tree: Path, adapters: Path) -> dict[str, float]:
    """Seconds of wall clock and processor of eight adapters in memory, cut by SVD, after imports."""
    code = f"""
import json, time
from pathlib import Path
import tangora
adapters = [tangora.load(Path({str(adapters)!r}, f"a{{i}}")) for i in range(8)]
tangora.fuse([adapters[0], adapters[0]], weights=1.0, rank=1)
clock, processor = time.perf_counter(), time.process_time()
tangora.fuse(adapters, weights=1.0, rank=16)
print(json.dumps({{"seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}}))
"""
    found: dict[str, float] = json.loads(_run([sys.executable, "-c", code], tree).splitlines()[-1])
    return found


def _steps(tree: Path, contender: str) -> dict[str, float]:
    command = [sys.executable, "step_worker.py", SHAPE, contender, "time", "--threads", os.environ["OMP_NUM_THREADS"]]
    said = _run(command, tree, f"{STEPS}\n").splitlines()
    return {name: value for name, value in json.loads(said[-1]).items() if "seconds" in name}


def _sweep(tree: Path, result: Path) -> dict[str, float]:
    docs = result.with_name("docs.md")
    shutil.copyfile(tree / "docs" / "benchmarks.md", docs)
    command = [
        "sweep.py",
        "--threads",
        os.environ["OMP_NUM_THREADS"],
        "--rows",
        "32",
        "--by-forward",
        "1",
        "--result",
        str(result),
        "--docs",
        str(docs),
    ]
    _run([sys.executable, *command], tree)
    tasks = json.loads(result.read_text())["tasks"]
    return {
        "columns made": sum(task["fill"] for task in tasks),
        "fusions": sum(task["sweep"] for task in tasks),
        "forward pass": sum(sum(task["forward"]) for task in tasks),
    }


def _run(command: Sequence[str], tree: Path = ROOT, asked: str = "") -> str:
    """Run a script of a checkout's benchmarks, and return what it prints."""
    done = subprocess.run(
        command, cwd=tree / "benchmarks", env=_environment(tree), input=asked, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree / "src")}


if __name__ == "__main__":
    main()
