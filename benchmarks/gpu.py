"""Tangora on a GPU, beside its peers: training steps, scoring, columns, adapters fused, checkpoints merged.

    make bench-gpu                          # under ten minutes; writes results/gpu.json and docs/benchmarks.md
    python benchmarks/gpu.py --render       # the tables alone, from the result that is there
    python benchmarks/gpu.py --device cpu --tiny --result /tmp/gpu.json     # tries it out: no measurement

Every section runs in a process of its own (`gpu_sections.py`), within its share of the time. In it the contenders take
turns, one sample each per round, in an order drawn anew for each round, and ratios are formed within a round. What
fails is written down with its error, and the rest goes on; the exit code then is 1. Nothing is downloaded: networks
have random weights. This process imports nothing heavy, as `fuse.py` does not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_table import MARKS, failures, table
from step_table import replace_between
from train_step import _machine as machine
from train_step import _source as source

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULT, DOCS = HERE / "results" / "gpu.json", ROOT / "docs" / "benchmarks.md"
SHARES = {"steps": 0.28, "scoring": 0.10, "columns": 0.12, "adapters": 0.18, "merge": 0.32}
"""Section -> its share of the time."""
START, OVER = 20.0, 1.3
"""Seconds that a section has at least, and how far beyond its share it is let run."""
SOURCES = [f"benchmarks/{name}.py" for name in ("gpu*", "fuse", "fuse_work", "fuse_adapters")]
SOURCES += ["benchmarks/step_*.py", "benchmarks/sweep_work.py", "src"]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.tiny and options.result is None and not options.render:
        raise SystemExit("--tiny measures nothing: give --result FILE, so that it does not replace what was measured")
    if not options.tiny and not options.device.startswith("cuda"):
        raise SystemExit("the full sizes are for a GPU: add --tiny to try this out on a CPU")
    docs = options.docs or (None if options.tiny else DOCS)
    options.result = options.result or RESULT
    found = None if options.render else measure(options)
    if docs is not None:
        render(options.result, docs)
    if found is not None and (failed := failures(found)):
        raise SystemExit("\n".join(["not measured:", *failed]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of weights and products")
    parser.add_argument("--sections", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--limit", type=float, default=540.0, help="seconds for all sections together")
    parser.add_argument("--layers", type=int, default=4, help="of the 7B shape's 32, in checkpoints that are merged")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, which try it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where checkpoints are made (21 GB); default the system's")
    parser.add_argument("--result", type=Path, help=f"default: {RESULT.relative_to(ROOT)}")
    parser.add_argument("--docs", type=Path, help=f"page with the tables; default: {DOCS.relative_to(ROOT)}")
    parser.add_argument("--render", action="store_true", help="do not measure")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All sections, one after the other; the result file is written after each.

    Raises:
        SystemExit: there is no such device.
    """
    began, started, load = time.monotonic(), datetime.datetime.now(datetime.timezone.utc), os.getloadavg()
    device = _section("about", options, 60.0)
    if "error" in device:
        raise SystemExit(f"torch does not start: {device['error']}")
    if not device["available"]:
        torch = device["versions"].get("torch")
        what = (
            f"there is no CUDA device here (torch {torch}): run this on a machine with a GPU and a torch built for it"
        )
        raise SystemExit(f"{what}; --device cpu --tiny tries it out")
    settings = {key: getattr(options, key) for key in ("device", "dtype", "limit", "layers", "tiny", "seed")}
    found: dict[str, Any] = {"format": 1, "date": started.isoformat(timespec="seconds"), "source": source(SOURCES)}
    found |= {"machine": {**machine(), "load_before": load}, "device": device, "settings": settings, "sections": {}}
    for number, name in enumerate(options.sections):
        waiting = options.sections[number:]
        share = SHARES[name] / sum(SHARES[other] for other in waiting)
        found["sections"][name] = _section(name, options, share * (options.limit - (time.monotonic() - began)))
        found["machine"]["load_after"], found["seconds"] = os.getloadavg(), time.monotonic() - began
        options.result.parent.mkdir(parents=True, exist_ok=True)
        options.result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.result}", flush=True)
    return found


def _section(name: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """What one section found, with the time that it took, and its error if it did not end well."""
    began, error = time.monotonic(), None
    if name in SHARES:
        print(f"== {name}: {seconds:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="tangora-gpu-") as scratch:
        out = Path(scratch) / "found.json"
        command = [name, "--out", str(out), "--folder", scratch, "--seconds", f"{max(1.0, seconds):.1f}"]
        command += ["--device", options.device, "--dtype", options.dtype, "--seed", str(options.seed)]
        command += ["--size", "tiny" if options.tiny else "full", "--layers", str(options.layers)]
        error = run(command, max(START, OVER * seconds))
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    took = {"section_seconds": time.monotonic() - began}
    return {**found, **took, **({} if error is None else {"error": error})}


def run(command: Sequence[str], limit: float) -> str | None:
    """Run `gpu_sections.py`; return why it failed, if it did."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(HERE / "gpu_sections.py"), *command],
        env=environment,
        start_new_session=True,
    ) as child:
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            _end(child)
            return f"stopped after {limit:.0f} seconds"
        except BaseException:
            _end(child)
            raise
    return None if code == 0 else f"exit code {code}: its message is above"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a section and the processes that it has started."""
    import signal

    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def render(result: Path, docs: Path) -> None:
    """Put the tables of a result into the page, or that there is none."""
    found: Mapping[str, Any] | None = json.loads(result.read_text(encoding="utf-8")) if result.exists() else None
    text = docs.read_text(encoding="utf-8")
    docs.write_text(replace_between(text, table(found, result.name), *MARKS), encoding="utf-8")
    print(f"wrote {docs}")


if __name__ == "__main__":
    main()
