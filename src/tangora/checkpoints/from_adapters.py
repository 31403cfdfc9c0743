"""Prepare the fusion of adapters into a base: targets and a computation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.adapters.formats.lora.layers import expert_of
from tangora.checkpoints.added_rows import refuse_adapted_rows, split_rows, tokenizer_of, with_added_rows
from tangora.checkpoints.align import Target
from tangora.checkpoints.models import Models, Request, computation_of, lineage_of, stamps_of
from tangora.checkpoints.onto_base import OrientedUpdate, align_adapters, replaced
from tangora.checkpoints.recorded_heads import brought_along
from tangora.checkpoints.steps import check_method
from tangora.checkpoints.task_heads import beyond, head_targets, headed
from tangora.checkpoints.tied import tied_again, untied
from tangora.checkpoints.vocabulary import resized
from tangora.fusion.computation import Computation
from tangora.fusion.contract import space_of
from tangora.fusion.fusion import Fusion
from tangora.fusion.heads import carried_records, file_name
from tangora.fusion.lineage import unproved_base
from tangora.fusion.mixing import as_sum
from tangora.fusion.sources import SourceAdapter
from tangora.methods import get
from tangora.storage.checkpoint import Checkpoint

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["gather_adapters"]

_EXPANDED = (
    "the adapters were trained and scored in the network's expansion; this is the ordinary network with their weights, "
    "which is another function: score it before it is used"
)


def gather_adapters(base: Checkpoint, folders: Sequence[str | os.PathLike[str]], request: Request) -> Models:
    """Return adapters as targets on a base's tensors.

    Raises:
        FusionError, ArgumentError, AdapterError: see `tangora.fuse_checkpoints`.
    """
    split = untied(base)
    heads, same_base = request.heads, request.same_base
    fusion = Fusion(list(folders), request.space, seed=request.seed, same_base=same_base, base=split, heads=heads)
    refuse_adapted_rows(fusion.adapters, split)
    prints = [adapter.fingerprint for adapter in fusion.adapters]
    if (streamed := _streamed(split, fusion, request)) is not None:
        targets = streamed
        sites = [target.site for target in targets if target.site]
        recorded = computation_of(request, prints, sites)
        computation = as_sum(recorded, [adapter.task_vector for adapter in fusion.adapters], sites) or recorded
        whole, kept = fusion.whole(request.method, recorded.weights, request.parameters)
        sources = [
            SourceAdapter(adapter, Path(folder)) for adapter, folder in zip(fusion.adapters, folders, strict=True)
        ]
    else:  # fused in memory as `tangora fuse` does, and the result added
        fused = fusion.merge(request.method.name, request.weights, request.parameters)
        targets = align_adapters(split, [fused.task_vector], [fused])
        computation = Computation(get("task_arithmetic"), [1.0], {}, 0, [fused.fingerprint])
        recorded = computation_of(request, prints, sorted(fused.updates))
        whole, kept, sources = dict(fused.whole), dict(fused.heads), [SourceAdapter(fused)]
    head = beyond(whole, fusion.adapters, split, heads == "keep")
    inside = {name: value for name, value in whole.items() if name not in head}
    grown, inside = split_rows(inside, split, fusion.adapters)
    places = [Path(folder) for folder in folders]
    targets = replaced(targets, inside, split, fusion.adapters[0].config)
    targets, rows = with_added_rows(targets, grown, places)
    targets, config, notes = tied_again(base, split, targets)
    if head and heads == "keep":
        kept |= {file_name(fusion.names[0]): head}
    elif head:
        targets += head_targets(head, places, len(computation.fingerprints))
        config = headed(config, fusion.adapters[0].config, head)
        notes.append(f"the base has no head; the adapters' is added as it is, without weights: {', '.join(head)}")
    origins = [adapter.source for adapter in fusion.adapters]
    lineage = {**lineage_of(base, request, recorded, fusion.names, prints, origins), "space": request.space}
    notes += [] if same_base else unproved_base(fusion.adapters, fusion.names, base)
    notes += [f"the head of {task} is in heads/{task}.safetensors" for task in kept]
    notes += [_EXPANDED] if any(adapter.metadata.expanded for adapter in fusion.adapters) else []
    stamps = stamps_of(base.files)
    records, names, tokenizer = carried_records(fusion.adapters), fusion.names, base.folder
    earlier_heads, earlier, left = brought_along([base.folder])
    kept, records, notes = {**earlier_heads, **kept}, {**earlier, **records}, [*notes, *left]
    if rows is not None:
        tokenizer, note = tokenizer_of(base, places, rows)
        config, notes = resized(config, rows), [*notes, note]
    return Models(targets, computation, names, notes, lineage, stamps, config, tokenizer, kept, records, sources)


def _streamed(base: Checkpoint, fusion: Fusion, request: Request) -> list[Target] | None:
    """Return the base's tensors as targets that the method fuses row by row; None if that would be another fusion.

    The method must work on changes of weights. If it is not linear, it must get each expert as a separate site, but a
    checkpoint may stack them in one parameter. If it tells outputs from inputs, it must get updates as ``[out, in]``,
    but embeddings and ``Conv1D`` are stored as the transpose.
    """
    method = request.method
    if not space_of(request.space).plain or not (method.linear or not _has_experts(fusion.adapters)):
        return None
    check_method(method)
    vectors: list[Mapping[str, Any]] = [adapter.task_vector for adapter in fusion.adapters]
    targets = align_adapters(base, vectors, fusion.adapters)
    turned = any(isinstance(part, OrientedUpdate) and part.transposed for one in targets for part in one.parts)
    return None if turned and not method.symmetric else targets


def _has_experts(adapters: Sequence[Adapter]) -> bool:
    return any(expert_of(site) for adapter in adapters for site in adapter.updates)
