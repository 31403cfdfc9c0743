"""Columns per task vector and site, by reverse mode.

A change of a site by ``s·B A`` changes a logit by ``Σ_tokens gᵀ (s B (A x))``, with the site's input ``x`` and the
logit's gradient ``g`` with respect to its output. So one forward pass, and one backward pass per class, give every
vector's column at every site.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangora.tangent.direction import Direction
from tangora.tasks.model import TaskModel

if TYPE_CHECKING:
    from tangora.tangent.model import TangentTaskModel

__all__ = ["per_site"]


def per_site(model: TangentTaskModel, inputs: Any, labels: Tensor, *, stacked: Direction) -> tuple[Tensor, Tensor]:
    """Return logits at φ₀, and columns ``[vectors, sites, batch, *tokens, classes]``."""
    with torch.enable_grad(), _recorded(model.backbone, list(stacked.low_rank)) as calls:
        logits = TaskModel.logits(model, inputs, labels)
        flat = logits.reshape(len(logits), -1)
        gradients = [
            torch.autograd.grad(flat[:, i].sum(), [c.output for c in calls], retain_graph=True, allow_unused=True)
            for i in range(flat.shape[1])
        ]
    with torch.no_grad():
        by_site: dict[str, Tensor] = {}
        for i, call in enumerate(calls):  # a layer that is called more than once gets the sum over its calls
            column = torch.stack([_moved(g[i], call.x, *stacked.low_rank[call.site]) for g in gradients], -1)
            by_site[call.site] = by_site[call.site] + column if call.site in by_site else column
        missing = torch.zeros_like(column) if by_site else flat.new_zeros(0)
        columns = torch.stack([by_site.get(site, missing) for site in stacked.low_rank], 1)
    return logits.detach(), columns.unflatten(-1, logits.shape[1:])


@dataclass(frozen=True)
class _Call:
    """One call of a site: its input, and its output with a gradient."""

    site: str
    x: Tensor
    output: Tensor


@contextmanager
def _recorded(model: nn.Module, sites: list[str]) -> Iterator[list[_Call]]:
    """Record every call of the sites in the forward pass inside the block."""
    calls: list[_Call] = []

    def record(site: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            x = args[0].detach()
            seen = F.one_hot(x, module.num_embeddings).float() if isinstance(module, nn.Embedding) else x
            calls.append(_Call(site, seen, output if output.requires_grad else output.requires_grad_()))
            return calls[-1].output

        return hook

    hooks = [model.get_submodule(site).register_forward_hook(record(site)) for site in sites]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _moved(gradient: Tensor | None, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``Σ_tokens gᵀ B_t (A_t x)``, of shape [vectors, batch]."""
    if gradient is None:
        return x.new_zeros(len(a), len(x))
    rows = x.shape[0]
    g, hidden = gradient.reshape(rows, -1, gradient.shape[-1]), x.reshape(rows, -1, x.shape[-1])
    left = torch.einsum("nlo,tor->tnlr", g, b)
    right = torch.einsum("nli,tri->tnlr", hidden, a)
    return (left * right).sum((-2, -1))
