"""The arithmetic on a chunk of one tensor: read, subtract, fuse, add, round, write; the same bits in any blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tangora.checkpoints.align import Target
from tangora.checkpoints.lane import Lane, Numbers
from tangora.checkpoints.plan import Place, chunks
from tangora.fusion.computation import Computation
from tangora.fusion.uniforms import CHUNK, uniforms

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Fuser", "Sink", "blocks", "coefficients_of", "step"]


class Sink(Protocol):
    """Where results go."""

    def write(self, place: Place, start: int, data: memoryview) -> None:
        """The bytes of a target from its entry ``start``."""

    def done(self, place: Place, start: int, stop: int, digest: str) -> None:
        """These entries are written; the digest is of their bytes."""


class Fuser:
    """Does the chunks of a plan, on any lane.

    Args:
        computation: what is computed.
        sink: where it goes.
        block: numbers worked on at a time.
    """

    def __init__(self, computation: Computation, sink: Sink, block: int) -> None:
        self.computation, self.sink, self.block = computation, sink, block
        self._coefficients: dict[str, list[float]] = {}

    def spans(self, target: Target) -> list[tuple[int, int]]:
        """The chunks that a target is done in, each by one job."""
        whole = self.computation.method.needs_whole and target.by_method
        return chunks(target.entries, max(1, target.entries) if whole else step(target)) or [(0, 0)]

    def run(self, place: Place, start: int, stop: int, cutoffs: Sequence[float] | None, lane: Lane) -> None:
        """One chunk.

        Raises:
            FileError: an input is NaN or infinite.
            ArgumentError: the result is too large for its dtype.
            FusionError: integers differ.
        """
        target = place.target
        lane.expect(target, start, stop)
        if not target.fused:
            self._copy(place, start, stop, lane)
        elif self.computation.method.needs_whole and target.by_method:
            self._whole(place, lane)
        else:
            self._fuse(place, start, stop, cutoffs, lane)
        lane.drawn.clear()

    def _copy(self, place: Place, start: int, stop: int, lane: Lane) -> None:
        seen = hashlib.sha256()
        for a, b in blocks(place.target, start, stop, self.block):
            data = lane.copied(place.target, a, b)
            seen.update(data)
            self.sink.write(place, a, data)
        self.sink.done(place, start, stop, seen.hexdigest())

    def _fuse(self, place: Place, start: int, stop: int, cutoffs: Sequence[float] | None, lane: Lane) -> None:
        target, seen = place.target, hashlib.sha256()
        for a, b in blocks(target, start, stop, self.block):
            base = lane.base(target, a, b)
            update = self._update(target, a, b, base, cutoffs, lane) if target.changed else None
            seen.update(self._finish(place, a, b, base, update, lane))
        self.sink.done(place, start, stop, seen.hexdigest())

    def _update(
        self, target: Target, start: int, stop: int, base: Numbers, cutoffs: Sequence[float] | None, lane: Lane
    ) -> Numbers:
        if self.computation.method.linear or target.mean:
            return self._weighted(target, start, stop, base, lane)
        rows = lane.deltas(target, start, stop, base)
        given: dict[str, Any] = {} if cutoffs is None else {"cutoffs": cutoffs}
        if self.computation.method.random:
            given["uniforms"] = self._uniforms(target, start, stop, lane)
        return self._call(target, rows, given, lane)

    def _weighted(self, target: Target, start: int, stop: int, base: Numbers, lane: Lane) -> Numbers:
        """``sum_t c_t (theta_t - theta_0)``: two buffers, a pass for every product and every sum."""
        total, row = lane.spare(stop - start), lane.row(stop - start)
        coefficients = coefficients_of(self.computation, target) if target.mean else self._coefficients.get(target.name)
        if coefficients is None:
            coefficients = self._coefficients[target.name] = coefficients_of(self.computation, target)
        for task, coefficient in enumerate(coefficients):
            # multiplied and added in two steps: fused, a vector's end might be rounded otherwise than its middle
            update = lane.delta(target, task, start, stop, base, row if task else total)
            update *= coefficient
            if task:
                total += row
        return total

    def _call(self, target: Target, rows: Numbers, given: Mapping[str, Any], lane: Lane) -> Numbers:
        deltas = lane.tensor(rows)
        weights = deltas.new_tensor(self.computation.row(target.key)).reshape(-1, *(1,) * (rows.ndim - 1))
        return lane.numbers(
            self.computation.method.function(deltas, weights=weights, **given, **self.computation.parameters)
        )

    def _uniforms(self, target: Target, start: int, stop: int, lane: Lane) -> Tensor:
        import torch  # deferred: torch takes a second, and linear methods do without it

        parts = range(start // CHUNK, (stop - 1) // CHUNK + 1)
        drawn = [self._drawn(target, part, lane) for part in parts]
        joined = drawn[0] if len(drawn) == 1 else torch.cat(drawn, 1)
        return joined[:, start - parts[0] * CHUNK : stop - parts[0] * CHUNK].to(lane.device)

    def _drawn(self, target: Target, part: int, lane: Lane) -> Tensor:
        import torch  # deferred: torch takes a second, and linear methods do without it

        key = (target.name, part)
        if key not in lane.drawn:
            lane.drawn = {k: v for k, v in lane.drawn.items() if k[1] == part - 1}
            count = min(CHUNK, target.entries - part * CHUNK)
            seed, prints = self.computation.seed, self.computation.fingerprints
            lane.drawn[key] = torch.stack([uniforms(seed, target.key, p, part, count) for p in prints])
        return lane.drawn[key]

    def _whole(self, place: Place, lane: Lane) -> None:
        """A method that must see the whole tensor; the result is written by blocks."""
        target, shape = place.target, place.target.base.shape
        rows = lane.make(lane.tasks, target.entries)
        for a, b in blocks(target, 0, target.entries, self.block):
            rows[:, a:b] = lane.deltas(target, a, b, lane.base(target, a, b))
        given: dict[str, Any] = {}
        if self.computation.method.random:
            given["uniforms"] = self._uniforms(target, 0, target.entries, lane).reshape(-1, *shape)
        fused = self._call(target, rows.reshape(-1, *shape), given, lane).reshape(-1)
        del rows, given
        for start, stop in chunks(target.entries, step(target)):
            seen = hashlib.sha256()
            for a, b in blocks(target, start, stop, self.block):
                seen.update(self._finish(place, a, b, lane.base(target, a, b), fused[a:b], lane))
            self.sink.done(place, start, stop, seen.hexdigest())

    def _finish(
        self, place: Place, start: int, stop: int, base: Numbers, update: Numbers | None, lane: Lane
    ) -> memoryview:
        target = place.target
        if target.start is not None:
            base += lane.numbers(target.start.rows(start // target.width, stop // target.width).reshape(-1))
        if update is not None:
            base += update
        data = lane.rounded(base, place.dtype)
        if data is None:
            raise lane.not_finite(target, start, stop)
        self.sink.write(place, start, data)
        return data


def coefficients_of(computation: Computation, target: Target) -> list[float]:
    """Return what a linear method multiplies each model's difference with; for a mean, whose first is the base."""
    if target.mean:
        return [1 / (1 + len(target.parts))] * len(target.parts)
    return computation.coefficients(target.key)


def step(target: Target) -> int:
    """Entries in a job: the chunk of the random numbers, or about as many in whole rows."""
    return CHUNK if not target.adapted else target.row_block * max(1, CHUNK // target.row_block)


def blocks(target: Target, start: int, stop: int, block: int) -> list[tuple[int, int]]:
    """``[start, stop)`` in blocks: of any size, but where factors are multiplied, whose products depend on it."""
    size = target.row_block if target.adapted else block
    return [(a, min(a + size, stop)) for a in range(start, stop, size)]
