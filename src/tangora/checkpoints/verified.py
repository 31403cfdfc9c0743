"""Verify a written checkpoint against its base and adapters: read it with stock safetensors, compute it in float64.

An adapter's update is ``s·B A`` of the factors in its own file, by peft's names and scaling, independent of the code
that read it and made the output. An update that is not stored as plain factors (DoRA, experts, biases, values saved
whole, a common start, a fusion in memory) is used as it was read.

    tensors that no adapter touches      equal to the base's, bit for bit
    linear methods                       W + Σ cₜ sₜ Bₜ Aₜ, every entry within its rounding error, see `_slack`
    methods with cutoffs of the model    the method with these cutoffs, ignoring entries close to a cutoff
    methods on single tensors            the method, on tensors of up to 2¹⁸ entries, and on the smallest of all
    any other                            not computed; the summary says so

Methods with thresholds may differ by 1 % of the update's norm, since rounding may move an entry across a threshold. A
single entry may be up to 25 %: that is accepted if the method, applied to the updates in float32, gives the output.
In larger tensors, runs of rows are drawn, seeded by the tensor's name. At most one tensor's pages are mapped at a time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tangora.checkpoints.added_rows import check_added_rows
from tangora.checkpoints.align import Target
from tangora.checkpoints.onto_base import OrientedUpdate, StackedExperts
from tangora.checkpoints.written import bits_of, rows_of, tensors_in
from tangora.errors import FileError
from tangora.fusion.computation import Computation
from tangora.fusion.sources import SourceAdapter
from tangora.fusion.uniforms import drawn
from tangora.storage.checkpoint import Checkpoint
from tangora.support.threads import in_threads

__all__ = ["CheckpointVerification", "check_written"]

_ENTRIES = 2**18
_SMALLEST = 2**24  # entries of all adapters, of the smallest tensor
_RUNS = 16
_BLOCK = 2**22  # entries that are compared bit for bit at a time
_TOLERANCE, _COARSE = 1e-2, 0.25  # of methods with thresholds, in the update's norm
_FIX = "report it, with the adapters' configurations; --no-verify writes it all the same"

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class CheckpointVerification:
    """What was compared.

    Attributes:
        equal: the number of tensors that no adapter touches.
        compared: the number of tensors that were computed anew.
        sampled: the number of these that were compared in some rows only.
        read: the number of these with an update that is not stored as plain factors.
        unknown: the number of changed tensors that were not computed anew.
        update: a description of what was added to the base.
        linear: whether every entry was compared within its rounding error.
        seconds: how long it took.
    """

    equal: int
    compared: int
    sampled: int
    read: int
    unknown: int
    update: str
    linear: bool
    seconds: float

    def summary(self) -> str:
        """Return one line for a person."""
        parts = [f"{self.equal} tensors equal the base's, bit for bit"]
        if self.compared:
            remarks = [f"{self.sampled} in sampled rows"] if self.sampled else []
            remarks += [f"{self.read} not from plain factors in a file"] if self.read else []
            within = "every entry up to its rounding" if self.linear else f"up to {_TOLERANCE:.0%} of the update"
            suffix = f" ({', '.join(remarks)})" if remarks else ""
            parts.append(f"{self.compared} are the base and {self.update} in float64, {within}{suffix}")
        if self.unknown:
            parts.append(f"{self.unknown} changed by {self.update} were not recomputed")
        return "; ".join(parts)


def check_written(
    folder: Path,
    base: Checkpoint,
    targets: Sequence[Target],
    computation: Computation,
    sources: Sequence[SourceAdapter],
    cutoffs: Sequence[float] | None,
) -> CheckpointVerification:
    """Read a checkpoint again and compare it; see the module.

    Args:
        folder: the written checkpoint.
        base: the adapters' base model.
        targets, computation: what was to be computed.
        sources: the adapters.
        cutoffs: the whole model's cutoffs, if the method has them.

    Raises:
        FileError: a tensor is missing, or not what it should be.
    """
    begun = time.perf_counter()
    written = tensors_in(folder)
    if odd := sorted(written.keys() ^ {target.name for target in targets}):
        raise FileError("the files do not hold the tensors that they should", got=odd[0], where=folder, fix=_FIX)
    smallest = min((t for t in targets if t.adapted), key=lambda t: (t.entries, t.name), default=None)
    equal = compared = sampled = read = unknown = 0
    for target in targets:
        origin = base.find(target.name) or target.base  # a head that only the adapters have
        check = _Check(target, (written[target.name], target.name), (origin.path, origin.name), computation, sources)
        if target.tails:
            check_added_rows(target, rows_of(*check.written, target.base.shape[0], target.shape[0]))
        if not target.adapted:
            check.same()
            equal += 1
        elif (spans := _spans(target, computation, cutoffs, target is smallest)) is None:
            unknown += 1
        else:
            read += check.computed(spans, cutoffs)
            compared += 1
            sampled += sum(b - a for a, b in spans) < target.base.shape[0]
    in_memory = sources[0].folder is None
    update = "the adapter fused in memory" if in_memory else f"{computation.method.name} of the adapters"
    seconds = time.perf_counter() - begun
    return CheckpointVerification(equal, compared, sampled, read, unknown, update, computation.method.linear, seconds)


def _spans(target: Target, computation: Computation, cutoffs: Sequence[float] | None, smallest: bool) -> Spans | None:
    """Return the rows to compute anew; None if the method cannot be applied to parts of the model."""
    rows, method = target.base.shape[0], computation.method
    if target.entries <= _ENTRIES and (method.granularity != "model" or cutoffs is not None or not target.by_method):
        return [(0, rows)]
    if method.linear or not target.by_method or (cutoffs is not None and not method.random):
        length = max(1, _ENTRIES // _RUNS // target.width)
        draw = random.Random(target.name)
        starts = sorted(draw.sample(range(0, rows, length), min(_RUNS, len(range(0, rows, length)))))
        return [(start, min(start + length, rows)) for start in starts]
    small = smallest and target.entries * len(target.parts) <= _SMALLEST
    return [(0, rows)] if small and method.granularity != "model" else None


@dataclass(frozen=True)
class _Check:
    """The check of one tensor: file and name of what was written, and of the base's."""

    target: Target
    written: tuple[Path, str]
    origin: tuple[Path, str]
    computation: Computation
    sources: Sequence[SourceAdapter]

    def same(self) -> None:
        """Compare the tensor with the base's, rounded to the output's dtype, bit for bit."""
        shape, step = self.target.base.shape, max(1, _BLOCK // self.target.width)
        for start in range(0, shape[0] if shape else 1, step):
            stop = min(start + step, shape[0]) if shape else 1
            ours, theirs = (rows_of(*where, start, stop) for where in (self.written, self.origin))
            wide = theirs if theirs.dtype == ours.dtype else theirs.to(torch.promote_types(ours.dtype, torch.float32))
            if ours.shape != theirs.shape or not torch.equal(bits_of(ours), bits_of(wide.to(ours.dtype))):
                raise FileError("it differs from the base's, but no adapter touches it", where=self._where, fix=_FIX)

    def computed(self, spans: Spans, cutoffs: Sequence[float] | None) -> bool:
        """Compute these rows in float64 and compare; return whether an update was not read from factors in a file.

        Raises:
            FileError: the rows differ.
        """
        out, base = (torch.cat([rows_of(*w, a, b).reshape(-1) for a, b in spans]) for w in (self.written, self.origin))
        linear = self.computation.method.linear or not self.target.by_method
        excess, difference, plain = self._differences(out, base, spans, cutoffs)
        equal = excess <= (0.0 if linear else _TOLERANCE)
        if not equal and not linear and excess <= _COARSE:
            equal = self._differences(out, base, spans, cutoffs, narrow=True)[0] <= _TOLERANCE
        if not equal:
            what, got = "it is not the base plus the fused adapters", f"a difference of {difference:.1e} of its norm"
            raise FileError(what, got=got, where=self._where, fix=_FIX)
        return not plain

    def _differences(
        self, out: Tensor, base: Tensor, spans: Spans, cutoffs: Sequence[float] | None, narrow: bool = False
    ) -> tuple[float, float, bool]:
        """Return the difference beyond rounding, by the update's norm; the relative one; whether all is plain."""
        update, size, ignored, plain = self._update(spans, cutoffs, narrow)
        expected, slack = base.double() + update, self._slack(base.double().abs() + size)
        info = torch.finfo(out.dtype)
        rounding = (expected.abs() + slack) * (info.eps / 2) + info.smallest_normal * info.eps
        over = ((out.double() - expected).abs() - slack - rounding).clamp(min=0)
        excess = over.masked_fill(ignored, 0.0).norm() / update.norm().clamp(min=1e-300)
        return float(excess), float((out.double() - expected).norm() / expected.norm()), plain

    def _update(
        self, spans: Spans, cutoffs: Sequence[float] | None, narrow: bool
    ) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Return what is added to the base, its terms' magnitudes, the entries to ignore, and whether all is plain."""
        target, computation, ignored = self.target, self.computation, torch.zeros((), dtype=torch.bool)
        plain = target.start is None
        total = size = _zeros(target, spans)
        if target.start is not None:
            total, size = _read(target.start, spans), _read(target.start, spans, positive=True)
        if not target.by_method:
            return total, size, ignored, plain
        updates = self._updates(spans)
        if computation.method.linear:
            for c, (delta, bound, from_file) in zip(computation.coefficients(target.key), updates, strict=True):
                total, size, plain = total + c * delta, size + abs(c) * bound, plain and from_file
            return total, size, ignored, plain
        rows, magnitudes, from_files = zip(*updates, strict=True)
        deltas, bounds = torch.stack(rows), torch.stack(magnitudes)
        if cutoffs is not None:
            column = torch.tensor(cutoffs, dtype=torch.float64)[:, None]
            ignored = ((deltas.abs() - column).abs() <= self._slack(bounds)).any(0)
        if narrow:
            streamed = self._streamed(spans)
            deltas = torch.where((streamed - deltas).abs() <= self._slack(bounds), streamed.double(), deltas).float()
        fused = in_threads(lambda rows: self._method(rows, cutoffs), [deltas])[0]
        return total + fused, size + bounds.sum(0), ignored, plain and all(from_files)

    def _slack(self, size: Tensor) -> Tensor:
        """Bound the rounding error in float32 of products of r terms and sums over adapters, of magnitude ``size``."""
        ranks = [
            p.rank for p in (*self.target.parts, self.target.start) if isinstance(p, OrientedUpdate | StackedExperts)
        ]
        return size * ((max(ranks, default=1) + len(self.target.parts) + 8) * 2.0**-23)

    @property
    def _where(self) -> str:
        return f"{self.target.name} of the written checkpoint"

    def _updates(self, spans: Spans) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yield every adapter's rows, the sums of their products' magnitudes, and whether its file has the factors."""
        for part, source in zip(self.target.parts, self.sources, strict=True):
            if part is None:
                zeros = _zeros(self.target, spans)
                yield zeros, zeros, True
            elif isinstance(part, OrientedUpdate) and (factors := source.factors(self.target.site)) is not None:
                left, right = (factors[1].T, factors[0].T) if part.transposed else factors
                yield _product(left, right, spans), _product(left.abs(), right.abs(), spans), True
            else:
                yield _read(part, spans), _read(part, spans, positive=True), False

    def _streamed(self, spans: Spans) -> Tensor:
        """Return every adapter's rows with the rounding of the stream that wrote them, block by block."""
        target, step = self.target, self.target.row_block // self.target.width
        blocks = [(start, min(start + step, b)) for a, b in spans for start in range(a, b, step)]

        def rows(part: Any) -> Tensor:
            return _zeros(target, spans) if part is None else torch.cat([part.rows(*b).reshape(-1) for b in blocks])

        return torch.stack(in_threads(rows, target.parts)).float()

    def _method(self, deltas: Tensor, cutoffs: Sequence[float] | None) -> Tensor:
        computation, target = self.computation, self.target
        extra: dict[str, Any] = {} if cutoffs is None else {"cutoffs": list(cutoffs)}
        shape = (len(deltas), -1) if cutoffs is not None else (len(deltas), *target.base.shape)
        if computation.method.random:
            uniforms = drawn(computation.seed, target.key, computation.fingerprints, target.base.shape)
            extra["uniforms"] = uniforms.reshape(shape)
        stacked = deltas.reshape(shape)
        weights = stacked.new_tensor(computation.row(target.key)).reshape(-1, *(1,) * (stacked.ndim - 1))
        fused: Tensor = computation.method.function(stacked, weights=weights, **extra, **computation.parameters)
        return fused.reshape(-1)


def _product(left: Tensor, right: Tensor, spans: Spans) -> Tensor:
    return torch.cat([(left[a:b] @ right).reshape(-1) for a, b in spans])


def _zeros(target: Target, spans: Spans) -> Tensor:
    return torch.zeros(sum(b - a for a, b in spans) * target.width, dtype=torch.float64)


def _read(part: Any, spans: Spans, positive: bool = False) -> Tensor:
    rows = torch.cat([(part.positive() if positive else part).rows(a, b).double().reshape(-1) for a, b in spans])
    return rows.abs() if positive else rows
