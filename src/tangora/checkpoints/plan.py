"""Everything about an output that is known before the first tensor is read: shards, places, and peak memory.

The header of a safetensors file depends on names, shapes and dtypes alone. So every block of every tensor has a
fixed place in a fixed file, and threads write blocks wherever they are ready, in any order.

**Peak memory** (`Memory`): with T models, block of b numbers, W threads, c the bytes of a number computed with (4; 8
where any tensor is float64) and s those of a number in the files::

    resident before the first block   (Python, torch; measured)
    + 64 MiB, without torch 8 MiB     what libraries load when they first compute
    + W · b · ((T + 2)·s + (T + 6)·c)  each thread's buffers, and the method's temporaries; of a linear one 6·c
    + (W + 1) · T · 10 MiB            a method with cutoffs: histograms, and entries waiting to be counted
    + W · T · 12 MiB                  a random method: its uniform numbers, 2²⁰ at a time
    + W · n · (p·T + q)·c             a method that needs whole tensors: n numbers in the largest; it declares p and q,
                                      3 and 6 unless it keeps several decompositions (6 and 10)

Nothing in it grows with the number of tensors, layers or shards, nor, but for the last line, with their size.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tangora.checkpoints.align import Target
from tangora.errors import ArgumentError
from tangora.fusion.uniforms import CHUNK
from tangora.methods import Method
from tangora.storage.checkpoint import INDEX, SINGLE
from tangora.storage.header import ITEMSIZE, Stored, write_header
from tangora.support.files import digest

__all__ = ["BLOCK", "Memory", "Place", "Plan", "make_plan"]

BLOCK = 2**18
"""Numbers of a tensor that are worked on at a time: small enough for the caches, large enough to hide the calls."""

_MIB = 2**20


@dataclass(frozen=True)
class Place:
    """Where a target goes: which shard, at which byte, in which dtype."""

    target: Target
    shard: int
    offset: int
    dtype: str

    @property
    def size(self) -> int:
        """Bytes in the output."""
        return self.target.entries * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Memory:
    """The parts of the peak resident memory, in bytes; see the module."""

    before: int
    libraries: int
    buffers: int
    cutoffs: int
    uniforms: int
    whole: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.before + self.libraries + self.buffers + self.cutoffs + self.uniforms + self.whole


@dataclass(frozen=True)
class Plan:
    """The output, before it exists.

    Args:
        places: every target's place, in the order of the files; rows that the base does not have follow its own.
        headers: each shard's first bytes.
        sizes: each shard's bytes.
        names: each shard's file name.
        block: numbers worked on at a time.
    """

    places: list[Place]
    headers: list[bytes]
    sizes: list[int]
    names: list[str]
    block: int

    @property
    def index(self) -> str | None:
        """The text of the index; None where one file holds everything."""
        if len(self.names) == 1:
            return None
        total = sum(place.size for place in self.places)
        table = {place.target.name: self.names[place.shard] for place in self.places}
        told = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
        return json.dumps(told, indent=2, ensure_ascii=False) + "\n"

    @property
    def files(self) -> list[str]:
        """What the plan writes, the index with it."""
        return [*self.names, *([INDEX] if self.index else [])]

    @property
    def widest(self) -> int:
        """Numbers in the largest block."""
        return max([self.block, *(place.target.row_block for place in self.places if place.target.adapted)])

    @property
    def itemsize(self) -> int:
        """Bytes of the widest number that is read or written."""
        return max((max(max_itemsize(p.target), ITEMSIZE[p.dtype]) for p in self.places), default=1)

    @property
    def dtypes(self) -> frozenset[str]:
        """Those of all numbers that are fused, read or written."""
        fused = [p for p in self.places if p.target.fused]
        stored = [s for p in fused for s in (p.target.base, *p.target.parts) if isinstance(s, Stored)]
        return frozenset([*(s.dtype for s in stored), *(p.dtype for p in fused)])

    @property
    def wide(self) -> bool:
        """Whether any tensor is float64, and with it the arithmetic."""
        stored = [s for p in self.places if p.target.fused for s in (p.target.base, *p.target.parts)]
        return any(isinstance(s, Stored) and s.dtype == "F64" for s in stored)

    @property
    def fingerprint(self) -> str:
        """Of the layout: names, shapes and dtypes of every shard."""
        return digest([[header.hex() for header in self.headers], self.sizes])

    def memory(self, method: Method, threads: int) -> Memory:
        """The peak of a fusion by this method on so many threads."""
        tasks = max((len(p.target.parts) for p in self.places), default=0)
        stored, wide = self.itemsize, 8 if self.wide else 4
        largest = max((p.target.entries for p in self.places if p.target.fused), default=0)
        rows = 6 if method.linear else tasks + 6
        whole, (per_task, once) = method.needs_whole, method.copies
        return Memory(
            before=_resident(),
            libraries=(64 if "torch" in sys.modules else 8) * _MIB,
            buffers=threads * self.widest * ((tasks + 2) * stored + rows * wide),
            cutoffs=(threads + 1) * tasks * 10 * _MIB if method.cutoff else 0,
            uniforms=threads * tasks * 12 * _MIB if method.random else 0,
            whole=threads * largest * (per_task * tasks + once) * wide if whole else 0,
        )


def max_itemsize(target: Target) -> int:
    """Bytes of the widest number that is read for a target."""
    stored = [target.base, *(part for part in target.parts if isinstance(part, Stored))]
    return max(ITEMSIZE[s.dtype] for s in stored)


def _resident() -> int:
    """The peak resident set of this process so far, in bytes."""
    with contextlib.suppress(OSError, StopIteration):  # getrusage counts what the parent had when it started us
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def make_plan(targets: Sequence[Target], *, dtype: str | None, shard_size: int, block: int = BLOCK) -> Plan:
    """Lay the output out: targets in the base's order, shards of at most ``shard_size`` bytes (or one tensor).

    Args:
        targets: what the output holds.
        dtype: the safetensors dtype of what is fused; None: the base's.
        shard_size: bytes of tensors in a shard.
        block: numbers worked on at a time.

    Raises:
        ArgumentError: a size is not positive.
    """
    for name, value in (("shard_size", shard_size), ("block", block)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name} must be a whole number of at least 1", got=value, where=f"fuse.{name}")
    groups: list[list[tuple[Target, str]]] = [[]]
    room = shard_size
    for target in targets:
        kind = dtype if dtype is not None and target.fused else target.base.dtype
        size = sum(part.entries for part in (target, *target.tails)) * ITEMSIZE[kind]
        if size > room and groups[-1]:
            groups.append([])
            room = shard_size
        groups[-1].append((target, kind))
        room -= size
    places: list[Place] = []
    headers, sizes = [], []
    for number, group in enumerate(groups):
        group.sort(key=lambda pair: -ITEMSIZE[pair[1]])  # so that every tensor begins aligned to its dtype
        header = write_header([(target.name, kind, target.shape) for target, kind in group])
        at = len(header)
        for part, kind in ((part, kind) for target, kind in group for part in (target, *target.tails)):
            places.append(Place(part, number, at, kind))
            at += places[-1].size
        headers.append(header)
        sizes.append(at)
    count = len(groups)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    return Plan(places, headers, sizes, names, block)


def chunks(entries: int, step: int = CHUNK) -> list[tuple[int, int]]:
    """``[start, stop)`` of every job on a tensor of so many numbers; an empty tensor has none."""
    return [(start, min(start + step, entries)) for start in range(0, entries, step)]
