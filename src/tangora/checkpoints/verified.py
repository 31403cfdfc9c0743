"""Whether a written checkpoint is its base and its adapters: read again by stock safetensors, computed anew in float64.

An adapter's update is ``s·B A`` of the factors in its own file, under peft's names and with its scaling; neither the
reader nor the stream that made the output takes part. What a file does not hold as plain factors (DoRA, experts,
biases, values saved whole, a common start, a fusion in memory) is taken as it was read.

    tensors that no adapter touches      the base's, bit for bit
    linear methods                       W + Σ cₜ sₜ Bₜ Aₜ, every entry up to what rounding can do, see `_slack`
    methods with cutoffs of the model    the method with those cutoffs, entries at a cutoff aside
    methods that see a tensor            the method, on tensors of up to 2¹⁸ entries, and on the smallest of all
    any other                            not computed, and said so

Methods may differ by 1 % of the update's norm, as a rounding may move an entry across a threshold; by up to 25 % where
one entry is that much and the method gives, of updates in float32, what was written. Of larger tensors, runs of rows
are drawn by their names. No more than one tensor's pages are mapped at a time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tangora.checkpoints.align import Target
from tangora.checkpoints.onto_base import Added, Stacked
from tangora.errors import FileError
from tangora.fusion.computation import Computation
from tangora.fusion.sources import Source
from tangora.fusion.uniforms import drawn
from tangora.storage.checkpoint import Checkpoint
from tangora.support.threads import in_threads

__all__ = ["Checked", "check_written"]

_ENTRIES = 2**18
_SMALLEST = 2**24  # entries of all adapters, of the smallest tensor
_RUNS = 16
_BLOCK = 2**22  # entries that are compared bit for bit at a time
_TOLERANCE, _COARSE = 1e-2, 0.25  # of methods with thresholds, in the update's norm
_FIX = "report it, with the adapters' configurations; --no-verify writes it all the same"

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Checked:
    """What was compared.

    Attributes:
        equal: tensors that no adapter touches.
        compared: tensors that were computed anew.
        sampled: of these, in some rows.
        read: of these, with an update that is no plain factors in a file.
        unknown: changed tensors that were not computed anew.
        update: what was added to the base, in words.
        linear: whether every entry was held to its rounding.
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

    def words(self) -> str:
        """One line for a person."""
        words = [f"{self.equal} tensors are the base's, bit for bit"]
        if self.compared:
            aside = [f"{self.sampled} in sampled rows"] if self.sampled else []
            aside += [f"{self.read} not from plain factors in a file"] if self.read else []
            within = "every entry up to its rounding" if self.linear else f"up to {_TOLERANCE:.0%} of the update"
            told = f" ({', '.join(aside)})" if aside else ""
            words.append(f"{self.compared} are the base and {self.update} in float64, {within}{told}")
        if self.unknown:
            words.append(f"{self.unknown} changed by {self.update} were not computed anew")
        return "; ".join(words)


def check_written(
    folder: Path,
    base: Checkpoint,
    targets: Sequence[Target],
    computation: Computation,
    sources: Sequence[Source],
    cutoffs: Sequence[float] | None,
) -> Checked:
    """Read a checkpoint again and compare it; see the module.

    Args:
        folder: what was written.
        base: the model that the adapters are for.
        targets, computation: what was to be done.
        sources: the adapters.
        cutoffs: those of the whole model, of a method that has them.

    Raises:
        FileError: a tensor is missing or another than it should be.
    """
    begun = time.perf_counter()
    written = _written(folder)
    if odd := sorted(written.keys() ^ {target.name for target in targets}):
        raise FileError("the files do not hold the tensors that they should", got=odd[0], where=folder, fix=_FIX)
    smallest = min((t for t in targets if t.adapted), key=lambda t: (t.entries, t.name), default=None)
    equal = compared = sampled = read = unknown = 0
    for target in targets:
        origin = base.find(target.name)
        assert origin is not None
        check = _Check(target, (written[target.name], target.name), (origin.path, origin.name), computation, sources)
        if not target.adapted:
            check.same()
            equal += 1
        elif (spans := _spans(target, computation, cutoffs, target is smallest)) is None:
            unknown += 1
        else:
            read += check.computed(spans, cutoffs)
            compared += 1
            sampled += sum(b - a for a, b in spans) < target.base.shape[0]
    update = f"{computation.method.name} of the adapters"
    if sources[0].folder is None:
        update = "the adapter fused in memory"
    seconds = time.perf_counter() - begun
    return Checked(equal, compared, sampled, read, unknown, update, computation.method.linear, seconds)


def _written(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _spans(target: Target, computation: Computation, cutoffs: Sequence[float] | None, smallest: bool) -> Spans | None:
    """The rows that are computed anew; None where the method cannot be."""
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
    """One tensor: where it was written, and where the base's is, as file and name."""

    target: Target
    written: tuple[Path, str]
    origin: tuple[Path, str]
    computation: Computation
    sources: Sequence[Source]

    def same(self) -> None:
        """Bit for bit the base's, or what its dtype makes of that."""
        shape, step = self.target.base.shape, max(1, _BLOCK // self.target.width)
        for start in range(0, shape[0] if shape else 1, step):
            ours, theirs = (_rows(*where, start, start + step) for where in (self.written, self.origin))
            wide = theirs if theirs.dtype == ours.dtype else theirs.to(torch.promote_types(ours.dtype, torch.float32))
            if ours.shape != theirs.shape or not torch.equal(_bits(ours), _bits(wide.to(ours.dtype))):
                raise FileError("no adapter touches it, and it is not the base's", where=self._where, fix=_FIX)

    def computed(self, spans: Spans, cutoffs: Sequence[float] | None) -> bool:
        """What float64 makes of these rows; whether an update was not read from factors in a file.

        Raises:
            FileError: it is something else.
        """
        out, base = (torch.cat([_rows(*w, a, b).reshape(-1) for a, b in spans]) for w in (self.written, self.origin))
        sharp = self.computation.method.linear or not self.target.by_method
        away, far, plain = self._away(out, base, spans, cutoffs)
        right = away <= (0.0 if sharp else _TOLERANCE)
        if not right and not sharp and away <= _COARSE:
            right = self._away(out, base, spans, cutoffs, narrow=True)[0] <= _TOLERANCE
        if not right:
            got = f"{far:.1e} of its norm away"
            raise FileError("it is not the base and its adapters", got=got, where=self._where, fix=_FIX)
        return not plain

    def _away(
        self, out: Tensor, base: Tensor, spans: Spans, cutoffs: Sequence[float] | None, narrow: bool = False
    ) -> tuple[float, float, bool]:
        """How far it is beyond rounding, in the update's norm; how far at all, in its own; whether files hold all."""
        update, size, aside, plain = self._update(spans, cutoffs, narrow)
        expected, slack = base.double() + update, self._slack(base.double().abs() + size)
        info = torch.finfo(out.dtype)
        rounding = (expected.abs() + slack) * (info.eps / 2) + info.smallest_normal * info.eps
        over = ((out.double() - expected).abs() - slack - rounding).clamp(min=0)
        far = (out.double() - expected).norm() / expected.norm()
        return float(over.masked_fill(aside, 0.0).norm() / update.norm().clamp(min=1e-300)), float(far), plain

    def _update(
        self, spans: Spans, cutoffs: Sequence[float] | None, narrow: bool
    ) -> tuple[Tensor, Tensor, Tensor, bool]:
        """What is added to the base, its terms' magnitudes, what is left aside, and whether files hold all of it."""
        target, computation, aside = self.target, self.computation, torch.zeros((), dtype=torch.bool)
        plain = target.start is None
        total = size = _nothing(target, spans)
        if target.start is not None:
            total, size = _read(target.start, spans), _read(target.start, spans, positive=True)
        if not target.by_method:
            return total, size, aside, plain
        found = self._updates(spans)
        if computation.method.linear:
            for c, (delta, bound, filed) in zip(computation.coefficients(target.key), found, strict=True):
                total, size, plain = total + c * delta, size + abs(c) * bound, plain and filed
            return total, size, aside, plain
        rows, magnitudes, filed_all = zip(*found, strict=True)
        deltas, bounds = torch.stack(rows), torch.stack(magnitudes)
        if cutoffs is not None:
            column = torch.tensor(cutoffs, dtype=torch.float64)[:, None]
            aside = ((deltas.abs() - column).abs() <= self._slack(bounds)).any(0)
        if narrow:
            near = self._narrow(spans)
            deltas = torch.where((near - deltas).abs() <= self._slack(bounds), near.double(), deltas).float()
        fused = in_threads(lambda rows: self._method(rows, cutoffs), [deltas])[0]
        return total + fused, size + bounds.sum(0), aside, plain and all(filed_all)

    def _slack(self, size: Tensor) -> Tensor:
        """What float32 may lose in products of r terms and sums over adapters, of magnitude ``size``."""
        ranks = [p.rank for p in (*self.target.parts, self.target.start) if isinstance(p, Added | Stacked)]
        return size * ((max(ranks, default=1) + len(self.target.parts) + 8) * 2.0**-23)

    @property
    def _where(self) -> str:
        return f"{self.target.name} of the written checkpoint"

    def _updates(self, spans: Spans) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Of every adapter, the update's rows, the sum of its products' magnitudes, and whether a file holds them."""
        for part, source in zip(self.target.parts, self.sources, strict=True):
            if part is None:
                nothing = _nothing(self.target, spans)
                yield nothing, nothing, True
            elif isinstance(part, Added) and (factors := source.factors(self.target.site)) is not None:
                left, right = (factors[1].T, factors[0].T) if part.transposed else factors
                yield _product(left, right, spans), _product(left.abs(), right.abs(), spans), True
            else:
                yield _read(part, spans), _read(part, spans, positive=True), False

    def _narrow(self, spans: Spans) -> Tensor:
        """Of every adapter, the update's rows with the roundings of the stream that wrote them, a block at a time."""
        target, step = self.target, self.target.row_block // self.target.width
        pieces = [(start, min(start + step, b)) for a, b in spans for start in range(a, b, step)]

        def rows(part: Any) -> Tensor:
            return _nothing(target, spans) if part is None else torch.cat([part.rows(*p).reshape(-1) for p in pieces])

        return torch.stack(in_threads(rows, target.parts)).float()

    def _method(self, deltas: Tensor, cutoffs: Sequence[float] | None) -> Tensor:
        computation, target = self.computation, self.target
        given: dict[str, Any] = {} if cutoffs is None else {"cutoffs": list(cutoffs)}
        shape = (len(deltas), -1) if cutoffs is not None else (len(deltas), *target.base.shape)
        if computation.method.random:
            uniforms = drawn(computation.seed, target.key, computation.fingerprints, target.base.shape)
            given["uniforms"] = uniforms.reshape(shape)
        stacked = deltas.reshape(shape)
        weights = stacked.new_tensor(computation.row(target.key)).reshape(-1, *(1,) * (stacked.ndim - 1))
        fused: Tensor = computation.method.function(stacked, weights=weights, **given, **computation.parameters)
        return fused.reshape(-1)


def _product(left: Tensor, right: Tensor, spans: Spans) -> Tensor:
    return torch.cat([(left[a:b] @ right).reshape(-1) for a, b in spans])


def _nothing(target: Target, spans: Spans) -> Tensor:
    return torch.zeros(sum(b - a for a, b in spans) * target.width, dtype=torch.float64)


def _rows(path: Path, name: str, start: int, stop: int) -> Tensor:
    """Rows of a tensor; the file is opened for them alone, so that nothing stays mapped."""
    with safe_open(path, framework="pt") as file:
        part = file.get_slice(name)
        rows: Tensor = part[start:stop] if part.get_shape() else file.get_tensor(name).reshape(1)
        return rows.clone()


def _read(part: Any, spans: Spans, positive: bool = False) -> Tensor:
    found = torch.cat([(part.positive() if positive else part).rows(a, b).double().reshape(-1) for a, b in spans])
    return found.abs() if positive else found


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
