"""A lane through a GPU: pinned buffers, copies and arithmetic on the thread's own stream.

One thread's copies run while another's kernels do. It works on any device of torch; tests run it on the CPU, without
pinned memory and streams.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tangora.checkpoints.lane import Lane
from tangora.errors import ArgumentError
from tangora.storage.files import InputFiles
from tangora.storage.floats import Array
from tangora.storage.header import FLOATS, ITEMSIZE

__all__ = ["GpuLane", "check_device"]


class GpuLane(Lane):
    """A `Lane` that computes with tensors on ``device``."""

    def __init__(self, files: InputFiles, tasks: int, block: int, itemsize: int, wide: bool, device: str) -> None:
        self.device, self._pinned = device, torch.device(device).type == "cuda"
        self._models = tasks
        if self._pinned:
            torch.cuda.set_stream(torch.cuda.Stream(device))  # of this thread
        super().__init__(files, tasks, block, itemsize, wide)

    @property
    def _sources(self) -> int:
        """One buffer per file: a copy may still be under way when the next file is read."""
        return 1 + self._models

    def _bytes(self, count: int) -> Array:
        array: Array = torch.empty(count, dtype=torch.uint8, pin_memory=self._pinned).numpy()
        return array

    def make(self, *shape: int) -> Tensor:
        """Return an uninitialized tensor."""
        return torch.empty(shape, dtype=torch.float64 if self.wide else torch.float32, device=self.device)

    def numbers(self, tensor: Tensor) -> Tensor:
        """Return a tensor on this device."""
        return tensor.to(self.device)

    def tensor(self, numbers: Any) -> Tensor:
        """Return the tensor itself."""
        tensor: Tensor = numbers
        return tensor

    def host(self, numbers: Any) -> Array:
        """Return a copy in the host's memory."""
        array: Array = numbers.cpu().numpy()
        return array

    def _load(self, raw: Array, dtype: str, into: Tensor) -> Tensor:
        kind: torch.dtype = getattr(torch, FLOATS[dtype])
        # copied in the stored dtype, and widened on the device
        return into.copy_(torch.from_numpy(raw).view(kind).to(self.device, non_blocking=True))

    def _store(self, result: Tensor, dtype: str) -> Array:
        out = self._out[: len(result) * ITEMSIZE[dtype]]
        torch.from_numpy(out).view(getattr(torch, FLOATS[dtype])).copy_(result.to(getattr(torch, FLOATS[dtype])))
        return out  # a copy to the host waits until every earlier copy on the stream is done

    def _extremes(self, numbers: Tensor) -> tuple[float, float]:
        low, high = torch.aminmax(numbers)
        return float(low), float(high)


def check_device(name: str) -> None:
    """Raise unless this is a CUDA device, and one is available.

    Raises:
        ArgumentError: the name is not that of a CUDA device, or there is none.
    """
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind != "cuda":
        raise ArgumentError("no such device", got=name, where="fuse.device", fix="cpu or cuda")
    if not torch.cuda.is_available():
        raise ArgumentError("there is no CUDA device here", got=name, where="fuse.device", fix="leave it out")
