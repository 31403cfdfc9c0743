"""Independent pieces of linear algebra, one thread each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

__all__ = ["in_threads"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def in_threads(function: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out]:
    """``[function(item) for item in items]``, as many at once as torch has threads, each of them with one.

    Small matrices gain more from being worked on side by side than from being split; and a result that is always
    computed by one thread has the same bits whatever their number. NumPy's and SciPy's BLAS are held to one thread too,
    as far as they are loaded: each of ours would wake as many of theirs as there are cores.
    """
    threads = torch.get_num_threads()
    try:
        with (
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool,
        ):
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)
