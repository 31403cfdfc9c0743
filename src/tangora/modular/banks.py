"""Experts of one layer that are no low-rank ones: whole matrices, and matrices of which few entries are left.

Both compute ``Σᵢ gᵢ (ΔWᵢ x + Δbᵢ)`` for the gate's weights g of a sample or a token: expert by expert or, if most
entries are zero and g is of a sample, by some rows of ``Σᵢ gᵢ ΔWᵢ`` at a time (`tangora.modular.mixing`).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tangora.errors import AdapterError, ModelError
from tangora.modular.mixing import mixed

__all__ = ["Change", "DenseBank", "SparseBank", "largest", "whole"]

_WHOLE = 2 * 2**30  # bytes


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

    For decisions of a sample, ``Σᵢ gᵢ ΔWᵢ`` is made a few rows at a time, of the experts' rows with their zeros. These
    are filled in again for every pass or, inside of `whole`, kept: ``4 · experts · out · in`` bytes. For decisions of a
    token, products are those of sparse matrices, expert by expert.

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
        self._places: tuple[tuple[str, int], Tensor, list[list[int]]] | None = None
        self._whole: tuple[tuple[str, int], Tensor] | None = None
        self.keep_whole = False

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
        if self._made is None or self._made[0] != self._key:
            self._made = (self._key, [self._matrix(i) for i in range(len(self.values))])
        return self._made[1]

    @property
    def _key(self) -> tuple[str, int]:
        return str(self.values.device), self.values._version

    def forget(self) -> None:
        """Free what is kept beside the parameters."""
        self._made = self._places = self._whole = None

    def pieces(self, rows: int) -> Iterator[tuple[slice, Float[Tensor, "experts entries"]]]:
        """Yield so many rows of all matrices at a time; see `tangora.modular.mixing.Stack`."""
        out, width = self.shape
        if self.keep_whole and (self._whole is None or self._whole[0] != self._key):
            self._whole = self._key, next(self._filled(out))[1]
        if self.keep_whole and self._whole is not None:
            found = self._whole[1]
            begins = range(0, out, rows)
            yield from ((slice(i, min(i + rows, out)), found[:, i * width : (i + rows) * width]) for i in begins)
        else:
            yield from self._filled(rows)

    @torch.no_grad()
    def _filled(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield pieces in one memory: zeros, and the entries that are kept."""
        out, width = self.shape
        places, begins = self._entries()
        memory = self.values.new_empty(len(self.values), min(rows, out) * width)
        for first in range(0, out, rows):
            last = min(first + rows, out)
            piece = memory[:, : (last - first) * width].zero_()
            for expert, of in enumerate(begins):
                kept = slice(of[first], of[last])
                piece[expert].index_add_(0, places[expert, kept] - first * width, self.values[expert, kept])
            yield slice(first, last), piece

    def _entries(self) -> tuple[Tensor, list[list[int]]]:
        """Return the place of each entry in its flattened matrix, and the first entry of each row."""
        if self._places is None or self._places[0] != self._key:
            (experts, kept), out = self.values.shape, self.shape[0]
            counts = self.counts.long()
            rows = torch.arange(out, device=counts.device).repeat(experts).repeat_interleave(counts.flatten())
            places = rows.reshape(experts, kept) * self.shape[1] + self.columns
            self._places = self._key, places, F.pad(counts.cumsum(1), (1, 0)).tolist()
        return self._places[1:]

    def _matrix(self, expert: int) -> Tensor:
        begins = F.pad(self.counts[expert].long().cumsum(0), (1, 0))
        columns, values = self.columns[expert].long(), self.values[expert].detach()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls these tensors new
            return torch.sparse_csr_tensor(begins, columns, values, self.shape, check_invariants=False)

    def forward(self, x: Float[Tensor, "batch *tokens in"], weights: Tensor) -> Float[Tensor, "batch *tokens out"]:
        """Return what the experts add; see `tangora.modular.routed.Bank.forward`."""
        with torch.autocast(x.device.type, enabled=False):  # sparse products exist in float32
            x, weights = x.to(self.values.dtype), weights.to(self.values.dtype)
            if weights.ndim == 2 and x.ndim > 2:
                total = mixed(x.flatten(1, -2), weights, self).reshape(*x.shape[:-1], self.shape[0])
                return total if self.bias is None else total + over_tokens(weights @ self.bias, x.ndim)
            weights = over_tokens(weights, x.ndim)
            columns, total = x.flatten(0, -2).T, x.new_zeros(*x.shape[:-1], self.shape[0])
            for i, matrix in enumerate(self.matrices()):
                out: Tensor = torch.sparse.mm(matrix, columns).T.reshape(total.shape)
                out = out if self.bias is None else out + self.bias[i]
                total = total + weights[..., i : i + 1] * out
        return total


@contextlib.contextmanager
def whole(network: nn.Module, limit: int = _WHOLE) -> Iterator[None]:
    """Keep the sparse experts of a network with their zeros for the length of the block, as its training needs.

    Results are the same bits. Choose it if a network is called many times.

    Args:
        network: with any modules.
        limit: bytes for all matrices; those of layers that do not fit are made for every pass.
    """
    banks = [module for module in network.modules() if isinstance(module, SparseBank)]
    for bank in banks:
        size = len(bank.values) * bank.shape[0] * bank.shape[1] * bank.values.element_size()
        bank.keep_whole, limit = size <= limit, limit - size * (size <= limit)
    try:
        yield
    finally:
        for bank in banks:
            bank.keep_whole = False
            bank.forget()


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
