"""The gates of WEMoE: one for each MLP, or one that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from tangora.adapters.initial import seed_of
from tangora.errors import ModelError
from tangora.modular.gates import PooledGate, PooledSettings

if TYPE_CHECKING:
    from tangora.modular.mlps import MlpBlock
    from tangora.routing.routers.wemoe import BlockSettings

__all__ = ["gates_of"]

_SHARED = "shared"


def gates_of(
    blocks: Sequence[MlpBlock],
    experts: int,
    settings: BlockSettings,
    seed: int,
    *,
    shared: bool = False,
    code: int = 0,
) -> tuple[dict[str, PooledGate], dict[str, str]]:
    """Return name -> gate with initial values, and block -> the name of its gate.

    Args:
        blocks: in order.
        experts: their number.
        settings: depth, initial weight and what a decision is for.
        seed: of the initial values, by the gate's name.
        shared: one gate for all blocks.
        code: numbers that tell a shared gate the block.

    Raises:
        ModelError: the mean over a batch in a causal decoder; or a shared gate of blocks of different widths.
    """
    if not shared:
        gates = {b.name: _gate(b.name, [b], experts, settings, seed, 0) for b in blocks}
        return gates, {block.name: block.name for block in blocks}
    if odd := [block for block in blocks if block.width != blocks[0].width]:
        got = f"{blocks[0].name} of {blocks[0].width}, {odd[0].name} of {odd[0].width}"
        fix = "set shared: false, for a gate in each block"
        raise ModelError("one gate cannot read inputs of several widths", got=got, where="route.shared", fix=fix)
    return {_SHARED: _gate(_SHARED, blocks, experts, settings, seed, code)}, {block.name: _SHARED for block in blocks}


def _gate(
    name: str, blocks: Sequence[MlpBlock], experts: int, settings: BlockSettings, seed: int, code: int
) -> PooledGate:
    causal = [block.name for block in blocks if block.causal]
    if causal and settings.decide == "batch_mean":
        what, fix = "a mean over the tokens of a causal decoder reads the future", "leave decide out"
        raise ModelError(what, got=causal[0], where="route.decide", fix=f"{fix}: decisions are then for a token")
    about = PooledSettings(
        width=blocks[0].width,
        experts=experts,
        depth=settings.depth,
        decide=_DECISIONS[settings.decide],
        code=code,
        places=[block.name for block in blocks] if code else [],
        causal=causal,
    )
    generator = torch.Generator().manual_seed(seed_of("gate", seed, name))
    return PooledGate(about).start(settings.initial, generator)


_DECISIONS: dict[str, Literal["sample", "token", "batch"]] = {
    "auto": "sample",
    "token": "token",
    "batch_mean": "batch",
}
