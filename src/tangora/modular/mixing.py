"""Products with a matrix of its own for every sample: the sum of experts, weighed for the sample.

A sample's matrix costs one multiplication for each expert and entry, and then serves all of its tokens; products with
the experts one by one cost that for each token. A few rows of the samples' matrices exist at a time, in one piece of
memory that stays in the processor's cache, and the backward pass makes them again.

    experts, some rows at a time ──▶ Σₜ wₜ ΔWₜ of each sample ──▶ those entries of its outputs
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Stack", "mixed", "rows_of_a_piece"]

_BYTES = {"cpu": 2 * 2**20}  # about the second cache of a core
_BYTES_ELSEWHERE = 2**28  # few large products


class Stack(Protocol):
    """Matrices of one shape, ``[experts, out, in]``, that can be had some rows at a time.

    Attributes:
        shape: ``(out, in)``.
    """

    shape: tuple[int, ...]

    def pieces(self, rows: int) -> Iterator[tuple[slice, Float[Tensor, "experts entries"]]]:
        """Yield so many rows of all matrices, as ``[experts, rows * in]``, and which ones they are.

        A piece may be changed when the next one is taken.
        """
        ...


def mixed(
    x: Float[Tensor, "batch tokens in"], weights: Float[Tensor, "batch experts"], stack: Stack
) -> Float[Tensor, "batch tokens out"]:
    """Return ``(Σₜ weights[b, t] ΔWₜ) x[b, l]``, with gradients by ``x`` and ``weights``; matrices get none.

    Choose it if a decision is for a sample of several tokens.

    Args:
        x: in the dtype of the matrices, as ``weights``.
        weights: of each sample.
        stack: the matrices; unchanged until the backward pass.
    """
    # an autograd function has no annotations
    out: Tensor = _Mixed.apply(x, weights, stack)  # type: ignore[no-untyped-call]
    return out


def rows_of_a_piece(x: Tensor, weights: Tensor) -> int:
    """Return how many rows of the matrices of all samples and experts are made at a time, at least one."""
    limit = _BYTES.get(x.device.type, _BYTES_ELSEWHERE)
    return max(1, limit // (sum(weights.shape) * x.shape[-1] * x.element_size()))


class _Mixed(torch.autograd.Function):
    """See `mixed`; autograd by itself would keep a matrix for each sample and layer until the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, stack: Stack) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.stack = stack
        out = x.new_empty(*x.shape[:2], stack.shape[0])
        for rows, sums, _ in _sums(x, weights, stack):
            out[..., rows] = torch.bmm(x, sums.mT)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weights = ctx.saved_tensors
        by_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        by_weights = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        with torch.autocast(x.device.type, enabled=False):
            for rows, sums, matrices in _sums(x, weights, ctx.stack):
                part = grad[..., rows]
                if by_x is not None:
                    by_x.baddbmm_(part, sums)
                if by_weights is not None:  # the sums have served, and their memory is free
                    torch.bmm(part.mT, x, out=sums)
                    by_weights.addmm_(sums.flatten(1), matrices.T)
        return by_x, by_weights, None


def _sums(x: Tensor, weights: Tensor, stack: Stack) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield some rows of each sample's matrix, ``[batch, rows, in]``, and those of the experts, time after time."""
    count = min(rows_of_a_piece(x, weights), stack.shape[0])
    memory = x.new_empty(len(x) * count * x.shape[-1])
    for rows, matrices in stack.pieces(count):
        size = matrices.shape[1]
        sums = memory[: len(x) * size].view(len(x), size)
        torch.mm(weights, matrices, out=sums)
        yield rows, sums.view(len(x), -1, x.shape[-1]), matrices
