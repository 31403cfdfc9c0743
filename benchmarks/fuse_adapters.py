"""Fusing eight LoRA adapters at a fixed rank: Tangora and peft's `add_weighted_adapter`, side by side.

    python benchmarks/fuse_adapters.py                # writes results/fuse_adapters.json and docs/benchmarks.md
    python benchmarks/fuse_adapters.py --render       # the table alone, from the result that is there

Eight adapters of rank 16 on every linear layer of a Llama-shaped model (hidden 1024, intermediate 4096), random
factors, cut to rank 16. peft does two layers, because it is slow, and is scaled by the number of layers; Tangora does
them all. Timed is the merge alone, from adapters in memory to the merged factors in memory, in a process each that
takes turns with the other. The error is that of the result against the dense sum (or dense TIES), on the two layers.

The whole process is `tangora fuse ... --no-verify`, from the start of the interpreter to the written adapter. The floor
is the time in which its inputs are plainly read and as many bytes as its output plainly written (see `fuse.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT, DOCS = HERE / "results" / "fuse_adapters.json", HERE.parent / "docs" / "benchmarks.md"
MARKS = "<!-- fuse_adapters:begin -->", "<!-- fuse_adapters:end -->"
ADAPTERS, RANK = 8, 16
GOALS = {"svd": 300, "ties": 40}  # times peft's speed
WORKS = {"svd": ("task_arithmetic", "svd", {}), "ties": ("ties_per_tensor", "ties_svd", {"density": 0.2})}


@dataclass(frozen=True)
class Sizes:
    """Of the adapted model: widths of its layers, how many there are, and how many of them peft does."""

    hidden: int = 1024
    inner: int = 4096
    layers: int = 24
    peer_layers: int = 2


SIZES = Sizes()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure unless only the table is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=SIZES.layers)
    parser.add_argument("--worker", nargs=3, metavar=("TOOL", "WORK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        tool, work, folder = options.worker
        print(json.dumps((_tangora if tool == "tangora" else _peft)(work, Path(folder))))
        return
    if not options.render:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(measure(options.rounds, options.layers), indent=1) + "\n", encoding="utf-8")
    from step_table import replace_between

    text = DOCS.read_text(encoding="utf-8")
    body = table(json.loads(RESULT.read_text()))
    DOCS.write_text(replace_between(text, body, *MARKS), encoding="utf-8")


def measure(rounds: int, layers: int) -> dict[str, Any]:
    """Samples of seconds, peak memory and error for every work and tool."""
    from fuse import _bandwidth as bandwidth
    from train_step import _source as source

    found: dict[str, Any] = {"machine": _machine(), "source": source(["src", "benchmarks/fuse_adapters.py"])}
    found |= {"layers": {"tangora": layers, "peft": SIZES.peer_layers}, "works": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"tangora": Path(scratch, "all"), "peft": Path(scratch, "two")}
        for folder, count in ((folders["tangora"], layers), (folders["peft"], SIZES.peer_layers)):
            # elsewhere: a child's peak begins at what its parent took
            call = "import fuse_adapters, pathlib, sys; fuse_adapters.make(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
            subprocess.run([sys.executable, "-c", call, str(folder), str(count)], check=True, cwd=HERE)
        for work in WORKS:
            samples: dict[str, list[dict[str, float]]] = {"tangora": [], "peft": [], "process": []}
            for _ in range(rounds):
                for tool in random.sample(["tangora", "peft"], 2):
                    samples[tool].append(_run(tool, work, folders[tool]))
                    print(work, tool, samples[tool][-1], flush=True)
                samples["process"].append(_process(work, folders["tangora"], Path(scratch, "out")))
                print(work, "process", samples["process"][-1], flush=True)
            found["works"][work] = samples
        found["bandwidth"] = bandwidth(folders["tangora"], Path(scratch, "plain"))
    return found


def _process(work: str, folder: Path, out: Path) -> dict[str, float]:
    """`tangora fuse` as a person calls it: what `fuse.process` measures, and bytes read and written."""
    from fuse import process

    method, _, parameters = WORKS[work]
    command = [sys.executable, "-m", "tangora", "fuse", *(str(folder / f"a{i}") for i in range(ADAPTERS))]
    command += ["--out", str(out), "--method", method, "--weights", "1.0", "--rank", str(RANK), "--no-verify"]
    command += [text for key, value in parameters.items() for text in ("--set", f"{key}={value}")]
    found = process(work, command, out)
    read, written = (sum(path.stat().st_size for path in place.rglob("*.safetensors")) for place in (folder, out))
    shutil.rmtree(out)
    return {**found, "read": read, "written": written}


def sites(layers: int, sizes: Sizes = SIZES) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of every linear layer."""
    hidden, inner = sizes.hidden, sizes.inner
    shapes = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    return {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in shapes.items()}


def make(folder: Path, layers: int, sizes: Sizes = SIZES) -> None:
    """Adapters as peft saves them; the first layers are the same whatever the number of layers."""
    import torch
    from safetensors.torch import save_file

    for index in range(ADAPTERS):
        generator = torch.Generator().manual_seed(index)
        tensors = {}
        for site, (out, inside) in sites(layers, sizes).items():
            for factor, shape in (("A", (RANK, inside)), ("B", (out, RANK))):
                drawn = torch.randn(shape, generator=generator) * 0.02
                tensors[f"base_model.model.{site}.lora_{factor}.weight"] = drawn
        place = folder / f"a{index}"
        place.mkdir(parents=True)
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": "all-linear"}
        config["target_modules"] = sorted({site.rsplit(".", 1)[1] for site in sites(1)})
        (place / "adapter_config.json").write_text(json.dumps(config))


def _tangora(work: str, folder: Path, sizes: Sizes = SIZES, device: str = "cpu") -> dict[str, float]:
    """Fuse on the device that the factors are on."""
    import torch

    import tangora

    adapters = [_placed(tangora.load(folder / f"a{i}"), device) for i in range(ADAPTERS)]
    method, _, parameters = WORKS[work]
    tangora.fuse([adapters[0], adapters[0]], weights=1.0, rank=1)  # imports and thread pools
    start = _now(device)
    fused = tangora.fuse(adapters, method, weights=1.0, rank=RANK, **parameters)
    seconds = _now(device) - start
    vectors = [adapter.task_vector for adapter in adapters]
    dense = lambda site: torch.stack([vector[site].dense() for vector in vectors])  # noqa: E731
    merged = {site: fused.updates[site].dense() for site in sites(sizes.peer_layers, sizes)}
    return {"seconds": seconds, "peak": _peak(), "error": _error(work, merged, dense)}


def _placed(adapter: Any, device: str) -> Any:
    from dataclasses import replace

    if device == "cpu":
        return adapter
    return replace(adapter, updates={site: update.to(device) for site, update in adapter.updates.items()})


def _now(device: str) -> float:
    """When the device has done what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def _peft(work: str, folder: Path, sizes: Sizes = SIZES, device: str = "cpu") -> dict[str, float]:
    import torch
    from peft import PeftModel
    from torch import nn

    model = nn.Module()
    for site, (out, inside) in sites(sizes.peer_layers, sizes).items():
        parent = model
        *path, leaf = site.split(".")
        for name in path:
            if not hasattr(parent, name):
                parent.add_module(name, nn.Module())
            parent = getattr(parent, name)
        parent.add_module(leaf, nn.Linear(inside, out, bias=False, device=device))
    model = PeftModel.from_pretrained(model, folder / "a0", adapter_name="a0")
    for i in range(1, ADAPTERS):
        model.load_adapter(folder / f"a{i}", adapter_name=f"a{i}")
    names = [f"a{i}" for i in range(ADAPTERS)]
    _, kind, parameters = WORKS[work]
    start = _now(device)
    model.add_weighted_adapter(names, [1.0] * ADAPTERS, "merged", combination_type=kind, svd_rank=RANK, **parameters)
    seconds = _now(device) - start
    layers = {site: model.get_submodule(f"base_model.model.{site}") for site in sites(sizes.peer_layers, sizes)}
    dense = lambda site: torch.stack([layers[site].get_delta_weight(name) for name in names]).detach()  # noqa: E731
    merged = {site: layer.get_delta_weight("merged").detach() for site, layer in layers.items()}
    return {"seconds": seconds, "peak": _peak(), "error": _error(work, merged, dense)}


def _error(work: str, merged: Any, dense: Any) -> float:
    """Of the merged updates, relative to the dense sum, or to dense TIES per tensor."""
    import torch

    from tangora.methods import get

    method = get("task_arithmetic" if work == "svd" else "ties_per_tensor")
    parameters = WORKS[work][2]
    wrong = total = 0.0
    for site, got in merged.items():
        deltas = dense(site)
        wanted = method(deltas, weights=torch.ones(ADAPTERS, 1, 1, device=deltas.device), **parameters)
        if work == "ties":  # peft scales what agrees by another rule: only the shape of the update is compared
            got = got * float((got * wanted).sum() / got.square().sum())
        wrong += float((got - wanted).square().sum())
        total += float(wanted.square().sum())
    return (wrong / total) ** 0.5


def _run(tool: str, work: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", tool, work, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tool} {work} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _machine() -> dict[str, Any]:
    return {"platform": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}


def table(found: dict[str, Any]) -> str:
    """Markdown: seconds for all layers, and how many times as fast."""
    from step_table import _goal as goal

    layers, goals = found["layers"], [""]
    times = layers["tangora"] / layers["peft"]
    lines = [
        f"Eight adapters, r = {RANK}, every linear layer of {layers['tangora']} layers, cut to rank {RANK}; "
        f"{found['machine']['cores']} cores. peft: {layers['peft']} layers, times {times:g}.",
        "",
        "| work | Tangora | peft | times as fast | error | peft's | whole process, s | peak, MiB | of the floor |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for work, samples in found["works"].items():
        ours, theirs = (statistics.median(s["seconds"] for s in samples[tool]) for tool in ("tangora", "peft"))
        theirs *= times
        errors = [statistics.median(s["error"] for s in samples[tool]) for tool in ("tangora", "peft")]
        whole, peak = (statistics.median(s[key] for s in samples["process"]) for key in ("seconds", "peak"))
        speed, moved = found["bandwidth"], samples["process"][0]
        floor = moved["read"] / speed["read"] + moved["written"] / speed["write"]
        cells = [
            work,
            f"{ours:.2f} s",
            f"{theirs:.0f} s",
            f"{theirs / ours:.0f}",
            *(f"{error:.6f}" for error in errors),
        ]
        cells += [f"{whole:.1f}", f"{peak / 2**20:.0f}", f"{floor / whole:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
        goals.append(goal(f"{work}: times peft's speed, at least {GOALS[work]}", theirs / ours, least=GOALS[work]))
    return "\n".join(lines + goals)


if __name__ == "__main__":
    main()
