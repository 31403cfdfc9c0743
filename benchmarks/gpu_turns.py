"""Contenders take turns: what the sections of `gpu.py` share."""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["ROUNDS", "Save", "freed", "in_turns", "parts", "timed", "tried"]

ROUNDS = {"full": 30, "tiny": 2}
Save = Callable[[Mapping[str, Any]], None]


def parts(names: Sequence[str], end: float) -> Iterator[tuple[str, float]]:
    """Each name with the time when its part has to end: what is left is shared evenly."""
    for done, name in enumerate(names):
        now = time.monotonic()
        yield name, now + (end - now) / (len(names) - done)


def in_turns(
    works: Mapping[str, Callable[[], float]], until: float, options: argparse.Namespace, *, warm: bool = True
) -> dict[str, dict[str, Any]]:
    """Seconds of every contender: one sample each per round, in an order drawn anew for each, while there is time.

    Args:
        works: name -> what returns the seconds that it took.
        until: when no round may begin that would end later; one is done in any case.
        options: with the size, which has the most rounds, and the seed.
        warm: whether all are called once before.
    """
    found = {name: tried(lambda work=work: _warmed(work) if warm else {"seconds": []}) for name, work in works.items()}
    shuffle, began, done = random.Random(options.seed), time.monotonic(), 0
    while done < ROUNDS[options.size] and (not done or time.monotonic() + (time.monotonic() - began) / done < until):
        order = [name for name, taken in found.items() if "error" not in taken]
        for name in shuffle.sample(order, len(order)):
            sample = tried(lambda name=name: {"seconds": [works[name]()]})
            found[name] = sample if "error" in sample else {"seconds": found[name]["seconds"] + sample["seconds"]}
        done += 1
        told = ", ".join(f"{name} {taken['seconds'][-1]:.4g} s" for name, taken in found.items() if "seconds" in taken)
        print(f"round {done}: {told}", flush=True)
    return found


def _warmed(work: Callable[[], float]) -> dict[str, Any]:
    work()
    return {"seconds": []}


def tried(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the work returns, or its error: the others are measured all the same."""
    try:
        return work()
    except (Exception, SystemExit) as failure:
        traceback.print_exc(file=sys.stderr)
        return {"error": f"{type(failure).__name__}: {' '.join(str(failure).split())}"[:400]}


def timed(work: Callable[[], object], device: str) -> Callable[[], float]:
    from fuse_adapters import _now as now

    def sample() -> float:
        began = now(device)
        work()
        return now(device) - began

    return sample


def freed(device: str) -> None:
    """Give back what earlier contenders held."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
