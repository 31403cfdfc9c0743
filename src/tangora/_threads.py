"""Independent pieces of linear algebra, one thread each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

__all__ = ["in_threads"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def in_threads(function: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out]:
    """``[function(item) for item in items]``, as many at once as torch has threads, each of them with one.

    Small matrices gain more from being worked on side by side than from being split; and a result that is always
    computed by one thread has the same bits whatever their number.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)
