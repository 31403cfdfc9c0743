"""Heads that write weights from a code, and kernels that compose the weights of wide layers from templates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["MatrixHead", "VectorHead", "composed", "kernel"]

_START = 0.01


class VectorHead(nn.Module):
    """A linear function of a code: a bias, or the weight or bias of a norm.

    Args:
        code: numbers of a code.
        size: of the vector.
    """

    def __init__(self, code: int, size: int) -> None:
        super().__init__()
        self.linear = _linear(code, size)

    def forward(self, codes: Float[Tensor, "templates code"]) -> Float[Tensor, "templates size"]:
        """Return a vector for each code."""
        written: Tensor = self.linear(codes)
        return written


class MatrixHead(nn.Module):
    """A matrix from a code.

    Whole: ``W = reshape(H u + c)``, with rows · columns numbers. Of rank r: the first r · rows numbers are ``W_out``,
    the other r · columns ``W_in``, and ``W = W_out W_in`` (arXiv:2210.03265, §3.2).

    Args:
        code: numbers of a code.
        rows, columns: of the matrix.
        rank: None for a whole matrix.
    """

    def __init__(self, code: int, rows: int, columns: int, rank: int | None) -> None:
        super().__init__()
        self.rows, self.columns, self.rank = rows, columns, rank
        self.linear = _linear(code, rows * columns if rank is None else rank * (rows + columns))

    def forward(self, codes: Float[Tensor, "templates code"]) -> Float[Tensor, "templates rows columns"]:
        """Return a matrix for each code."""
        written: Tensor = self.linear(codes)
        if self.rank is None:
            return torch.unflatten(written, 1, (self.rows, self.columns))
        left, right = torch.split(written, [self.rank * self.rows, self.rank * self.columns], 1)
        outer = torch.unflatten(left, 1, (self.rows, self.rank))
        return outer @ torch.unflatten(right, 1, (self.rank, self.columns))


def kernel(scale: int, dimensions: int, *, released: bool) -> nn.Parameter | None:
    """Return a new scaling kernel ``[templates, scale]`` or ``[templates, scale, scale]``; None at scale 1.

    A sum of s templates with kernels of standard deviation 1 would be √s times as large as a template, so that wide
    layers would begin with larger adapters, and with larger steps. Hence the standard deviation 1/√s.

    Args:
        scale: s.
        dimensions: of what is composed: 1 for a vector.
        released: a standard deviation of 1, as in the released code.
    """
    if scale == 1:
        return None
    spread = 1.0 if released else scale**-0.5
    return nn.Parameter(spread * torch.randn(scale, *[scale] * dimensions))


def composed(templates: Tensor, weights: Tensor | None, *, template_first: bool = False) -> Tensor:
    """Return ``Σ_i K[i] ⊗ T_i``, or ``Σ_i T_i ⊗ K[i]``; of matrices or of vectors.

    Args:
        templates: T, of shape [s, n] or [s, n, d].
        weights: K, of shape [s, s] or [s, s, s]; None for s = 1, which leaves the template as it is.
        template_first: the order of the product.

    >>> composed(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.eye(2)).tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    if weights is None:
        return templates[0]
    if templates.ndim == 2:
        terms = torch.einsum(
            "in,ia->na" if template_first else "ia,in->an", *_ordered(templates, weights, template_first)
        )
        return terms.flatten()
    rule = "ind,iab->nadb" if template_first else "iab,ind->anbd"
    terms = torch.einsum(rule, *_ordered(templates, weights, template_first))
    return terms.flatten(2).flatten(0, 1)


def _ordered(templates: Tensor, weights: Tensor, template_first: bool) -> tuple[Tensor, Tensor]:
    return (templates, weights) if template_first else (weights, templates)


def _linear(code: int, numbers: int) -> nn.Linear:
    made = nn.Linear(code, numbers)
    nn.init.normal_(made.weight, std=_START)
    nn.init.zeros_(made.bias)
    return made
