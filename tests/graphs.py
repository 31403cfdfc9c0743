"""What autograd keeps of a computation in dual numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tangora.tangent._dual import has_tangent


def kept_tangents(value: Tensor) -> list[str]:
    """Names of the tensors with a tangent that autograd keeps for the backward pass; call it inside the block."""
    return [name for name, t in _saved(value) if has_tangent(t) or (t._base is not None and has_tangent(t._base))]


def _saved(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        for name in dir(node):
            kept = getattr(node, name) if name.startswith("_saved_") else None
            tensors = kept if isinstance(kept, tuple) else [kept]
            yield from ((f"{node.name()}.{name}", t) for t in tensors if isinstance(t, Tensor))


class GraphsOfTangents(TorchFunctionMode):
    """Collects the functions of torch after which a tangent has a graph; entered inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple) else (result,):
            tangent = forward_ad.unpack_dual(value).tangent if isinstance(value, Tensor) else None
            if tangent is not None and tangent.requires_grad:
                self.found.add(getattr(func, "__name__", str(func)))
        return result
