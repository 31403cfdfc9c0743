"""Experts of one layer that are no low-rank ones: whole matrices, and matrices of which few entries are left.

Both compute ``Σᵢ gᵢ (ΔWᵢ x + Δbᵢ)`` for the gate's weights g of a sample or a token, expert by expert: no matrix is
made for a sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tangora.errors import AdapterError, ModelError

__all__ = ["Change", "DenseBank", "SparseBank", "largest"]


class DenseBank(nn.Module):
    """Whole matrices.

    Args:
        shape: ``(out, in)``.
        experts: their number.
        bias: whether they change the bias too.
    """

    def __init__(self, shape: Sequence[int], experts: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, *shape))
        self.bias = nn.Parameter(torch.zeros(experts, shape[0])) if bias else None

    def forward(self, x: Float[Tensor, "batch *tokens in"], weights: Tensor) -> Float[Tensor, "batch *tokens out"]:
        """Return what the experts add; see `tangora.modular.routed.Bank.forward`."""
        x, weights = x.to(self.weight.dtype), over_tokens(weights, x.ndim)
        biases: list[Tensor | None] = [None] * len(self.weight) if self.bias is None else list(self.bias)
        parts = [weights[..., i : i + 1] * F.linear(x, self.weight[i], biases[i]) for i in range(len(self.weight))]
        return torch.stack(parts).sum(0)


class SparseBank(nn.Module):
    """Matrices of which the same number of entries is left, row by row: how many, in which columns, and their values.

    Whole numbers are saved as float32, as everything in the file is: exactly, since no layer is 2²⁴ wide.

    Args:
        shape: ``(out, in)``.
        experts: their number.
        kept: entries of each matrix.
        bias: whether they change the bias too.
    """

    counts: Tensor
    columns: Tensor

    def __init__(self, shape: Sequence[int], experts: int, kept: int, bias: bool) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.values = nn.Parameter(torch.zeros(experts, kept))
        self.register_buffer("counts", torch.zeros(experts, shape[0], dtype=torch.int32))
        self.register_buffer("columns", torch.zeros(experts, kept, dtype=torch.int32))
        self.bias = nn.Parameter(torch.zeros(experts, shape[0])) if bias else None
        self._made: tuple[tuple[str, int], list[Tensor]] | None = None

    @torch.no_grad()
    def fill(self, expert: int, matrix: Float[Tensor, "out in"]) -> None:
        """Keep the largest entries of an expert's matrix."""
        chosen = largest(matrix, self.values.shape[1])
        rows = chosen // matrix.shape[1]
        self.counts[expert] = torch.bincount(rows, minlength=matrix.shape[0])
        self.columns[expert] = chosen % matrix.shape[1]
        self.values[expert] = matrix.flatten()[chosen]

    def check_values(self, where: str) -> None:
        """Refuse counts and columns that describe no matrix: products read memory by them, unchecked.

        Raises:
            AdapterError: names the site.
        """
        kept, (_, width) = self.values.shape[1], self.shape
        counted = bool((self.counts >= 0).all()) and bool((self.counts.long().sum(1) == kept).all())
        if not counted or not bool(((self.columns >= 0) & (self.columns < width)).all()):
            what = f"counts or columns of sparse experts are none of {kept} entries in rows of {width}"
            raise AdapterError(what, where=where, fix="copy the adapter's folder again")

    def matrices(self) -> list[Float[Tensor, "out in"]]:
        """Return the matrices, compressed by rows."""
        key = (str(self.values.device), self.values._version)
        if self._made is None or self._made[0] != key:
            self._made = (key, [self._matrix(i) for i in range(len(self.values))])
        return self._made[1]

    def _matrix(self, expert: int) -> Tensor:
        begins = F.pad(self.counts[expert].long().cumsum(0), (1, 0))
        columns, values = self.columns[expert].long(), self.values[expert].detach()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls these tensors new
            return torch.sparse_csr_tensor(begins, columns, values, self.shape, check_invariants=False)

    def forward(self, x: Float[Tensor, "batch *tokens in"], weights: Tensor) -> Float[Tensor, "batch *tokens out"]:
        """Return what the experts add; see `tangora.modular.routed.Bank.forward`."""
        with torch.autocast(x.device.type, enabled=False):  # sparse products exist in float32
            x, weights = x.to(self.values.dtype), over_tokens(weights, x.ndim).to(self.values.dtype)
            columns, total = x.flatten(0, -2).T, x.new_zeros(*x.shape[:-1], self.shape[0])
            for i, matrix in enumerate(self.matrices()):
                out: Tensor = torch.sparse.mm(matrix, columns).T.reshape(total.shape)
                out = out if self.bias is None else out + self.bias[i]
                total = total + weights[..., i : i + 1] * out
        return total


class Change(nn.Module):
    """A change of a parameter of the base that is always there.

    Args:
        shape: of the parameter.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(*shape))

    @torch.no_grad()
    def added(self, backbone: nn.Module, name: str) -> _Added:
        """Add the change to a parameter; return a handle whose ``remove`` puts its values back, bit for bit.

        Raises:
            ModelError: the parameter is missing, of another shape, or held in half precision or quantized.
        """
        parameter = dict(backbone.named_parameters(remove_duplicate=False)).get(name)
        fix = "give the base model that the adapter was made for"
        if parameter is None:
            raise ModelError("the model has no such parameter", got=type(backbone).__name__, where=name, fix=fix)
        if parameter.shape != self.delta.shape:
            got = f"{tuple(parameter.shape)}, expected {tuple(self.delta.shape)}"
            raise ModelError("the parameter is of another shape", got=got, where=name, fix=fix)
        if parameter.dtype != self.delta.dtype:
            fix = "load the base with base.weights_dtype: float32, and without quantization"
            raise ModelError("a change of a weight needs float32", got=str(parameter.dtype), where=name, fix=fix)
        handle = _Added(parameter, parameter.detach().clone())
        parameter.add_(self.delta.to(parameter.device))
        return handle


class _Added:
    """A parameter that was changed, and its value before."""

    def __init__(self, parameter: nn.Parameter, before: Tensor) -> None:
        self._parameter, self._before = parameter, before

    @torch.no_grad()
    def remove(self) -> None:
        """Put the value back."""
        self._parameter.copy_(self._before)


def over_tokens(weights: Tensor, ndim: int) -> Tensor:
    """Return weights of samples as those of all their tokens; weights of tokens as they are.

    Args:
        weights: ``[batch, experts]``, or ``[batch, *tokens, experts]``.
        ndim: of the input of a layer.
    """
    return weights.reshape(len(weights), *(1,) * (ndim - weights.ndim), *weights.shape[1:])


def largest(tensor: Tensor, count: int) -> Tensor:
    """Return the places of the entries of largest magnitude in the flattened tensor, in order; of equal ones the first.

    >>> largest(torch.tensor([[1.0, -3.0], [2.0, 2.0]]), 2)
    tensor([1, 2])
    """
    flat = tensor.flatten().abs()
    least = flat.topk(count).values.min()
    above = (flat > least).nonzero().flatten()  # topk itself may choose any of equal ones
    return torch.cat([above, (flat == least).nonzero().flatten()[: count - len(above)]]).sort().values
