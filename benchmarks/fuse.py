"""Full checkpoints fused: Tangora and mergekit, whole processes, in turns; wall time, peak resident memory, growth.

    make bench-fuse                        # makes the work (6 GB in a temporary folder), runs, writes the table
    python benchmarks/fuse.py --render     # the table alone, from the results that are there

A sample is one process from its start to its end, interpreter and imports included; its peak resident set is what the
system reports of that child. Contenders take turns in an order that changes from round to round. Bandwidth is
measured in every round, by reading the inputs and writing as many bytes as the output has, through a plain buffer of
8 MiB. This process imports nothing heavy: a child's peak resident set would start at its parent's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from fuse_table import render
from train_step import _machine as machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MODELS = [f"ft{i}" for i in range(4)]
LAYERS = 24
CONTENDERS = {
    "task_arithmetic/tangora": ("tangora", "task_arithmetic", 0.3),
    "task_arithmetic/mergekit": ("mergekit", "task_arithmetic", 0.3),
    "ties_per_tensor/tangora": ("tangora", "ties_per_tensor", 1.0),
    "ties_per_tensor/mergekit": ("mergekit", "ties", 1.0),
    "ties/tangora": ("tangora", "ties", 1.0),
}
BUFFER = 8 * 2**20
# As without the extra `fast`, which `fuse_fast.py` measures.
BARE = "import sys; sys.modules['numba'] = None; from tangora.cli import main; sys.exit(main())"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    path = options.results / f"fuse-{options.device}.json"
    if not options.render:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="tangora-fuse-") as scratch:
            found = measure(options, Path(scratch))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}")
    render(sorted(options.results.glob("fuse-*.json")), options.docs, options.figures)
    print(f"wrote {options.docs}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--growth", type=int, nargs="*", default=[3, 6, 12, 24], help="layers of the growing models")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="for Tangora")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the work is made; default the system's")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="the environment that has mergekit")
    parser.add_argument("--render", action="store_true", help="do not measure")
    return parser


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The contenders in turns on the full work, then Tangora alone on growing ones; what the results file says."""
    if any("mergekit" in c for c in options.contenders) and not (options.peers / "bin" / "mergekit-yaml").exists():
        raise SystemExit(f"mergekit is not in {options.peers}: run `make bench-peers` first, or give --peers")
    started, load = datetime.datetime.now(datetime.timezone.utc), os.getloadavg()
    work = scratch / "work"
    numbers = _make(work, options.layers)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in options.contenders}
    bandwidth: list[dict[str, float]] = []
    order, shuffle = list(options.contenders), random.Random(options.seed)
    for done in range(options.rounds):
        shuffle.shuffle(order)
        bandwidth.append(_bandwidth(work, scratch / "bytes"))
        for name in order:
            samples[name].append(_sample(name, work, scratch / "out", options))
            print(f"round {done + 1} of {options.rounds}: {name}: {_told(samples[name][-1])}", flush=True)
    shutil.rmtree(work)
    growth = [_grown(layers, scratch / "grown", options) for layers in options.growth]
    about = {**machine(), "load_before": load, "load_after": os.getloadavg()}
    return {
        "format": 1, "date": started.isoformat(timespec="seconds"), "commit": _commit(), "machine": about,
        "versions": _versions(options), "device": options.device, "parameters": numbers, "rounds": options.rounds,
        "bandwidth": bandwidth, "samples": samples, "growth": growth,
    }  # fmt: skip


def _make(folder: Path, layers: int) -> int:
    command = [sys.executable, str(HERE / "fuse_work.py"), str(folder), "--layers", str(layers)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _grown(layers: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of both kinds of method on a model of so many layers."""
    numbers = _make(folder, layers)
    found: dict[str, Any] = {"layers": layers, "parameters": numbers, "bytes": 2 * numbers * (len(MODELS) + 2)}
    for method in ("task_arithmetic", "ties_per_tensor"):
        taken = [_sample(f"{method}/tangora", folder, folder / "out", options) for _ in range(options.rounds)]
        found[method] = {key: median(sample[key] for sample in taken) for key in taken[0]}
        print(f"{layers} layers: {method}: {_told(found[method])}", flush=True)
    shutil.rmtree(folder)
    return found


def _sample(name: str, work: Path, out: Path, options: argparse.Namespace) -> dict[str, float]:
    """One process: seconds from start to end, seconds of processor, peak resident bytes."""
    shutil.rmtree(out, ignore_errors=True)
    environment = dict(os.environ)
    if "/tangora" in name:
        path = [str(ROOT / "src"), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
    found = process(name, _command(name, work, out, options), out, environment)
    shutil.rmtree(out)
    return found


def process(name: str, command: list[str], out: Path, environment: dict[str, str] | None = None) -> dict[str, float]:
    """A command that writes a folder: seconds from start to end, seconds of processor, peak resident bytes.

    A child's peak begins at what its parent took: measure from a process that has imported little.
    """
    begin = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = child.stderr.read() if child.stderr else b""
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - begin
    if status != 0 or not list(out.glob("*.safetensors")):
        raise SystemExit(f"{name} failed:\n{said.decode(errors='replace')[-2000:]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak": peak}


def _command(name: str, work: Path, out: Path, options: argparse.Namespace) -> list[str]:
    tool, method, weight = CONTENDERS[name]
    density = "ties" in method
    if tool == "tangora":
        models = [str(work / model) for model in ("base", *MODELS)]
        command = [sys.executable, "-c", BARE, "fuse", *models, "--full", "--out", str(out), "--method", method]
        command += ["--weights", str(weight), "--device", options.device]
        return [*command, *(["--set", "density=0.2"] if density else [])]
    parameters = {"weight": weight, **({"density": 0.2} if density else {})}
    recipe = {
        "merge_method": method, "base_model": str(work / "base"), "dtype": "bfloat16",
        "models": [{"model": str(work / model), "parameters": parameters} for model in MODELS],
    }  # fmt: skip
    path = work / f"{method}.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return [str(options.peers / "bin" / "mergekit-yaml"), str(path), str(out)]


def _bandwidth(work: Path, scratch: Path) -> dict[str, float]:
    """Bytes per second of a plain read of the inputs, and of a plain write."""
    buffer, files = bytearray(BUFFER), sorted(work.glob("*/*.safetensors"))
    begin = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    read = sum(path.stat().st_size for path in files) / (time.perf_counter() - begin)
    size, begin = files[0].stat().st_size, time.perf_counter()
    with scratch.open("wb", buffering=0) as file:
        for _ in range(0, size, BUFFER):
            file.write(buffer)
    write = size / (time.perf_counter() - begin)
    scratch.unlink()
    return {"read": read, "write": write}


def _versions(options: argparse.Namespace) -> dict[str, str]:
    ask = "import importlib.metadata as m, sys; print(*(m.version(p) for p in sys.argv[1:]))"
    ours = subprocess.run([sys.executable, "-c", ask, "torch"], capture_output=True, text=True, check=True).stdout
    found = {"python": sys.version.split()[0], "torch": ours.strip()}
    if any("mergekit" in c for c in options.contenders):
        command = [str(options.peers / "bin" / "python"), "-c", ask, "mergekit", "torch"]
        theirs = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        found |= {"mergekit": theirs[0], "torch beside mergekit": theirs[1]}
    return found


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def _told(sample: dict[str, float]) -> str:
    return f"{sample['seconds']:.1f} s, {sample['peak'] / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
