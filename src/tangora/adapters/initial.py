"""φ₀, the start of every adapter of a run: drawn from the seed and the site's name, so that it need not be stored.

Adapters that share φ₀ share A₀, and then their updates add up at the same rank. A factor depends only on
(seed, site, kind, rank, width): not on the machine, the task, or the order of the sites.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.adapters.peft_layers import adapter_config, factors, lora_layers
from tangora.errors import ModelError
from tangora.updates.task_vector import LowRank

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DRAWN", "KEPT", "draw", "draw_factors", "fingerprint", "kind_of", "seed_of", "set_initial_"]

DRAWN = {True: "kaiming_uniform", "gaussian": "gaussian"}
"""peft's ``init_lora_weights`` that are drawn here -> the kind of `draw`."""

KEPT = (False, "orthogonal")
"""The ``init_lora_weights`` that peft initializes itself; these factors are stored with the adapter."""


def seed_of(*parts: object) -> int:
    """Return a 63-bit seed from values that print the same everywhere."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def draw(
    seed: int,
    site: str,
    rank: int,
    in_features: int,
    *,
    kind: str = "kaiming_uniform",
    task: str | None = None,
) -> Float[Tensor, "r in"]:
    """Draw A₀ of one site in float32, from a CPU generator seeded with the sha-256 of (seed, site).

    ``kaiming_uniform`` is peft's default, U(-1/√in, 1/√in); ``gaussian`` is N(0, 1/r²).

    Args:
        task: if given, the seed depends on the task's name too (``a_init: per_task``).

    Raises:
        ModelError: the kind is neither.

    >>> bool((draw(0, "q", 4, 8) == draw(0, "q", 4, 8)).all()), bool((draw(0, "q", 4, 8) == draw(0, "v", 4, 8)).any())
    (True, False)
    """
    generator = _generator(seed, site, task)
    if kind == "kaiming_uniform":
        bound = 1 / math.sqrt(in_features)  # kaiming_uniform_(a=sqrt(5)): gain sqrt(1/3) times sqrt(3/in)
        return torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
    if kind == "gaussian":
        return _normal(rank, in_features, generator) / rank
    raise ModelError("no such initial value", got=kind, where="lora.init", fix="kaiming_uniform or gaussian")


def draw_factors(
    seed: int,
    site: str,
    rank: int,
    shape: tuple[int, int],
    *,
    kind: str = "kaiming_uniform",
    embedding: bool = False,
    task: str | None = None,
    scaling: float = 1.0,
) -> LowRank:
    """Draw both factors of one site as peft initializes them: one of A₀ and B₀ is random, the other zero.

    A linear layer has A₀ from `draw` and B₀ = 0. An embedding has A₀ = 0 and B₀ from N(0, 1).

    Args:
        shape: ``(out, in)`` of the update; an embedding's is ``(dim, vocabulary)``.
    """
    out, inside = shape
    if embedding:
        b = _normal(out, rank, _generator(seed, site, task))
        return LowRank(b, torch.zeros(rank, inside), scaling)
    return LowRank(torch.zeros(out, rank), draw(seed, site, rank, inside, kind=kind, task=task), scaling)


def fingerprint(initial: Mapping[str, LowRank]) -> str:
    """Return the sha-256 (hex) of the factors of all sites in float32, without the scalings."""
    total = hashlib.sha256()
    for site in sorted(initial):
        for name, factor in (("a", initial[site].a), ("b", initial[site].b)):
            total.update(f"{site}\x1f{name}\x1f{tuple(factor.shape)}\x1f".encode())
            total.update(factor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return total.hexdigest()


def kind_of(init: bool | str) -> str | None:
    """Return the kind of `draw` for peft's ``init_lora_weights``; None if peft's own values are kept.

    Raises:
        ModelError: the initial values change the base weights, or need data.
    """
    if init in KEPT:
        return None
    if init not in DRAWN:
        raise ModelError("these initial values are not supported", got=init, where="lora.init", fix=_reason(init))
    return DRAWN[init]


@torch.no_grad()
def set_initial_(
    model: nn.Module, seed: int, adapter_name: str = "default", *, task: str | None = None
) -> dict[str, LowRank]:
    """Overwrite the freshly made factors of every LoRA site with φ₀, and return φ₀ (float32, on the CPU).

    If peft's own values are kept (``init_lora_weights`` False or "orthogonal"), they are only read.

    Raises:
        ModelError: the initial values change the base weights or need data, or a layer is of an unsupported kind.
    """
    kind = kind_of(adapter_config(model, adapter_name).init_lora_weights)
    initial: dict[str, LowRank] = {}
    for site, layer in lora_layers(model, adapter_name).items():
        a, b = factors(layer, adapter_name)
        scaling = float(layer.scaling[adapter_name])
        if kind is None:
            initial[site] = LowRank(b.float().cpu().clone(), a.float().cpu().clone(), scaling)
            continue
        embedding = adapter_name in layer.lora_embedding_A
        shape = (b.shape[0], a.shape[1])
        drawn = draw_factors(seed, site, a.shape[0], shape, kind=kind, embedding=embedding, task=task, scaling=scaling)
        a.copy_(drawn.a)
        b.copy_(drawn.b)
        initial[site] = drawn
    return initial


def _normal(rows: int, columns: int, generator: torch.Generator) -> Float[Tensor, "rows columns"]:
    """Draw in float64, because the last bits of a float32 draw differ between processors."""
    return torch.empty(rows, columns, dtype=torch.float64).normal_(generator=generator).float()


def _generator(seed: int, site: str, task: str | None) -> torch.Generator:
    parts = (seed, site) if task is None else (seed, site, task)
    return torch.Generator().manual_seed(seed_of("phi0", *parts))


def _reason(init: bool | str) -> str:
    if init == "eva":
        return "eva needs training data; use true, 'gaussian', 'orthogonal' or false"
    if init == "mica":
        return "mica takes B from the base weight, so that no seed can redraw it; use true or 'gaussian'"
    return f"{init} changes the base weights, so adapters would not share a base; use true, 'gaussian' or 'orthogonal'"
