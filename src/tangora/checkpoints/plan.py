"""The layout of an output, known before the first tensor is read: shards, offsets, and peak memory.

The header of a safetensors file depends only on names, shapes and dtypes. So every block of every tensor has a fixed
offset in a fixed file, and threads write blocks as soon as they are ready, in any order.

**Peak memory** (`Memory`): with T models, blocks of b entries, W threads, c bytes per computed number (4; 8 if any
tensor is float64) and s bytes per number in the files::

    resident before the first block   (Python, torch; measured)
    + 64 MiB, without torch 8 MiB     what libraries load when they first compute
    + W · b · ((T + 2)·s + (T + 6)·c)  each thread's buffers, and the method's temporaries; of a linear one 6·c
    + (W + 1) · T · 10 MiB            a method with cutoffs: histograms, and entries waiting to be counted
    + W · T · 12 MiB                  a random method: its uniform numbers, 2²⁰ at a time
    + W · n · (p·T + q)·c             a method that needs whole tensors: n entries in the largest; it declares p and q,
                                      3 and 6 unless it keeps several decompositions (6 and 10)

The bound does not grow with the number of tensors, layers or shards, and only its last line grows with their size.
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
from tangora.storage.header import ITEMSIZE, write_header
from tangora.support.files import digest

__all__ = ["BLOCK", "Memory", "OutputPlan", "Placement", "make_plan"]

BLOCK = 2**18
"""Entries of a tensor that are computed at a time: few enough for the caches, enough to outweigh the calls."""

_MIB = 2**20


@dataclass(frozen=True)
class Placement:
    """The location of a target in the output: shard and offset in bytes, with its dtype."""

    target: Target
    shard: int
    offset: int
    dtype: str

    @property
    def size(self) -> int:
        """The number of bytes in the output."""
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
class OutputPlan:
    """The layout of the output.

    Args:
        placements: every target's location, in the order of the files; rows that the base does not have follow its own.
        headers: each shard's first bytes.
        sizes: each shard's number of bytes.
        names: each shard's file name.
        block: the number of entries that are computed at a time.
    """

    placements: list[Placement]
    headers: list[bytes]
    sizes: list[int]
    names: list[str]
    block: int

    @property
    def index(self) -> str | None:
        """The text of the index; None if there is only one file."""
        if len(self.names) == 1:
            return None
        total = sum(placement.size for placement in self.placements)
        table = {placement.target.name: self.names[placement.shard] for placement in self.placements}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
        return json.dumps(index, indent=2, ensure_ascii=False) + "\n"

    @property
    def files(self) -> list[str]:
        """The files that are written, including the index."""
        return [*self.names, *([INDEX] if self.index else [])]

    @property
    def widest(self) -> int:
        """The number of entries in the largest block."""
        return max(
            [self.block, *(placement.target.row_block for placement in self.placements if placement.target.adapted)]
        )

    @property
    def itemsize(self) -> int:
        """The number of bytes of the widest entry that is read or written."""
        return max((max(max_itemsize(p.target), ITEMSIZE[p.dtype]) for p in self.placements), default=1)

    @property
    def dtypes(self) -> frozenset[str]:
        """The dtypes of all entries that are fused, read or written."""
        fused = [p for p in self.placements if p.target.fused]
        return frozenset([*(s.dtype for p in fused for s in p.target.stored), *(p.dtype for p in fused)])

    @property
    def wide(self) -> bool:
        """Whether any tensor is float64, and so the arithmetic."""
        return any(s.dtype == "F64" for p in self.placements if p.target.fused for s in p.target.stored)

    @property
    def fingerprint(self) -> str:
        """The digest of the layout: names, shapes and dtypes of every shard."""
        return digest([[header.hex() for header in self.headers], self.sizes])

    def memory(self, method: Method, threads: int) -> Memory:
        """Return the peak memory of a fusion by this method with this number of threads."""
        tasks = max((len(p.target.parts) for p in self.placements), default=0)
        stored, wide = self.itemsize, 8 if self.wide else 4
        largest = max((p.target.entries for p in self.placements if p.target.fused), default=0)
        rows = 6 if method.linear else tasks + 6
        per_task, once = method.copies
        return Memory(
            before=_resident(),
            libraries=(64 if "torch" in sys.modules else 8) * _MIB,
            buffers=threads * self.widest * ((tasks + 2) * stored + rows * wide),
            cutoffs=(threads + 1) * tasks * 10 * _MIB if method.cutoff else 0,
            uniforms=threads * tasks * 12 * _MIB if method.random else 0,
            whole=threads * largest * (per_task * tasks + once) * wide if method.needs_whole else 0,
        )


def max_itemsize(target: Target) -> int:
    """Return the number of bytes of the widest entry that is read for a target."""
    return max(ITEMSIZE[stored.dtype] for stored in target.stored)


def _resident() -> int:
    """Return the peak resident set of this process so far, in bytes."""
    with contextlib.suppress(OSError, StopIteration):  # getrusage includes the parent's peak before the fork
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def make_plan(targets: Sequence[Target], *, dtype: str | None, shard_size: int, block: int = BLOCK) -> OutputPlan:
    """Lay the output out: targets in the base's order, shards of at most ``shard_size`` bytes (or one tensor).

    Args:
        targets: the tensors of the output.
        dtype: the safetensors dtype of the fused tensors; None for the base's.
        shard_size: bytes of tensors in a shard.
        block: the number of entries that are computed at a time.

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
    placements: list[Placement] = []
    headers, sizes = [], []
    for number, group in enumerate(groups):
        group.sort(key=lambda pair: -ITEMSIZE[pair[1]])  # so that every tensor begins aligned to its dtype
        header = write_header([(target.name, kind, target.shape) for target, kind in group])
        at = len(header)
        for part, kind in ((part, kind) for target, kind in group for part in (target, *target.tails)):
            placements.append(Placement(part, number, at, kind))
            at += placements[-1].size
        headers.append(header)
        sizes.append(at)
    count = len(groups)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    return OutputPlan(placements, headers, sizes, names, block)


def chunks(entries: int, step: int = CHUNK) -> list[tuple[int, int]]:
    """Split the entries of a tensor into chunks ``[start, stop)``; an empty tensor has none."""
    return [(start, min(start + step, entries)) for start in range(0, entries, step)]
