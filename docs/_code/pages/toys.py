"""Two small tasks for the pictures of the methods, and the real method on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.methods import Method

__all__ = ["fused", "updates"]

SIDE = 24


def updates() -> Tensor:
    """Return the updates of two tasks, ``[2, 24, 24]``: each alone in one place, the same in one, opposed in one."""
    generator = torch.Generator().manual_seed(0)
    one = _spot(5, 5) + 0.8 * _spot(12, 18) + 0.7 * _spot(19, 11)
    two = _spot(19, 19, 2.5) + 0.8 * _spot(12, 18) - 0.5 * _spot(19, 11)
    noise = 0.05 * torch.randn(2, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return torch.stack([one, two]) + noise


def _spot(row: float, column: float, width: float = 3.0) -> Tensor:
    """A bump of height 1: an outer product, so of rank one."""
    places = torch.arange(SIDE, dtype=torch.float64)
    return torch.outer(*(torch.exp(-(((places - centre) / width) ** 2)) for centre in (row, column)))


def fused(method: Method) -> Tensor:
    """Return what a method makes of the two updates, with its default weight and parameters.

    Its statistics, if it needs any, come from a first task whose inputs are in the left half of the columns, and a
    second whose inputs are in the right half.
    """
    deltas = updates()
    more: dict[str, Tensor] = {}
    if method.random:
        more["uniforms"] = torch.rand(deltas.shape, generator=torch.Generator().manual_seed(1), dtype=deltas.dtype)
    if method.statistics is not None:
        more["statistics"] = _statistics(method.statistics)
    if method.granularity == "model":
        deltas, more = deltas.flatten(1), {name: value.flatten(1) for name, value in more.items()}
    weights = torch.full((2, *[1] * (deltas.ndim - 1)), method.default_weight, dtype=deltas.dtype)
    return method(deltas, weights=weights, **more).reshape(SIDE, SIDE)


def _statistics(kind: str) -> Tensor:
    left = torch.where(torch.arange(SIDE) < SIDE // 2, 1.0, 0.1).double()
    columns = torch.stack([left, left.flip(0)])
    if kind == "gram":
        return torch.diag_embed(columns)
    if kind == "fisher":
        return columns[:, None, :].expand(2, SIDE, SIDE)
    raise NotImplementedError(f"give the toy statistics of the kind {kind!r}, in {__file__}")
