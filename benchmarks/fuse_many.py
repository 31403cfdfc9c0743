"""A hundred adapters of a 7B shape averaged, beside `cat` of the same files; wall time and peak resident memory.

    python benchmarks/fuse_many.py              # makes 8 GB of adapters in a temporary folder, runs, writes the table
    python benchmarks/fuse_many.py --render     # the table alone, from the result that is there

Every adapter has rank 16 on all linear layers of a Llama of 32 layers (4096 wide, 11008 inside), in bfloat16: 80 MB.
As after linearized training, they share A and differ in B, so that the average keeps rank 16. Before each reading from
the disk the files leave the page cache. A sample of Tangora is a process: the seconds of `tangora.fuse`, from
folders to merged factors with their parents' fingerprints, and those of the whole process, imports and writing
included. Half as many adapters are fused too, for the growth of the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from step_table import _goal as goal
from step_table import replace_between
from train_step import _machine as machine
from train_step import _source as source

HERE = Path(__file__).resolve().parent
RESULT, DOCS = HERE / "results" / "fuse_many.json", HERE.parent / "docs" / "benchmarks.md"
MARKS = "<!-- fuse_many:begin -->", "<!-- fuse_many:end -->"
WIDTH, INNER, LAYERS, RANK = 4096, 11008, 32, 16
SHAPES = {
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--folder", type=Path, help="where the work is made; default the system's")
    parser.add_argument("--worker", nargs="+", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(fused(options.worker)))
        return
    if not options.render:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="tangora-many-") as scratch:
            found = measure(Path(scratch), options)
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    body = table(json.loads(RESULT.read_text()))
    DOCS.write_text(replace_between(DOCS.read_text(encoding="utf-8"), body, *MARKS), encoding="utf-8")


def measure(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Samples in turns: cat and Tangora, from the disk and from the page cache."""
    command = [sys.executable, "-c", "import fuse_many, sys; fuse_many.make(*sys.argv[1:])"]
    command += [str(scratch), str(options.adapters), str(options.layers)]
    subprocess.run(command, check=True, cwd=HERE)
    folders = sorted(scratch.iterdir())
    sizes, samples = {}, {}
    for count in (options.adapters // 2, options.adapters):
        files = [folder / "adapter_model.safetensors" for folder in folders[:count]]
        sizes[str(count)] = sum(path.stat().st_size for path in files)
        samples[str(count)] = [_round(folders[:count], files) for _ in range(options.rounds)]
        print(count, samples[str(count)], flush=True)
    load = os.getloadavg()
    return {
        "machine": machine(),
        "source": source(["src", "benchmarks/fuse_many.py"]),
        "load": load,
        "layers": options.layers,
        "sizes": sizes,
        "samples": samples,
    }


def make(folder: str, count: str, layers: str) -> None:
    """Adapters as peft saves them; the B are windows of one pool of random numbers, which is quick to draw."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    pool = (torch.randn(2**22, generator=generator) * 0.02).bfloat16()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "base_model_name_or_path": "example/7b"}
    config["target_modules"] = sorted(name.rsplit(".", 1)[1] for name in SHAPES)
    shared = {name: (torch.randn(RANK, i, generator=generator) / i).bfloat16() for name, (_, i) in SHAPES.items()}
    for index in range(int(count)):
        tensors = {}
        for layer in range(int(layers)):
            for number, (name, (out, _)) in enumerate(SHAPES.items()):
                site, at = f"base_model.model.model.layers.{layer}.{name}", 7919 * (index * 31 + layer * 7 + number)
                window = pool[at % 2**21 :][: out * RANK]
                tensors |= {f"{site}.lora_A.weight": shared[name].clone(), f"{site}.lora_B.weight": window.clone()}
                tensors[f"{site}.lora_B.weight"] = tensors[f"{site}.lora_B.weight"].reshape(out, RANK)
        place = Path(folder, f"a{index:03}")
        place.mkdir()
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        (place / "adapter_config.json").write_text(json.dumps(config))


def fused(folders: Sequence[str]) -> dict[str, float]:
    """The process that is measured."""
    import tangora

    start = time.perf_counter()
    made = tangora.fuse(folders, "average")
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory(dir=Path(folders[0]).parent.parent) as scratch:
        made.save(Path(scratch) / "out")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"fuse": seconds, "peak": peak}


def _round(folders: Sequence[Path], files: Sequence[Path]) -> dict[str, dict[str, float]]:
    found = {}
    for state in ("disk", "cache"):
        if state == "disk":
            _forget(files)
        begin = time.perf_counter()
        subprocess.run(["cat", *map(str, files)], check=True, stdout=subprocess.DEVNULL)
        cat = time.perf_counter() - begin
        if state == "disk":
            _forget(files)
        begin = time.perf_counter()
        command = [sys.executable, __file__, "--worker", *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        whole = time.perf_counter() - begin
        found[state] = {"cat": cat, "process": whole, **json.loads(done.stdout.splitlines()[-1])}
    return found


def _forget(files: Sequence[Path]) -> None:
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def table(found: dict[str, Any]) -> str:
    """Markdown: speeds, their ratio formed within a round, memory."""
    chip, load = found["machine"], ", ".join(f"{value:.1f}" for value in found["load"])
    times = len(next(iter(found["samples"].values())))
    lines = [
        f"{chip['cpu']}, {chip['cores']} cores; load {load}. Adapters of rank {RANK} on every linear layer of "
        f"{found['layers']} layers, bfloat16, one shared A; medians of {times} rounds.",
        "",
        "| adapters | GB | from | `cat`, GB/s | fused, GB/s | of `cat` | whole process, s | peak, MiB |",
        "|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    reached: list[tuple[float, float]] = []
    for count, rounds in found["samples"].items():
        size = found["sizes"][count]
        for state, word in (("disk", "the disk"), ("cache", "the page cache")):
            taken = [one[state] for one in rounds]
            cat, ours = (size / median(t[key] for t in taken) / 1e9 for key in ("cat", "fuse"))
            ratio, whole, peak = (
                median(t["cat"] / t["fuse"] for t in taken), median(t["process"] for t in taken),
                median(t["peak"] for t in taken) / 2**20,
            )  # fmt: skip
            cells = [count, f"{size / 1e9:.1f}", word, f"{cat:.2f}", f"{ours:.2f}", f"{ratio:.0%}"]
            lines.append("| " + " | ".join([*cells, f"{whole:.1f}", f"{peak:.0f}"]) + " |")
            if state == "disk":
                reached.append((ratio, peak))
    share, most = reached[-1]
    lines += ["", goal(f"{count} adapters, from the disk: share of `cat`'s speed, at least 0.7", share, least=0.7)]
    lines.append(goal(f"{count} adapters: peak MiB, at most 1000", most, most=1000))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
