"""The machine that a computation runs on: device, dtype, threads.

The owner of a computation (a run's context, a command, a call from Python) makes one `Machine` and hands it down:
``load_base(config, machine)`` puts the base there, and everything else reads ``base.machine``. Nothing else chooses
a device.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from tangora.errors import ArgumentError
from tangora.support.validation import did_you_mean

__all__ = ["Machine", "measured_threads"]

DTYPES = ("float32", "bfloat16", "float16")
_ROUNDS = 5
_CLEARLY = 0.9  # more threads have to be this much faster: they are taken from whatever else runs here


@dataclass(frozen=True)
class Machine:
    """The device, dtype and threads that something is computed with.

    Args:
        device: a torch device, such as ``cpu`` or ``cuda:0``.
        dtype: of forward passes: ``float32``, ``bfloat16`` or ``float16``. Losses and adapters are in float32.
        threads: of torch on the CPU; None leaves torch's setting alone.

    >>> Machine().torch_dtype
    torch.float32
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None

    @classmethod
    def resolve(cls, device: str = "auto", dtype: str = "float32", threads: int | str | None = "auto") -> Machine:
        """Return the machine that these settings mean here.

        Args:
            device: ``auto`` is the first accelerator, or ``cpu`` if there is none.
            dtype: as of `Machine`.
            threads: a number, ``auto`` for `measured_threads`, or None to leave torch's setting alone.

        Raises:
            ArgumentError: the device is not here, or cannot compute in the dtype.

        >>> Machine.resolve("cpu", threads=1)
        Machine(device='cpu', dtype='float32', threads=1)
        """
        if dtype not in DTYPES:
            fix = did_you_mean(str(dtype), DTYPES)
            raise ArgumentError("no dtype of forward passes", got=dtype, where="machine.dtype", fix=fix)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        count = measured_threads() if threads == "auto" else threads if threads is None else int(threads)
        machine = cls(device, dtype, count)
        try:
            torch.zeros(1, device=device, dtype=machine.torch_dtype)
        except (RuntimeError, AssertionError) as cause:  # torch raises either, by how it was built
            reason = str(cause).split("\n")[0]
            fix = "use device auto or cpu, or install a torch that is built for it"
            raise ArgumentError(
                f"the device cannot be used ({reason})", got=device, where="machine.device", fix=fix
            ) from cause
        return machine

    @property
    def torch_device(self) -> torch.device:
        """The device as torch's value."""
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's value."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def exact(self) -> bool:
        """Whether forward passes are in float32."""
        return self.dtype == "float32"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which operations compute in the dtype; weights, and what is trained, stay as they are.

        Updates are so added into float32 weights and only rounded together with them, in the product: small updates
        survive, which they would not in weights of half precision. Beside those, they are computed apart.
        """
        if self.exact:
            return nullcontext()
        return torch.autocast(self.torch_device.type, self.torch_dtype)

    def use_threads(self) -> None:
        """Set torch's number of threads for this process."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)


@cache
def measured_threads() -> int:
    """Measure with how many threads a small training step is fastest on this machine, now.

    All cores are not always the fastest: threads that share a core with other work wait for each other at the end of
    every operation, and a step can take ten times as long. So a step of a small layer is timed with 1, 2, 4, ...
    threads in turn, and more threads are chosen only if they are clearly faster.
    ``OMP_NUM_THREADS``, if set, is respected instead.
    """
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(given) > 0:
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [2**i for i in range(cores.bit_length()) if 2**i <= cores]
    return fastest(counts, _step())


def fastest(counts: list[int], step: Callable[[], object]) -> int:
    """Return the smallest of ``counts`` threads with which ``step`` takes about the least time."""
    before = torch.get_num_threads()
    times: dict[int, list[float]] = {count: [] for count in counts}
    try:
        for _ in range(_ROUNDS):  # in turn, so that a burst of other work meets every count
            for count in counts:
                torch.set_num_threads(count)
                began = time.perf_counter()
                step()
                times[count].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    best = counts[0]
    for count in counts[1:]:
        if statistics.median(times[count]) < _CLEARLY * statistics.median(times[best]):
            best = count
    return best


def _step() -> Callable[[], object]:
    """Return a training step of the shape that adapters have: a short batch through a wide layer, and back."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(128, 384, generator=generator)
    layer, back = (torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((384, 1536), (1536, 384)))

    def step() -> object:
        hidden = torch.nn.functional.gelu(inputs @ layer)
        return torch.autograd.grad((hidden @ back).square().mean(), (layer, back))

    step()  # the first call sets up kernels
    return step
