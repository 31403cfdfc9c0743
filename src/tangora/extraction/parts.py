"""Sort what changed by what becomes of it: factors, biases, layers that are saved whole, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from tangora.errors import ArgumentError, FusionError
from tangora.extraction.deltas import Delta, measure
from tangora.extraction.pairs import Model, Pair
from tangora.progress import Progress
from tangora.storage.checkpoint import Checkpoint
from tangora.storage.vocabulary import is_vocabulary

__all__ = ["Embeddings", "Parts", "sort"]

Embeddings = Literal["whole", "lora"]
_LOW_RANK = ("linear", "conv1d", "convolution")
_TABLES = ("embedding", "head")
_LEAVE = "leave it out, with --leave-out"


@dataclass(frozen=True)
class Parts:
    """What changed.

    Attributes:
        sites: weights that become factors.
        biases: of layers that LoRA adapts.
        whole: layers that are saved whole, in the order of the model.
        left_out: parameters that changed, and that the caller leaves out.
        changed: parameter -> how much, of all that changed.
    """

    sites: list[Pair]
    biases: list[Pair]
    whole: list[str]
    left_out: list[str]
    changed: Mapping[str, Delta]


def sort(
    model: Model,
    tuned: Checkpoint,
    embeddings: Embeddings,
    leave_out: Sequence[str],
    progress: Progress,
) -> Parts:
    """Compare every parameter, and sort those that changed.

    Raises:
        FusionError: nothing changed, or something that no adapter can hold.
        ArgumentError: a pattern matches no parameter, or embeddings cannot become factors.
    """
    _check_patterns(model, leave_out)
    changed = _changed(model, progress)
    new = [pair for pair in model.pairs if pair.base is None]
    if not changed and not new:
        fix = "check the paths: give the tuned model first, and the model that it was tuned from second"
        raise FusionError("nothing changed: both checkpoints have the same weights", where=tuned.folder, fix=fix)
    left = [name for name in changed if any(fnmatchcase(name, pattern) for pattern in leave_out)]
    kept = [pair for pair in model.pairs if pair.name in changed and pair.name not in left]
    if odd := [pair for pair in [*kept, *new] if pair.kind == "other"]:
        what = "a changed parameter that belongs to no layer that peft adapts or saves whole"
        raise FusionError(what, got=odd[0].name, where=tuned.folder, fix=_LEAVE)
    tables = [pair for pair in kept if pair.kind in _TABLES]
    whole = _closed(model, [*new, *(p for p in kept if p.kind == "whole" or (p in tables and _whole(p, embeddings)))])
    sites = [p for p in kept if p.kind in (*_LOW_RANK, *_TABLES) and p.layer not in whole]
    biases = [p for p in kept if p.kind == "bias" and p.layer not in whole]
    _check_tables(model, [p for p in sites if p in tables])
    if inner := next((p for p in sites if any(p.layer.startswith(f"{layer}.") for layer in whole)), None):
        raise FusionError("a layer inside one that peft saves whole", got=inner.layer, where=tuned.folder, fix=_LEAVE)
    if not sites:
        fix = "give it as a checkpoint, or with --embeddings lora"
        raise FusionError("no weight of a layer changed that LoRA adapts", got=", ".join(whole), fix=fix)
    return Parts(sites, biases, whole, left, changed)


def _check_patterns(model: Model, leave_out: Sequence[str]) -> None:
    names = [pair.name for pair in model.pairs]
    for pattern in leave_out:
        if not any(fnmatchcase(name, pattern) for name in names):
            fix = f"correct the name, such as {names[0]}; * stands for anything"
            raise ArgumentError("matches no parameter", got=pattern, where="extract.leave_out", fix=fix)


def _changed(model: Model, progress: Progress) -> dict[str, Delta]:
    found: dict[str, Delta] = {}
    progress.begin("compare, tensors", len(model.pairs))
    for count, pair in enumerate(model.pairs, 1):
        if pair.base is not None:
            delta = measure(pair)
            if delta.square > 0 or pair.grown:
                found[pair.name] = delta
        progress.update(count, pair.name)
    progress.end()
    return found


def _whole(pair: Pair, embeddings: Embeddings) -> bool:
    return embeddings == "whole" or pair.grown


def _closed(model: Model, pairs: Sequence[Pair]) -> list[str]:
    """Return the layers to save whole: of tied parameters every end, and all that peft takes for one of them."""
    layers = {pair.layer for pair in pairs}
    layers |= {name.rpartition(".")[0] for pair in pairs for name in pair.ties}
    layers |= {other for layer in layers for other in model.saved_with(layer)}
    return [path for path in model.paths if path in layers]


def _check_tables(model: Model, tables: Sequence[Pair]) -> None:
    """Refuse factors of a tied embedding, which peft would merge into something else."""
    if model.ties and any(pair.ties or pair.kind == "head" or is_vocabulary(pair.name) for pair in tables):
        what = "the embedding is tied to the output head: peft's merge would add factors of both to one weight"
        fix = "save embeddings whole, with --embeddings whole, or leave them out"
        raise ArgumentError(what, got="lora", where="extract.embeddings", fix=fix)
