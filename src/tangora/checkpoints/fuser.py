"""The arithmetic on a chunk of one tensor: read, subtract, fuse, add, round, write; the same bits for any blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tangora.checkpoints.align import Target
from tangora.checkpoints.fast import FastLane
from tangora.checkpoints.lane import Lane, Numbers
from tangora.checkpoints.plan import Placement, chunks
from tangora.fusion.computation import Computation
from tangora.fusion.uniforms import CHUNK, uniforms

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Fuser", "Sink", "blocks", "chunk_size", "coefficients_of"]


class Sink(Protocol):
    """Receives the results."""

    def write(self, placement: Placement, start: int, data: memoryview) -> None:
        """Write the bytes of a target from its entry ``start``."""

    def done(self, placement: Placement, start: int, stop: int, digest: str) -> None:
        """Record that these entries are written; the digest is of their bytes."""


class Fuser:
    """Computes the chunks of a plan, on any lane.

    Args:
        computation: what is computed.
        sink: receives the results.
        block: the number of entries that are computed at a time.
    """

    def __init__(self, computation: Computation, sink: Sink, block: int) -> None:
        self.computation, self.sink, self.block = computation, sink, block
        self._coefficients: dict[str, list[float]] = {}

    def spans(self, target: Target) -> list[tuple[int, int]]:
        """Return the chunks of a target; each is one step."""
        at_once = self.computation.method.needs_whole and target.by_method
        return chunks(target.entries, max(1, target.entries) if at_once else chunk_size(target)) or [(0, 0)]

    def run(self, placement: Placement, start: int, stop: int, cutoffs: Sequence[float] | None, lane: Lane) -> None:
        """Compute one chunk.

        Raises:
            FileError: an input is NaN or infinite.
            ArgumentError: the result is too large for its dtype.
            FusionError: integers differ.
        """
        target = placement.target
        lane.expect(target, start, stop)
        if not target.fused:
            self._copy(placement, start, stop, lane)
        elif self.computation.method.needs_whole and target.by_method:
            self._fuse_tensor(placement, lane)
        else:
            self._fuse(placement, start, stop, cutoffs, lane)
        lane.drawn.clear()

    def _copy(self, placement: Placement, start: int, stop: int, lane: Lane) -> None:
        seen = hashlib.sha256()
        for a, b in blocks(placement.target, start, stop, self.block):
            data = lane.copied(placement.target, a, b)
            seen.update(data)
            self.sink.write(placement, a, data)
        self.sink.done(placement, start, stop, seen.hexdigest())

    def _fuse(self, placement: Placement, start: int, stop: int, cutoffs: Sequence[float] | None, lane: Lane) -> None:
        target, seen = placement.target, hashlib.sha256()
        for a, b in blocks(target, start, stop, self.block):
            if isinstance(lane, FastLane) and target.changed:
                seen.update(self._merge(placement, a, b, cutoffs, lane))
                continue
            base = lane.base(target, a, b)
            update = self._update(target, a, b, base, cutoffs, lane) if target.changed else None
            seen.update(self._finish(placement, a, b, base, update, lane))
        self.sink.done(placement, start, stop, seen.hexdigest())

    def _merge(
        self, placement: Placement, start: int, stop: int, cutoffs: Sequence[float] | None, lane: FastLane
    ) -> memoryview:
        target = placement.target
        if self.computation.method.linear or target.mean:
            data = lane.merged(target, start, stop, placement.dtype, self._factors(target))
        else:
            given: dict[str, Any] = {"cutoffs": cutoffs}
            if self.computation.method.random:
                draws = self._uniforms(target, start, stop, lane).numpy()
                given = {"draws": draws, "density": self.computation.parameters["density"]}
            weights = self.computation.row(target.key)
            data = lane.merged(target, start, stop, placement.dtype, weights, **given)
        return self._write(placement, start, stop, data, lane)

    def _update(
        self, target: Target, start: int, stop: int, base: Numbers, cutoffs: Sequence[float] | None, lane: Lane
    ) -> Numbers:
        if self.computation.method.linear or target.mean:
            return self._weighted(target, start, stop, base, lane)
        rows = lane.deltas(target, start, stop, base)
        extra: dict[str, Any] = {} if cutoffs is None else {"cutoffs": cutoffs}
        if self.computation.method.random:
            extra["uniforms"] = self._uniforms(target, start, stop, lane)
        return self._call(target, rows, extra, lane)

    def _weighted(self, target: Target, start: int, stop: int, base: Numbers, lane: Lane) -> Numbers:
        """Return ``sum_t c_t (theta_t - theta_0)``, in two buffers, with a pass for every product and every sum."""
        total, row = lane.spare(stop - start), lane.row(stop - start)
        for task, coefficient in enumerate(self._factors(target)):
            # Multiply and add in two steps: a fused operation may round a vector's end differently than its middle.
            update = lane.delta(target, task, start, stop, base, row if task else total)
            update *= coefficient
            if task:
                total += row
        return total

    def _factors(self, target: Target) -> list[float]:
        """Return `coefficients_of` a target; those of a method are computed once."""
        if target.mean:
            return coefficients_of(self.computation, target)
        if target.name not in self._coefficients:
            self._coefficients[target.name] = coefficients_of(self.computation, target)
        return self._coefficients[target.name]

    def _call(self, target: Target, rows: Numbers, extra: Mapping[str, Any], lane: Lane) -> Numbers:
        deltas = lane.tensor(rows)
        weights = deltas.new_tensor(self.computation.row(target.key)).reshape(-1, *(1,) * (rows.ndim - 1))
        return lane.numbers(
            self.computation.method.function(deltas, weights=weights, **extra, **self.computation.parameters)
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

    def _fuse_tensor(self, placement: Placement, lane: Lane) -> None:
        """Apply a method that needs the tensor at once; write the result by blocks."""
        target, shape = placement.target, placement.target.base.shape
        rows = lane.make(lane.tasks, target.entries)
        for a, b in blocks(target, 0, target.entries, self.block):
            rows[:, a:b] = lane.deltas(target, a, b, lane.base(target, a, b))
        extra: dict[str, Any] = {}
        if self.computation.method.random:
            extra["uniforms"] = self._uniforms(target, 0, target.entries, lane).reshape(-1, *shape)
        fused = self._call(target, rows.reshape(-1, *shape), extra, lane).reshape(-1)
        del rows, extra
        for start, stop in chunks(target.entries, chunk_size(target)):
            seen = hashlib.sha256()
            for a, b in blocks(target, start, stop, self.block):
                seen.update(self._finish(placement, a, b, lane.base(target, a, b), fused[a:b], lane))
            self.sink.done(placement, start, stop, seen.hexdigest())

    def _finish(
        self, placement: Placement, start: int, stop: int, base: Numbers, update: Numbers | None, lane: Lane
    ) -> memoryview:
        target = placement.target
        if target.start is not None:
            base += lane.numbers(target.start.rows(start // target.width, stop // target.width).reshape(-1))
        if update is not None:
            base += update
        return self._write(placement, start, stop, lane.rounded(base, placement.dtype), lane)

    def _write(self, placement: Placement, start: int, stop: int, data: memoryview | None, lane: Lane) -> memoryview:
        if data is None:
            raise lane.not_finite(placement.target, start, stop)
        self.sink.write(placement, start, data)
        return data


def coefficients_of(computation: Computation, target: Target) -> list[float]:
    """Return the factor of each model's difference for a linear method, or for the mean with ``target.base``."""
    if target.mean:
        return [1 / (1 + len(target.parts))] * len(target.parts)
    return computation.coefficients(target.key)


def chunk_size(target: Target) -> int:
    """Return the number of entries in a step: the chunk of the random numbers, or about as many in whole rows."""
    return CHUNK if not target.adapted else target.row_block * max(1, CHUNK // target.row_block)


def blocks(target: Target, start: int, stop: int, block: int) -> list[tuple[int, int]]:
    """Split ``[start, stop)`` into blocks; their size is fixed if factors are multiplied, as it affects rounding."""
    size = target.row_block if target.adapted else block
    return [(a, min(a + size, stop)) for a in range(start, stop, size)]
