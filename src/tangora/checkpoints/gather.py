"""Prepare a fusion: turn fine-tuned checkpoints, or adapters for a base, into targets and a computation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tangora.adapters.contract import holds_adapter
from tangora.checkpoints.align import align
from tangora.checkpoints.models import Models, Request, computation_of, lineage_of, stamps_of
from tangora.checkpoints.recorded_heads import brought_along
from tangora.checkpoints.steps import check_method
from tangora.errors import ArgumentError, FusionError
from tangora.storage.checkpoint import Checkpoint, open_checkpoint, refuse_quantized
from tangora.support.hub import source_of
from tangora.support.names import names_of

__all__ = ["gather"]


def gather(
    base: Checkpoint, models: Sequence[str | os.PathLike[str]], allow_missing: Sequence[str], request: Request
) -> Models:
    """Open the models and pair them with the base.

    Raises:
        ArgumentError, FileError, FusionError, PluginError: see `tangora.fuse_checkpoints`.
    """
    if isinstance(models, (str, os.PathLike)) or not models:
        raise ArgumentError(
            "nothing to fuse", got=models, where="fuse.models", fix="give a list of at least one folder"
        )
    request.method.check_count(len(models), where="fuse.models")
    kinds = [holds_adapter(Path(model)) for model in models]
    if any(kinds) and not all(kinds):
        odd = models[kinds.index(False)]
        fix = "fuse adapters in one command and checkpoints in another"
        raise FusionError("adapters and checkpoints in one fusion", got=str(odd), where="fuse.models", fix=fix)
    if all(kinds):
        if allow_missing:
            fix = "leave it out: an adapter has only some sites anyway"
            raise ArgumentError(
                "allow_missing is for checkpoints", got=list(allow_missing), where="fuse.models", fix=fix
            )
        from tangora.checkpoints.from_adapters import gather_adapters  # deferred: imports torch, as adapters need

        return gather_adapters(base, models, request)
    _refuse_options_of_adapters(request)
    check_method(request.method)
    opened = [open_checkpoint(model, name) for model, name in zip(models, names_of(models), strict=True)]
    for model in opened:
        refuse_quantized(model)
    aligned = align(base, opened, allow_missing)
    names = [model.name for model in opened]
    prints = [model.fingerprint for model in opened]
    computation = computation_of(request, prints, [target.key for target in aligned.targets])
    sources = [source_of(model.folder) for model in opened]
    lineage = lineage_of(base, request, computation, names, prints, sources)
    files = [path for checkpoint in (base, *opened) for path in checkpoint.files]
    stamps = stamps_of([*files, *aligned.vocabulary.files])
    heads, records, notes = brought_along([base.folder, *(model.folder for model in opened)])
    return Models(
        aligned.targets,
        computation,
        names,
        [*aligned.notes, *notes],
        lineage,
        stamps,
        aligned.config,
        aligned.vocabulary.tokenizer,
        heads,
        records,
    )


def _refuse_options_of_adapters(request: Request) -> None:
    given = {"space": request.space != "delta", "heads": request.heads is not None, "same_base": request.same_base}
    for name in (name for name, differs in given.items() if differs):
        fix = f"leave {name} out: checkpoints have neither factors nor separate heads, and their base is given"
        raise ArgumentError(f"{name} is for adapters", got=getattr(request, name), where=f"fuse.{name}", fix=fix)
