"""The steps of a fusion: first cutoffs, if the method has them, then the fusion itself.

Tensors that share their cutoffs form a *group*: the whole model for a method of granularity ``model``, otherwise each
tensor. Its steps are, in this order: sample, count (again, if the bracket missed the cutoff), fuse. Methods without
cutoffs only have the last.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import numpy as np

from tangora.checkpoints.align import Target
from tangora.checkpoints.fuser import Fuser, Sink, blocks, chunk_size
from tangora.checkpoints.lane import Lane
from tangora.checkpoints.plan import OutputPlan, Placement, chunks
from tangora.checkpoints.scheduler import Step
from tangora.checkpoints.select import Selection
from tangora.errors import FusionError
from tangora.fusion.computation import Computation
from tangora.methods import Method
from tangora.methods._sparsity import kept
from tangora.storage.floats import Array

__all__ = ["Steps", "check_method"]

_RUN = 2048  # neighbouring entries in a sample
_SAMPLES = {"tensor": 2**16, "model": 2**20}
_SAMPLE, _COUNT, _FUSE = range(3)


def check_method(method: Method) -> None:
    """Refuse a method that cannot be streamed.

    Raises:
        FusionError: the method needs all tensors at once, or statistics.
    """
    if method.statistics is not None:
        fix = "fuse the adapters first, and then merge the result into its base"
        raise FusionError(f"{method.name} needs statistics, which only adapters have", where="fuse.method", fix=fix)
    if method.granularity == "model" and method.needs_whole:
        fix = "use a method of granularity element or tensor, or fuse adapters into an adapter"
        raise FusionError(f"{method.name} needs all tensors at once, but checkpoints are too large for that", fix=fix)


@dataclass
class CutoffGroup:
    """Targets that share their cutoffs, and the state of the search for these."""

    number: int
    placements: list[Placement]
    selections: list[Selection]
    samples: list[list[Array]]
    left: int
    round: int = 0
    lock: Lock = field(default_factory=Lock)

    @property
    def entries(self) -> int:
        """The number of entries per model."""
        return sum(placement.target.entries for placement in self.placements)

    def finished(self) -> bool:
        """Count a step as finished; return whether it was the last of its round."""
        with self.lock:
            self.left -= 1
            return self.left == 0


class Steps:
    """The steps of a plan.

    Args:
        plan: the output.
        computation: what is computed.
        sink: receives the results.
        skip: shards that are done already.
        cutoffs: the whole model's cutoffs, if an interrupted run has found them.
        on_cutoffs: called with the whole model's cutoffs when they are found.
    """

    def __init__(
        self,
        plan: OutputPlan,
        computation: Computation,
        sink: Sink,
        *,
        skip: Iterable[int] = (),
        cutoffs: Sequence[float] | None = None,
        on_cutoffs: Callable[[list[float]], None] = lambda cutoffs: None,
    ) -> None:
        self.plan, self.method, self.parameters = plan, computation.method, computation.parameters
        self.skip, self.cutoffs, self.on_cutoffs = frozenset(skip), cutoffs, on_cutoffs
        self.fuser = Fuser(computation, sink, plan.block)

    def first(self) -> list[Step[Lane]]:
        """Return the steps to begin with."""
        steps: list[Step[Lane]] = []
        with_cutoffs: list[Placement] = []
        for number, placement in enumerate(self.plan.placements):
            target = placement.target
            if not (self.method.cutoff and target.by_method and target.entries):
                steps += self._fusing(number, [placement], None)
            elif self.method.granularity == "model":
                with_cutoffs.append(placement)
            elif placement.shard not in self.skip:
                steps += self._sampling(number, [placement])
        last = len(self.plan.placements)
        if with_cutoffs and self.cutoffs is None:
            steps += self._sampling(last, with_cutoffs)
        elif with_cutoffs:
            steps += self._fusing(last, with_cutoffs, self.cutoffs)
        return steps

    def _sampling(self, number: int, placements: list[Placement]) -> list[Step[Lane]]:
        density = self.parameters[self.method.cutoff or ""]
        total, tasks = sum(placement.target.entries for placement in placements), len(placements[0].target.parts)
        selections = [Selection(kept(density, total), total, self.plan.wide) for _ in range(tasks)]
        group = CutoffGroup(number, placements, selections, [[] for _ in range(tasks)], len(placements))
        return [
            Step((number, _SAMPLE, 0, i), partial(self._sample, group, placement))
            for i, placement in enumerate(placements)
        ]

    def _sample(self, group: CutoffGroup, placement: Placement, lane: Lane) -> list[Step[Lane]]:
        target, most = placement.target, _SAMPLES["model" if len(group.placements) > 1 else "tensor"]
        for spans in _batches(_sampled_runs(target, group.entries, most, self.plan.block), lane.block):
            rows = lane.host(lane.sampled(target, spans))
            ends = np.cumsum([stop - start for start, stop in spans])[:-1]
            with group.lock:
                for sample, row in zip(group.samples, rows, strict=True):
                    sample += np.split(row.copy(), ends)
        if not group.finished():
            return []
        for selection, sample in zip(group.selections, group.samples, strict=True):
            selection.guess(sample)
        group.samples.clear()
        return self._after(group)

    def _after(self, group: CutoffGroup) -> list[Step[Lane]]:
        """Return the next steps: fuse if every cutoff is known, else count once more."""
        cutoffs = [selection.cutoff for selection in group.selections if selection.cutoff is not None]
        if len(cutoffs) == len(group.selections):
            group.selections = []
            if self.method.granularity == "model":
                self.on_cutoffs(cutoffs)
            return self._fusing(group.number, group.placements, cutoffs)
        spans = [
            (placement, *span)
            for placement in group.placements
            for span in chunks(placement.target.entries, chunk_size(placement.target))
        ]
        group.left, group.round = len(spans), group.round + 1
        order = (group.number, _COUNT, group.round)
        return [Step((*order, i), partial(self._count, group, *span)) for i, span in enumerate(spans)]

    def _count(self, group: CutoffGroup, placement: Placement, start: int, stop: int, lane: Lane) -> list[Step[Lane]]:
        target = placement.target
        lane.expect(target, start, stop)
        for a, b in blocks(target, start, stop, self.plan.block):
            lane.count(target, a, b, group.selections)
        if not group.finished():
            return []
        for selection in group.selections:
            selection.narrow()
        return self._after(group)

    def _fusing(self, number: int, placements: list[Placement], cutoffs: Sequence[float] | None) -> list[Step[Lane]]:
        spans = [(p, *span) for p in placements if p.shard not in self.skip for span in self.fuser.spans(p.target)]
        return [
            Step((number, _FUSE, 0, i), partial(self._fuse, placement, start, stop, cutoffs))
            for i, (placement, start, stop) in enumerate(spans)
        ]

    def _fuse(
        self, placement: Placement, start: int, stop: int, cutoffs: Sequence[float] | None, lane: Lane
    ) -> list[Step[Lane]]:
        self.fuser.run(placement, start, stop, cutoffs, lane)
        return []


def _sampled_runs(target: Target, total: int, most: int, block: int) -> list[tuple[int, int]]:
    """Return the entries of a sample: all, if they are few, else short runs, one at random in each of equal strides.

    A tensor's share of the sample is its share of the group.
    """
    wanted = math.ceil(most * target.entries / total)
    if wanted >= target.entries:
        return blocks(target, 0, target.entries, block)
    length = target.width if target.adapted else min(_RUN, wanted, block)
    stride = length * target.entries / wanted
    draw = random.Random(target.name)
    starts = [int(at * stride + draw.random() * (stride - length)) for at in range(max(1, wanted // length))]
    if target.adapted:
        starts = sorted({start // length * length for start in starts})
    return [(start, min(start + length, target.entries)) for start in starts]


def _batches(runs: list[tuple[int, int]], block: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the runs in batches that fit into a block."""
    batch: list[tuple[int, int]] = []
    for run in runs:
        if batch and sum(b - a for a, b in (*batch, run)) > block:
            yield batch
            batch = []
        batch.append(run)
    if batch:
        yield batch
