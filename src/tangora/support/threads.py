"""Run independent computations of linear algebra in parallel, one thread each."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

__all__ = ["alone", "in_threads"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_lock = threading.Lock()


def in_threads(function: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out]:
    """Return ``[function(item) for item in items]``, with as many calls at once as torch has threads.

    Every call uses one thread. Small matrices gain more from being worked on side by side than from being split, and a
    result that one thread computes has the same bits whatever the number of threads. NumPy's and SciPy's BLAS are
    limited to one thread too, if they are loaded: otherwise each of our threads would start one of theirs per core.
    """
    threads = torch.get_num_threads()
    try:
        with (
            _controller("scipy.linalg" in sys.modules).limit(limits=1, user_api="blas"),
            ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool,
        ):
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)


@contextmanager
def alone() -> Iterator[None]:
    """Do something with SciPy in one thread, if it may have been loaded only after `in_threads` was called.

    One thread of the program does so at a time: the limit is that of the library, not of the thread.
    """
    with _lock, _controller("scipy.linalg" in sys.modules).limit(limits=1, user_api="blas"):
        yield


@cache
def _controller(scipy: bool) -> ThreadpoolController:
    """Return what limits the BLAS that is loaded: NumPy's, which comes with torch, and SciPy's once there is one.

    To look for them takes as long as a small fusion, so it is done once for each state.
    """
    return ThreadpoolController()
