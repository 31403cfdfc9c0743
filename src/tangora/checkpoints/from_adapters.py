"""Adapters onto a base, as targets and a computation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.adapters.formats.lora.layers import expert_of
from tangora.checkpoints.models import Models, Request, about, computation_of, stamps_of
from tangora.checkpoints.onto_base import align_adapters, replaced
from tangora.checkpoints.steps import check_method
from tangora.checkpoints.tied import apart, rejoined
from tangora.fusion.computation import Computation
from tangora.fusion.contract import space_of
from tangora.fusion.fusion import Fusion
from tangora.fusion.heads import carried_records
from tangora.fusion.sources import Source
from tangora.methods import get
from tangora.storage.checkpoint import Checkpoint
from tangora.support.threads import in_threads

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["gather_adapters"]


def gather_adapters(base: Checkpoint, folders: Sequence[str | os.PathLike[str]], asked: Request) -> Models:
    """Return adapters as targets on a base's tensors.

    Raises:
        FusionError, ArgumentError, AdapterError: see `tangora.fuse_checkpoints`.
    """
    split = apart(base)
    heads, same_base = asked.heads, asked.same_base
    fusion = Fusion(list(folders), asked.space, seed=asked.seed, same_base=same_base, base=split, heads=heads)
    prints = in_threads(lambda adapter: adapter.fingerprint, fusion.adapters)
    # Streamed only if the method is to see changes of weights as they are. One that is not linear must see each expert
    # as a site of its own, where a checkpoint has them stacked in one parameter.
    if space_of(asked.space).plain and (asked.method.linear or not _has_experts(fusion.adapters)):
        check_method(asked.method)
        vectors: list[Mapping[str, Any]] = [adapter.task_vector for adapter in fusion.adapters]
        targets = align_adapters(split, vectors, fusion.adapters)
        computation = told = computation_of(asked, prints, [target.site for target in targets if target.site])
        whole, kept = fusion.whole(asked.method, told.weights, asked.parameters)
        sources = [Source(adapter, Path(folder)) for adapter, folder in zip(fusion.adapters, folders, strict=True)]
    else:  # coordinates of other spaces are small, as are experts, and are fused before the base is looked at
        fused = fusion.merge(asked.method.name, asked.weights, asked.parameters)
        targets = align_adapters(split, [fused.task_vector], [fused])
        computation = Computation(get("task_arithmetic"), [1.0], {}, 0, [fused.fingerprint])
        told = computation_of(asked, prints, sorted(fused.updates))
        whole, kept, sources = dict(fused.whole), dict(fused.heads), [Source(fused)]
    targets, config, notes = rejoined(base, split, replaced(targets, whole, split))
    lineage = {**about(base, asked, told, fusion.names, prints), "space": asked.space}
    notes += [f"the head of {task} is in heads/{task}.safetensors" for task in kept]
    stamps = stamps_of(base.files)
    records, names, tokenizer = carried_records(fusion.adapters), fusion.names, base.folder
    return Models(targets, computation, names, notes, lineage, stamps, config, tokenizer, kept, records, sources)


def _has_experts(adapters: Sequence[Adapter]) -> bool:
    return any(expert_of(site) for adapter in adapters for site in adapter.updates)
