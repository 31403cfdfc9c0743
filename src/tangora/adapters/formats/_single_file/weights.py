"""Turn one module's tensors into its update.

LoRA           ΔW = s·B A                                      s = alpha / r
LoCon, Tucker  ΔW[o,i,k] = s·Σ B[o,m] M[m,n,k] A[n,i]          of rank r: A' = M A
LoHa           ΔW = s·(W₁ₐ W₁ᵦ) ∘ (W₂ₐ W₂ᵦ)                    of rank r² at most: row by row, column by column
LoHa, Tucker   each of the two is Σ T[m,n,k] Wₐ[m,o] Wᵦ[n,i]
LoKr           ΔW = s·W₁ ⊗ W₂, each whole or Wₐ Wᵦ              (X ⊗ Y)(Z ⊗ V) = XZ ⊗ YV

LoHa: arXiv:2108.06098, equation 3; LoKr and the scalings: LyCORIS (arXiv:2309.14859). Products are formed in float64,
and rounded once. An update keeps factors if their rank is below the matrix's; otherwise it is dense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tangora.errors import AdapterError
from tangora.updates.task_vector import Dense, LowRank, Update

__all__ = ["Weights", "weights_of"]

_AGAIN = "copy it again, or train it again"


@dataclass(frozen=True)
class Weights:
    """The update of a module, ``[out, in·k₁·k₂]``, and the kernel ``(in, k₁, k₂)`` if it is a convolution's."""

    update: Update
    kernel: tuple[int, ...] | None = None


def weights_of(
    parts: Mapping[str, Tensor], where: str, kernel: tuple[int, ...] | None = None, scaling: float | None = None
) -> Weights:
    """Return a module's update.

    Args:
        parts: part (`tangora.adapters.layouts.keys`) -> tensor, in float32 or float64.
        where: the module and the file, for messages.
        kernel: of the module, if it is known to be a convolution: LoHa does not have it in its shapes.
        scaling: s, if the file states it elsewhere than in ``alpha``.

    Raises:
        AdapterError: a part is missing or superfluous, or shapes do not fit.
    """
    kinds = {_kind(part) for part in parts} - {"alpha"}
    if len(kinds) != 1:
        what = "alpha without factors" if not kinds else "parts of several kinds of updates"
        raise AdapterError(what, got=sorted(parts), where=where, fix=_AGAIN)
    (kind,) = kinds
    if kind == "diff":
        return _diff(parts, where)
    if kind == "lora":
        return _lora(parts, where, scaling)
    return _loha(parts, where, kernel) if kind == "hada" else _lokr(parts, where)


def _kind(part: str) -> str:
    return "lora" if part in ("A", "B", "mid") else part.partition("_")[0]


def _need(parts: Mapping[str, Tensor], where: str, *names: str) -> list[Tensor]:
    if missing := [name for name in names if name not in parts]:
        shown = ", ".join(sorted(name for name in parts if name != "alpha"))
        raise AdapterError(f"{missing[0]} is missing beside {shown}", where=where, fix=_AGAIN)
    return [parts[name] for name in names]


def _scale(parts: Mapping[str, Tensor], rank: int, where: str) -> float:
    """Return alpha / r; 1 if there is no alpha, as all readers have it."""
    alpha = parts.get("alpha")
    if alpha is None:
        return 1.0
    value = float(alpha) if alpha.numel() == 1 else math.nan
    if not math.isfinite(value) or value == 0:  # some readers take 0 for a missing one
        got = value if alpha.numel() == 1 else list(alpha.shape)
        raise AdapterError("alpha must be one finite number other than 0", got=got, where=where, fix=_AGAIN)
    return value / rank


def _refuse(shapes: Mapping[str, Tensor], where: str, what: str = "the shapes do not fit each other") -> AdapterError:
    got = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in shapes.items() if name != "alpha")
    return AdapterError(what, got=got, where=where, fix=_AGAIN)


def _lora(parts: Mapping[str, Tensor], where: str, scaling: float | None) -> Weights:
    a, b = _need(parts, where, "A", "B")
    if "mid" in parts:
        a = _inner(parts, where)
    if not 2 <= a.ndim == b.ndim <= 5 or 0 in (*a.shape, *b.shape) or any(size != 1 for size in b.shape[2:]):
        raise _refuse(parts, where, "factors of no known kind of layer")
    if a.shape[0] != b.shape[1]:
        raise _refuse(parts, where, "the ranks of the factors disagree")
    if scaling is not None and "alpha" in parts:
        what = "two alphas: one in the file's metadata, one as a tensor"
        raise AdapterError(what, where=where, fix="remove one of them")
    kernel = tuple(a.shape[1:]) if a.ndim > 2 else None
    s = _scale(parts, a.shape[0], where) if scaling is None else scaling
    return Weights(LowRank(b.flatten(1), a.flatten(1), s), kernel)


def _inner(parts: Mapping[str, Tensor], where: str) -> Tensor:
    a, mid = parts["A"], parts["mid"]
    if a.ndim != mid.ndim or mid.ndim < 3 or mid.shape[:2] != (a.shape[0], a.shape[0]) or a[0, 0].numel() != 1:
        raise _refuse(parts, where)
    return torch.einsum("mn...,ni->mi...", mid.double(), a.double().flatten(1)).to(a.dtype)


def _diff(parts: Mapping[str, Tensor], where: str) -> Weights:
    diff = parts["diff"]
    if len(parts) > 1 or diff.ndim < 2 or 0 in diff.shape:
        raise _refuse(parts, where, "a change that is no matrix's, or has an alpha")
    return Weights(Dense(diff.flatten(1)), tuple(diff.shape[1:]) if diff.ndim > 2 else None)


def _loha(parts: Mapping[str, Tensor], where: str, kernel: tuple[int, ...] | None) -> Weights:
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    w1a, w1b, w2a, w2b = (tensor.double() for tensor in _need(parts, where, *names))
    if any(t.ndim != 2 for t in (w1a, w1b, w2a, w2b)) or w1b.shape != w2b.shape or w1a.shape != w2a.shape:
        raise _refuse(parts, where)
    rank, dtype = w1b.shape[0], parts["hada_w1_b"].dtype
    scale = _scale(parts, rank, where)
    if "hada_t1" in parts or "hada_t2" in parts:
        t1, t2 = (tensor.double() for tensor in _need(parts, where, "hada_t1", "hada_t2"))
        if t1.shape != t2.shape or t1.ndim < 3 or t1.shape[:2] != (w1a.shape[0], rank):
            raise _refuse(parts, where)
        change = _tucker(t1, w1a, w1b) * _tucker(t2, w2a, w2b) * scale
        return Weights(Dense(change.flatten(1).to(dtype)), tuple(change.shape[1:]))
    if w1a.shape[1] != rank:
        raise _refuse(parts, where, "the ranks of the factors disagree")
    out, width = w1a.shape[0], w1b.shape[1]
    if kernel is not None:
        kernel = (width // math.prod(kernel), *kernel)
        if math.prod(kernel) != width:
            raise _refuse(parts, where, f"the width is not that of a convolution of {kernel[1:]}")
    if rank**2 >= min(out, width):
        return Weights(Dense(((w1a @ w1b) * (w2a @ w2b) * scale).to(dtype)), kernel)
    b = (w1a[:, :, None] * w2a[:, None, :]).flatten(1)
    a = (w1b[:, None, :] * w2b[None, :, :]).flatten(0, 1)
    return Weights(LowRank(b.to(dtype), a.to(dtype), scale), kernel)


def _tucker(t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("mn...,mo,ni->oi...", t, a, b)


def _lokr(parts: Mapping[str, Tensor], where: str) -> Weights:
    first, second = _halves(parts, "lokr_w1", where), _halves(parts, "lokr_w2", where)
    ranks = {half[1].shape[0] for half in (first, second) if len(half) == 2 and "lokr_t2" not in parts}
    if "lokr_t2" in parts:
        ranks |= {parts["lokr_t2"].shape[1]} | ({first[1].shape[0]} if len(first) == 2 else set())
    if len(ranks) > 1:
        raise _refuse(parts, where, "the two halves have different ranks, so that the scaling is not clear")
    # Without factors LyCORIS scales by 1, whatever alpha is.
    scale = _scale(parts, ranks.pop(), where) if ranks else 1.0
    whole1, whole2 = _product(first), _second(parts, second, where)
    if whole1.ndim != 2:
        raise _refuse(parts, where)
    rows, width = whole1.shape[0] * whole2.shape[0], whole1.shape[1] * whole2[0].numel()
    kernel = (whole1.shape[1] * whole2.shape[1], *whole2.shape[2:]) if whole2.ndim > 2 else None
    dtype = next(tensor.dtype for name, tensor in parts.items() if name != "alpha")
    if (factors := _factored(first, second, whole1, "lokr_t2" in parts)) is not None:
        b, a = factors
        if a.shape[0] < min(rows, width):
            return Weights(LowRank(b.to(dtype), a.to(dtype), scale), kernel)
    return Weights(Dense((_kron(whole1, whole2) * scale).flatten(1).to(dtype)), kernel)


def _halves(parts: Mapping[str, Tensor], name: str, where: str) -> list[Tensor]:
    """Return the matrix, or its two factors, in float64."""
    if name in parts:
        if more := sorted(part for part in parts if part.startswith(f"{name}_")):
            raise AdapterError(f"{name} is given whole and as factors", got=more, where=where, fix=_AGAIN)
        return [parts[name].double()]
    return [tensor.double() for tensor in _need(parts, where, f"{name}_a", f"{name}_b")]


def _product(half: list[Tensor]) -> Tensor:
    if len(half) == 1:
        return half[0]
    a, b = half
    return (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])


def _second(parts: Mapping[str, Tensor], half: list[Tensor], where: str) -> Tensor:
    if "lokr_t2" in parts:
        t = parts["lokr_t2"].double()
        fits = len(half) == 2 and t.ndim > 2 and all(x.ndim == 2 for x in half)
        if not fits or t.shape[:2] != (half[0].shape[0], half[1].shape[0]):
            raise _refuse(parts, where)
        return _tucker(t, *half)
    if len(half) == 2 and (half[0].ndim != 2 or half[0].shape[1] != half[1].shape[0]):
        raise _refuse(parts, where, "the ranks of the factors disagree")
    return _product(half)


def _kron(first: Tensor, second: Tensor) -> Tensor:
    return torch.kron(first.reshape(*first.shape, *(1,) * (second.ndim - 2)).contiguous(), second.contiguous())


def _factored(first: list[Tensor], second: list[Tensor], whole: Tensor, tucker: bool) -> tuple[Tensor, Tensor] | None:
    """Return B and A of ``W₁ ⊗ W₂`` if W₂ has factors: ``(X ⊗ Wₐ)(Z ⊗ Wᵦ)`` for ``X Z = W₁``."""
    if len(second) == 1 or tucker:
        return None
    if len(first) == 2:
        left, right = first
    else:
        rows, columns = whole.shape
        eye = torch.eye(min(rows, columns), dtype=whole.dtype)
        left, right = (eye, whole) if rows <= columns else (whole, eye)
    return torch.kron(left.contiguous(), second[0].contiguous()), _kron(right, second[1]).flatten(1)
