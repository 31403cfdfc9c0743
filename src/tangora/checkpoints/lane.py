"""One thread's lane: buffers made once, blocks read into them, differences from the base, results rounded and written.

Reading is ``preadv`` into a buffer, not a map of the file: nothing of the input stays resident. On a GPU the buffers
are pinned, and the lane has a stream of its own, so that one thread copies while another computes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.checkpoints.align import Target
from tangora.checkpoints.header import FLOATS, ITEMSIZE, Stored
from tangora.errors import AdapterError, FusionError

__all__ = ["Files", "Lane", "torch_dtype"]


def _memory(buffer: Tensor) -> memoryview:
    array: Any = buffer.numpy()
    return memoryview(array)


def torch_dtype(dtype: str) -> torch.dtype:
    """Of a floating-point dtype's name in safetensors."""
    found: torch.dtype = getattr(torch, FLOATS[dtype])
    return found


class Files:
    """Input files that are opened once, for all threads; ``pread`` has no position to share."""

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}
        self._lock = Lock()

    def read(self, stored: Stored, start: int, into: memoryview) -> None:
        """Fill ``into`` with the tensor's bytes from ``start``.

        Raises:
            AdapterError: the file ends early: it was changed meanwhile.
        """
        with self._lock:
            handle = self._handles.get(stored.path)
            if handle is None:
                handle = self._handles[stored.path] = os.open(stored.path, os.O_RDONLY)
        at = 0
        while at < len(into):
            read = os.preadv(handle, [into[at:]], stored.start + start + at)
            if read <= 0:
                raise AdapterError("the file ends early", where=stored.path, fix="do not change it while it is fused")
            at += read

    def expect(self, stored: Stored, start: int, size: int) -> None:
        """Tell the system that these bytes are needed soon."""
        if hasattr(os, "posix_fadvise"):
            handle = self._handles.get(stored.path)
            if handle is not None:
                os.posix_fadvise(handle, stored.start + start, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close all of them."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


class Lane:
    """Buffers for blocks of ``block`` numbers of ``tasks`` models and their base.

    Args:
        files: the open inputs.
        tasks: how many models.
        block: numbers in the largest block.
        itemsize: bytes of the widest number read or written.
        dtype: what is computed with: float32, or float64 where the base is.
        device: ``cpu`` or a CUDA device.
    """

    def __init__(
        self, files: Files, tasks: int, block: int, itemsize: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.files, self.tasks, self.block, self.dtype, self.device = files, tasks, block, dtype, device
        cuda = device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(device) if cuda else None
        # one buffer per source on a GPU, where a copy may still be under way when the next is read
        self._raw = [torch.empty(block * itemsize, dtype=torch.uint8, pin_memory=cuda) for _ in range(1 + tasks * cuda)]
        self._views = [_memory(raw) for raw in self._raw]
        self._out = torch.empty(block * itemsize, dtype=torch.uint8, pin_memory=cuda)
        self._written = _memory(self._out)
        self._base = torch.empty(block, dtype=dtype, device=device)
        self._sum = torch.empty(block, dtype=dtype, device=device)
        self._one = torch.empty(block, dtype=dtype, device=device)
        self._deltas = torch.empty(0, dtype=dtype, device=device)
        self.drawn: dict[tuple[Any, ...], Tensor] = {}  # the uniform numbers of the chunk at hand

    def on_stream(self, work: Callable[[], Any]) -> Any:
        """``work()``, on the lane's own stream where there is one."""
        if self._stream is None:
            return work()
        with torch.cuda.stream(self._stream):
            return work()

    def base(self, target: Target, start: int, stop: int) -> Float[Tensor, "entries"]:
        """The base's numbers ``[start, stop)``."""
        return self._numbers(target.base, start, stop, self._base[: stop - start], 0)

    def delta(
        self, target: Target, task: int, start: int, stop: int, base: Tensor, into: Tensor
    ) -> Float[Tensor, "entries"]:
        """What model ``task`` changed of these numbers: its tensor minus the base, or its update."""
        part = target.parts[task]
        if part is None:
            return into.zero_()
        if isinstance(part, Stored):
            return self._numbers(part, start, stop, into, 1 + task).sub_(base)
        return into.copy_(part.rows(start // target.width, stop // target.width).reshape(-1))

    def deltas(self, target: Target, start: int, stop: int, base: Tensor) -> Float[Tensor, "tasks entries"]:
        """Every model's, stacked, and finite.

        Raises:
            FusionError: a model or the base has NaN or infinity here.
        """
        rows = self.differences(target, start, stop, base)
        if not math.isfinite(float(rows.sum())) and not bool(torch.isfinite(rows).all()):
            raise self.not_finite(target, start, stop)
        return rows

    def differences(self, target: Target, start: int, stop: int, base: Tensor) -> Float[Tensor, "tasks entries"]:
        """The same, unchecked: for a pass that is followed by another."""
        rows = self.rows()[:, : stop - start]
        for task in range(self.tasks):
            self.delta(target, task, start, stop, base, rows[task])
        return rows

    def sampled(self, target: Target, spans: Sequence[tuple[int, int]]) -> Float[Tensor, "tasks entries"]:
        """Every model's differences at these places, side by side; no more of them than fit into a block."""
        base = self._gathered(target.base, spans, self._base)
        rows = self.rows()[:, : len(base)]
        for row, part in zip(rows, target.parts, strict=True):
            if part is None:
                row.zero_()
            elif isinstance(part, Stored):
                self._gathered(part, spans, row).sub_(base)
            else:
                at = 0
                for a, b in spans:
                    row[at : at + b - a].copy_(part.rows(a // target.width, b // target.width).reshape(-1))
                    at += b - a
        return rows

    def rows(self) -> Float[Tensor, "tasks block"]:
        """A row per task to work in, made when first needed."""
        if self._deltas.numel() == 0:
            self._deltas = torch.empty(self.tasks, self.block, dtype=self.dtype, device=self.device)
        return self._deltas

    def row(self, count: int) -> Float[Tensor, "entries"]:
        """Numbers of one task to work in."""
        return self._one[:count]

    def spare(self, count: int) -> Float[Tensor, "entries"]:
        """Numbers to sum up in."""
        return self._sum[:count]

    def rounded(self, result: Float[Tensor, "entries"], dtype: str) -> memoryview | None:
        """The bytes of the result in ``dtype`` (nearest, ties to even); None where they are not finite."""
        kind = torch_dtype(dtype)
        low, high = torch.aminmax(result)
        limit = torch.finfo(kind).max
        if not (-limit <= float(low) and float(high) <= limit):  # a NaN compares as false
            return None
        self._out.view(kind)[: len(result)].copy_(result)  # to the host where it is not there; waits for it
        return self._written[: len(result) * ITEMSIZE[dtype]]

    def copied(self, target: Target, start: int, stop: int) -> memoryview:
        """The base's bytes of numbers that cannot be averaged.

        Raises:
            FusionError: a model has others.
        """
        size = ITEMSIZE[target.base.dtype]
        ours, theirs = (view[: (stop - start) * size] for view in (self._written, self._views[0]))
        self.files.read(target.base, start * size, ours)
        for part in target.parts:
            if isinstance(part, Stored):
                self.files.read(part, start * size, theirs)
                if ours != theirs:
                    fix = "integers cannot be averaged and must be equal in every checkpoint"
                    raise FusionError("integers differ from the base's", where=f"{target.name} in {part.path}", fix=fix)
        return ours

    def expect(self, target: Target, start: int, stop: int) -> None:
        """Have the system read these numbers ahead."""
        for part in (target.base, *target.parts):
            if isinstance(part, Stored):
                size = ITEMSIZE[part.dtype]
                self.files.expect(part, start * size, (stop - start) * size)

    def not_finite(self, target: Target, start: int, stop: int) -> FusionError:
        """The error that says which input is NaN or infinite; else that the result is too large."""
        count = stop - start
        for part in (target.base, *target.parts):
            if isinstance(part, Stored):
                numbers = self._numbers(part, start, stop, torch.empty(count, dtype=self.dtype, device=self.device), 0)
                if not bool(torch.isfinite(numbers).all()):
                    bad = "NaN" if bool(numbers.isnan().any()) else "infinity"
                    fix = "the training diverged or the file is damaged: train or copy it again"
                    return FusionError(f"a weight is {bad}", where=f"{target.name} in {part.path}", fix=fix)
        fix = "use smaller weights, or a wider --dtype"
        return FusionError("the result is too large for its dtype", where=target.name, fix=fix)

    def _gathered(self, stored: Stored, spans: Sequence[tuple[int, int]], into: Tensor) -> Tensor:
        size, at = ITEMSIZE[stored.dtype], 0
        for start, stop in spans:
            self.files.read(stored, start * size, self._views[0][at * size : (at + stop - start) * size])
            at += stop - start
        return into[:at].copy_(self._raw[0].view(torch_dtype(stored.dtype))[:at])

    def _numbers(self, stored: Stored, start: int, stop: int, into: Tensor, source: int) -> Tensor:
        size, count = ITEMSIZE[stored.dtype], stop - start
        raw = source % len(self._raw)
        self.files.read(stored, start * size, self._views[raw][: count * size])
        return into.copy_(self._raw[raw].view(torch_dtype(stored.dtype))[:count], non_blocking=True)
