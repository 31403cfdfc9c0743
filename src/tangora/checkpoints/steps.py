"""The order of the work: cutoffs where the method needs them, then the fusion itself.

A *scope* is what shares its cutoffs: the whole model for a method of granularity ``model``, a tensor otherwise. Its
jobs come in this order: sample, count (again, where the bracket was missed), fuse. Methods without cutoffs only
have the last.
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
from tangora.checkpoints.fuser import Fuser, Sink, blocks, step
from tangora.checkpoints.lane import Lane
from tangora.checkpoints.plan import Place, Plan, chunks
from tangora.checkpoints.scheduler import Job
from tangora.checkpoints.select import Selection
from tangora.errors import FusionError
from tangora.fusion.computation import Computation
from tangora.methods import Method
from tangora.storage.floats import Array

__all__ = ["Steps", "check_method"]

_PIECE = 2048  # neighbouring entries in a sample
_SAMPLES = {"tensor": 2**16, "model": 2**20}
_SAMPLE, _COUNT, _FUSE = range(3)


def check_method(method: Method) -> None:
    """Refuse a method that needs every tensor at once, or statistics.

    Raises:
        FusionError: it does.
    """
    if method.statistics is not None:
        fix = "fuse the adapters first, and then merge the result into its base"
        raise FusionError(f"{method.name} needs statistics, which are of adapters", where="fuse.method", fix=fix)
    if method.granularity == "model" and method.needs_whole:
        fix = "use a method of granularity element or tensor, or fuse adapters into an adapter"
        raise FusionError(f"{method.name} needs all tensors at once, which checkpoints are too large for", fix=fix)


@dataclass
class Scope:
    """Places that share their cutoffs, and how far the search for these has come."""

    number: int
    places: list[Place]
    selections: list[Selection]
    samples: list[list[Array]]
    left: int
    round: int = 0
    lock: Lock = field(default_factory=Lock)

    @property
    def entries(self) -> int:
        """Of one model."""
        return sum(place.target.entries for place in self.places)

    def finished(self) -> bool:
        """Count down the jobs of this step; whether this was the last."""
        with self.lock:
            self.left -= 1
            return self.left == 0


class Steps:
    """The jobs of a plan.

    Args:
        plan: the output.
        computation: what is computed.
        sink: where it goes.
        skip: shards that are done already.
        found: the whole model's cutoffs, where an earlier sitting found them.
        on_cutoffs: called with the whole model's cutoffs when they are found.
    """

    def __init__(
        self,
        plan: Plan,
        computation: Computation,
        sink: Sink,
        *,
        skip: Iterable[int] = (),
        found: Sequence[float] | None = None,
        on_cutoffs: Callable[[list[float]], None] = lambda cutoffs: None,
    ) -> None:
        self.plan, self.method, self.parameters = plan, computation.method, computation.parameters
        self.skip, self.found, self.on_cutoffs = frozenset(skip), found, on_cutoffs
        self.fuser = Fuser(computation, sink, plan.block)

    def jobs(self) -> list[Job[Lane]]:
        """The jobs to begin with."""
        found = [bool(self.method.cutoff and p.target.by_method and p.target.entries) for p in self.plan.places]
        searched = [place for place, looked in zip(self.plan.places, found, strict=True) if looked]
        jobs: list[Job[Lane]] = []
        for number, place in enumerate(self.plan.places):
            if not found[number]:
                jobs += self._fusing(number, [place], None)
            elif self.method.granularity != "model" and place.shard not in self.skip:
                jobs += self._sampling(number, [place])
        if self.method.granularity == "model" and searched:
            last = len(self.plan.places)
            jobs += self._sampling(last, searched) if self.found is None else self._fusing(last, searched, self.found)
        return jobs

    def _sampling(self, number: int, places: list[Place]) -> list[Job[Lane]]:
        from tangora.methods._sparsity import kept  # deferred: imports torch, which linear methods do without

        density = self.parameters[self.method.cutoff or ""]
        total, tasks = sum(place.target.entries for place in places), len(places[0].target.parts)
        selections = [Selection(kept(density, total), total, self.plan.wide) for _ in range(tasks)]
        scope = Scope(number, places, selections, [[] for _ in range(tasks)], len(places))
        return [Job((number, _SAMPLE, 0, i), partial(self._sample, scope, place)) for i, place in enumerate(places)]

    def _sample(self, scope: Scope, place: Place, lane: Lane) -> list[Job[Lane]]:
        target, most = place.target, _SAMPLES["model" if len(scope.places) > 1 else "tensor"]
        for spans in _batches(_pieces(target, scope.entries, most, self.plan.block), lane.block):
            rows = lane.tensor(lane.sampled(target, spans)).cpu().numpy()
            ends = np.cumsum([stop - start for start, stop in spans])[:-1]
            with scope.lock:
                for sample, row in zip(scope.samples, rows, strict=True):
                    sample += np.split(row.copy(), ends)
        if not scope.finished():
            return []
        for selection, sample in zip(scope.selections, scope.samples, strict=True):
            selection.guess(sample)
        scope.samples.clear()
        return self._after(scope)

    def _after(self, scope: Scope) -> list[Job[Lane]]:
        """Fuse when every cutoff is known; else count once more."""
        cutoffs = [selection.cutoff for selection in scope.selections if selection.cutoff is not None]
        if len(cutoffs) == len(scope.selections):
            scope.selections = []
            if self.method.granularity == "model":
                self.on_cutoffs(cutoffs)
            return self._fusing(scope.number, scope.places, cutoffs)
        spans = [(place, *span) for place in scope.places for span in chunks(place.target.entries, step(place.target))]
        scope.left, scope.round = len(spans), scope.round + 1
        order = (scope.number, _COUNT, scope.round)
        return [Job((*order, i), partial(self._count, scope, *span)) for i, span in enumerate(spans)]

    def _count(self, scope: Scope, place: Place, start: int, stop: int, lane: Lane) -> list[Job[Lane]]:
        target = place.target
        lane.expect(target, start, stop)
        for a, b in blocks(target, start, stop, self.plan.block):
            rows = lane.differences(target, a, b, lane.base(target, a, b))
            for selection, row in zip(scope.selections, rows, strict=True):
                selection.count(row)
        if not scope.finished():
            return []
        for selection in scope.selections:
            selection.narrow()
        return self._after(scope)

    def _fusing(self, number: int, places: list[Place], cutoffs: Sequence[float] | None) -> list[Job[Lane]]:
        spans = [(p, *span) for p in places if p.shard not in self.skip for span in self.fuser.spans(p.target)]
        return [
            Job((number, _FUSE, 0, i), partial(self._fuse, place, start, stop, cutoffs))
            for i, (place, start, stop) in enumerate(spans)
        ]

    def _fuse(
        self, place: Place, start: int, stop: int, cutoffs: Sequence[float] | None, lane: Lane
    ) -> list[Job[Lane]]:
        self.fuser.run(place, start, stop, cutoffs, lane)
        return []


def _pieces(target: Target, total: int, most: int, block: int) -> list[tuple[int, int]]:
    """Where a sample is taken: all of it when that is not too much, else short pieces, spread evenly with a shift.

    A tensor has as large a part in the sample as in the scope.
    """
    wanted = math.ceil(most * target.entries / total)
    if wanted >= target.entries:
        return blocks(target, 0, target.entries, block)
    piece = target.width if target.adapted else min(_PIECE, wanted, block)
    stride = piece * target.entries / wanted
    draw = random.Random(target.name)
    starts = [int(at * stride + draw.random() * (stride - piece)) for at in range(max(1, wanted // piece))]
    if target.adapted:
        starts = sorted({start // piece * piece for start in starts})
    return [(start, min(start + piece, target.entries)) for start in starts]


def _batches(pieces: list[tuple[int, int]], block: int) -> Iterator[list[tuple[int, int]]]:
    """The pieces in groups that fit into a block."""
    group: list[tuple[int, int]] = []
    for piece in pieces:
        if group and sum(b - a for a, b in (*group, piece)) > block:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group
