"""The dense updates of one tensor at a time, stacked for a method.

    factors of every task ──▶ each product is written straight into its place of the stack
    any other updates     ──▶ one dense tensor after the other, copied

A stack of eight updates of 4096 x 1024 takes 134 MB, and the system takes longer to hand out new pages for it than the
products take. So a thread reuses the `Memory` of its last stack.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.updates.task_vector import Update

__all__ = ["Memory", "stacked"]

# Numbers that a thread may keep the memory of, and the bytes to which a new tensor is aligned: a product of another
# alignment may be rounded otherwise, and then the updates of equal adapters would differ.
_KEPT, _ALIGNED = 2**28, 64


class Memory:
    """Memory on the CPU for one stack of a thread, which the thread's next stack overwrites."""

    def __init__(self) -> None:
        self._of = threading.local()

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor with arbitrary numbers; it is valid until the thread asks for the next."""
        size = math.prod(shape)
        if size > _KEPT:
            return torch.empty(shape, dtype=dtype)
        if (held := self._held) is None or held.dtype != dtype or len(held) < size:
            held = self._of.held = None  # freed before the larger one is taken
            held = self._of.held = torch.empty(size, dtype=dtype)
        return held[:size].view(*shape)

    def apart(self, result: Tensor) -> Tensor:
        """Return a tensor that the next stack does not overwrite: a copy if a method returned a part of its stack."""
        held = self._held
        if held is None or result.layout != torch.strided or result.device.type != "cpu":
            return result
        # Addresses, not storages: a view that went through NumPy has a storage of its own.
        return result.clone() if 0 <= result.data_ptr() - held.data_ptr() < held.nbytes else result

    @property
    def _held(self) -> Tensor | None:
        held: Tensor | None = getattr(self._of, "held", None)
        return held


def stacked(updates: Sequence[Update | None], memory: Memory | None = None) -> Float[Tensor, " tasks *param"]:
    """Return the dense updates of one tensor; None stands for zero.

    Args:
        updates: one per task, of one shape, not all None.
        memory: the stack is in it if all updates have factors on the CPU; otherwise it is a new tensor.
    """
    present = {i: update for i, update in enumerate(updates) if update is not None}
    factors = {i: f for i, update in present.items() if (f := update.factors()) is not None}
    shape = next(iter(present.values())).shape
    if len(factors) < len(present):
        return _copied(len(updates), shape, present)
    read = {i: (f.b, f.a, f.scaling) for i, f in factors.items()}  # once: taking a factor may read a file
    like = next(iter(read.values()))[0]
    if any(f.requires_grad or f.device != like.device for b, a, _ in read.values() for f in (b, a)):
        return _copied(len(updates), shape, present)
    dtype = reduce(torch.promote_types, (b.dtype for b, _, _ in read.values()))
    whole = (len(updates), *shape)
    if memory is not None and like.device.type == "cpu":
        stack = memory.tensor(whole, dtype)
    else:
        stack = torch.empty(whole, dtype=dtype, device=like.device)
    aligned = stack[0].nbytes % _ALIGNED == 0
    for i, place in enumerate(stack):
        if i not in read:
            place.zero_()
            continue
        b, a, scaling = read[i]
        if aligned and b.dtype == dtype and (b.shape[0], a.shape[1]) == place.shape:
            torch.mm(b, a, out=place)
        else:
            place.copy_(b @ a)
        if scaling != 1.0:
            place.mul_(scaling)
    return stack


def _copied(count: int, shape: Sequence[int], present: dict[int, Update]) -> Tensor:
    stack: Tensor | None = None
    for i, update in present.items():
        dense = update.dense()
        if stack is None:
            stack = dense.new_zeros(count, *shape)
        stack = stack.to(torch.promote_types(stack.dtype, dense.dtype))
        stack[i] = dense
    assert stack is not None
    return stack
