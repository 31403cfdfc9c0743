"""The section of `gpu.py` that merges checkpoints: whole processes, calls in one process, and what copying takes.

A 7B shape with fewer layers, so that it fits the time and the disk: five checkpoints in bfloat16, merged a block at a
time on the CPU and through the device.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuse
from fuse_work import WIDTHS, bytes_of
from gpu_turns import Save, in_turns, tried

HERE = Path(__file__).resolve().parent
METHODS = ("task_arithmetic", "ties_per_tensor")
SHAPE = {"full": "7b", "tiny": "tiny"}
MODELS = 1 + len(fuse.MODELS)
BYTES = {"full": 2**30, "tiny": 2**16}
"""Copied at a time, to measure bandwidth."""
ROOM = 1.1  # of the bytes of all checkpoints, of four outputs, and of one plainly written


def merge(options: argparse.Namespace, save: Save) -> None:
    """Make the checkpoints, merge them in whole processes, then let calls take turns in one process."""
    place, layers = options.folder, _layers(options)
    command = [str(HERE / "fuse_work.py"), str(place / "work"), "--layers", str(layers)]
    count = int(spawn([*command, "--shape", SHAPE[options.size], "--device", options.device]))
    size = sum(path.stat().st_size for path in (place / "work").glob("*/*.safetensors"))
    found: dict[str, Any] = {"layers": layers, "parameters": count, "read": size, "written": size // MODELS}
    found["processes"] = {}
    save(found)
    for method in METHODS:
        for role, device in _roles(options):
            found["processes"][f"{method}/{role}"] = _process(method, device, place)
            save(found)
    command = [str(HERE / "gpu_sections.py"), "merge_calls", "--out", str(place / "calls.json")]
    command += ["--folder", str(place), "--seconds", str(max(1.0, options.end - time.monotonic()))]
    command += ["--device", options.device, "--size", options.size, "--seed", str(options.seed)]
    try:
        print(spawn(command), end="", flush=True)
    finally:
        if (place / "calls.json").exists():
            save({**found, **json.loads((place / "calls.json").read_text(encoding="utf-8"))})


def _layers(options: argparse.Namespace) -> int:
    """As many layers as are asked for, but no more than the disk has room for."""
    free = shutil.disk_usage(options.folder).free
    layers = int(options.layers)
    while layers > 1 and ROOM * (MODELS + 5) * bytes_of(layers, WIDTHS[SHAPE[options.size]]) > free:
        layers -= 1
    return layers


def _roles(options: argparse.Namespace) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("host", "cpu"), ("device", options.device)


def spawn(command: list[str]) -> str:
    """What a Python process of its own prints.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} stopped with exit code {done.returncode}: its message is above")
    return done.stdout


def _process(method: str, device: str, place: Path) -> dict[str, Any]:
    """`tangora fuse --full` as a person calls it: seconds from start to end, processor, peak resident bytes."""
    options = argparse.Namespace(device=device, peers=place)
    try:
        return dict(fuse._sample(f"{method}/tangora", place / "work", place / "out", options))
    except SystemExit as failure:
        return {"error": " ".join(str(failure).split())[-400:]}


def merge_calls(options: argparse.Namespace, save: Save) -> None:
    """`tangora.fuse_checkpoints` on the CPU and through the device, in turns; what both write is compared."""
    place = options.folder
    warmed = place / "warm"
    spawn([str(HERE / "fuse_work.py"), str(warmed), "--layers", "1", "--shape", "tiny"])
    works: dict[str, Callable[[], float]] = {}
    for method in METHODS:
        for role, device in _roles(options):
            tried(lambda method=method, device=device: {"seconds": _call(method, device, warmed, place / "warm-out")})
            out = place / f"{method}-{role}"
            works[f"{method}/{role}"] = lambda m=method, d=device, out=out: _call(m, d, place / "work", out)
    found: dict[str, Any] = {"bandwidth": [_bandwidth(options, place) for _ in range(2)]}
    save(found)
    found["calls"] = in_turns(works, options.end, options, warm=False)
    found["differing"] = {
        method: _differing(place / f"{method}-host", place / f"{method}-device")
        for method in METHODS
        if all("error" not in found["calls"][f"{method}/{role}"] for role, _ in _roles(options))
    }
    save(found)


def _call(method: str, device: str, work: Path, out: Path) -> float:
    from tangora.checkpoints.merge import fuse_checkpoints

    shutil.rmtree(out, ignore_errors=True)
    _, _, weight = fuse.CONTENDERS[f"{method}/tangora"]
    models = [work / name for name in fuse.MODELS]
    parameters: dict[str, Any] = {"density": 0.2} if "ties" in method else {}
    began = time.perf_counter()
    fuse_checkpoints(work / "base", models, out, method, weight, device=device, **parameters)
    return time.perf_counter() - began


def _bandwidth(options: argparse.Namespace, place: Path) -> dict[str, float]:
    """Bytes per second of copies within the host's memory, to and from the device, and of plain reading and writing."""
    import torch

    size, cuda = BYTES[options.size], options.device.startswith("cuda")
    source, target = (torch.ones(size, dtype=torch.uint8) for _ in range(2))
    there = torch.ones(size, dtype=torch.uint8, device=options.device)
    pinned = torch.ones(size, dtype=torch.uint8, pin_memory=cuda)

    def speed(to: torch.Tensor, of: torch.Tensor) -> float:
        to.copy_(of)
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        to.copy_(of, non_blocking=True)
        if cuda:
            torch.cuda.synchronize()
        return size / (time.perf_counter() - began)

    found = {"host_copy": speed(target, source), "to_device": speed(there, pinned), "from_device": speed(pinned, there)}
    return {**found, "to_device_pageable": speed(there, source), **fuse._bandwidth(place / "work", place / "bytes")}


def _differing(one: Path, other: Path) -> float:
    """The share of the first layer's entries that differ by more than two steps of bfloat16."""
    from safetensors import safe_open

    wrong = total = 0
    for path in sorted(one.glob("*.safetensors")):
        with safe_open(path, "pt") as left, safe_open(other / path.name, "pt") as right:
            for name in (name for name in left.keys() if ".layers.0." in name):  # noqa: SIM118
                a, b = left.get_tensor(name).float(), right.get_tensor(name).float()
                wrong += int(((a - b).abs() > 2**-6 * a.abs().maximum(b.abs())).sum())
                total += a.numel()
    return wrong / total
