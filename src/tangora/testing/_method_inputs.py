"""Inputs for the contract suite of fusion methods, and comparisons of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tangora.errors import TangoraError
from tangora.methods import Method

__all__ = [
    "ROUNDING",
    "SHAPE",
    "TASKS",
    "WEIGHTS",
    "call",
    "chunks",
    "draws",
    "dtype_of",
    "is_equal",
    "one_update",
    "per_task",
    "refusal",
    "require_close",
    "require_equal",
    "stack",
    "statistics_of",
    "weights_of",
]

TASKS, SHAPE = 3, (24, 20)
# Bound on rounding in float64, relative to the largest entry of the result. LAPACK is backward stable: its result is
# exact for a matrix that is off by p · eps. p grows with the size and is under 1000 for these inputs. Methods magnify
# a relative error of their input at most tenfold here, so the bound is 1000 · 10 · 2e-16 and some room. In float32 it
# would be 1e-3, which hides errors.
ROUNDING = 1e-11
WEIGHTS = (0.5, 1.25, -0.25)


def stack(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return updates of three tasks, drawn from N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((TASKS, *shape), generator=generator, dtype=torch.float64).to(dtype)


def draws(shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Return uniform numbers in [0, 1) for three tasks."""
    return torch.rand((TASKS, *shape), generator=torch.Generator().manual_seed(7))


def per_task(*values: float, ndim: int = 2) -> Tensor:
    """Return a weight per task, broadcasting to updates of ``ndim`` dimensions."""
    return torch.tensor(values).reshape(-1, *[1] * ndim)


def weights_of(deltas: Tensor) -> Tensor:
    """Return three unequal weights, one of them negative, in the dtype that the updates are added up in."""
    dtype = torch.promote_types(deltas.dtype, torch.float32)
    return per_task(*WEIGHTS, ndim=deltas.ndim - 1).to(dtype)


def dtype_of(method: Method) -> torch.dtype:
    """Return the dtype in which results are compared: float32 bit for bit, or float64 up to rounding."""
    return torch.float32 if method.exact else torch.float64


def statistics_of(method: Method, deltas: Tensor) -> Tensor | None:
    """Return statistics computed from the updates, so that cutting, transposing or permuting both stays consistent."""
    wide = deltas.to(torch.promote_types(deltas.dtype, torch.float32))
    if method.statistics == "fisher":
        return wide.square() + 0.1
    if method.statistics == "gram" and deltas.ndim == 3:
        return wide.mT @ wide + torch.eye(deltas.shape[-1], dtype=wide.dtype)
    return None


def call(
    method: Method,
    deltas: Tensor,
    weights: Tensor,
    uniforms: Tensor | None = None,
    statistics: Tensor | None = None,
    **parameters: Any,
) -> Tensor:
    """Return the method's result for the stack, or for as many tasks as it takes."""
    count = method.tasks
    deltas, weights = deltas[:count], weights[:count]
    if method.random:
        numbers = draws(tuple(deltas.shape[1:])) if uniforms is None else uniforms
        parameters["uniforms"] = numbers[: len(deltas)]
    if method.statistics:
        parameters["statistics"] = statistics_of(method, deltas) if statistics is None else statistics[:count]
    result: Tensor = method.function(deltas, weights=weights, **parameters)
    return result


def one_update(method: Method) -> tuple[Tensor, Tensor]:
    """Return one task of weight 1, repeated if the method needs several."""
    count = method.tasks or 1
    delta = stack(dtype=dtype_of(method))[0]
    return delta.expand(count, *SHAPE).clone(), torch.ones(count, 1, 1, dtype=delta.dtype)


def chunks(sizes: Sequence[int], dim: int, *stacked: Tensor | None) -> Iterator[list[Tensor | None]]:
    """Yield pieces of stacked tensors, cut along a dimension."""
    at = 0
    for size in sizes:
        yield [None if tensor is None else tensor.narrow(dim, at, size) for tensor in stacked]
        at += size


def refusal(attempt: Callable[[], object]) -> str:
    """Return the message of the `TangoraError` that the call raises, or an empty text if it raises none."""
    try:
        attempt()
    except TangoraError as error:
        return str(error)
    return ""


def is_equal(method: Method, actual: Tensor, expected: Tensor) -> bool:
    """Return whether two results are equal: bit for bit, or up to rounding if the method is not ``exact``."""
    return torch.equal(actual, expected) if method.exact else _away(actual, expected) <= ROUNDING


def require_equal(method: Method, actual: Tensor, expected: Tensor, what: str) -> None:
    """Raise `AssertionError` unless `is_equal`."""
    assert is_equal(method, actual, expected), f"{what}: off by {_away(actual, expected):.1e} of the largest"


def require_close(actual: Tensor, expected: Tensor, what: str, bound: float = ROUNDING) -> None:
    """Raise `AssertionError` unless two results in float64 agree up to rounding."""
    assert _away(actual, expected) <= bound, f"{what}: off by {_away(actual, expected):.1e} of the largest"


def _away(actual: Tensor, expected: Tensor) -> float:
    largest = max(float(expected.double().abs().max()), 1e-30)
    return float((actual.double() - expected.double()).abs().max()) / largest
