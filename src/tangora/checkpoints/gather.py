"""Models, whatever they are, as targets and a recipe: fine-tuned checkpoints, or adapters onto a base."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.adapters.contract import holds_adapter
from tangora.checkpoints.align import Target, align
from tangora.checkpoints.fuser import Recipe
from tangora.checkpoints.steps import check_method
from tangora.errors import FusionError
from tangora.fusion.weights import Weights, tabulate
from tangora.methods import Method, get
from tangora.storage.checkpoint import Checkpoint, open_checkpoint
from tangora.support.version import package_version

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.adapters.adapter import Adapter
    from tangora.checkpoints.sources import Source
    from tangora.fusion.heads import Heads

__all__ = ["Models", "Request", "gather"]

FORMAT = 1


@dataclass(frozen=True)
class Request:
    """What was asked for; see `tangora.fuse_checkpoints`."""

    method: Method
    weights: Weights | None
    parameters: Mapping[str, Any]
    seed: int
    space: str
    same_base: bool
    heads: Heads | None = None


@dataclass(frozen=True)
class Models:
    """The models' part in the output.

    Attributes:
        targets: every tensor of the output.
        recipe: what is done to them.
        names: the models'.
        notes: what is to be known of the output.
        about: how the output is made, for `tangora_fusion.json`.
        stamps: size and time of every input file, which tell a change of it.
        config: the output's.
        tokenizer: the folder whose tokenizer it has.
        heads: task -> parameters that adapters saved whole, and that are kept apart.
        sources: the adapters, by which the output can be verified.
    """

    targets: list[Target]
    recipe: Recipe
    names: list[str]
    notes: list[str]
    about: dict[str, Any]
    stamps: list[tuple[str, int, int]]
    config: Mapping[str, Any]
    tokenizer: Path
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    sources: Sequence[Source] = ()


def gather(
    base: Checkpoint, models: Sequence[str | os.PathLike[str]], allow_missing: Sequence[str], asked: Request
) -> Models:
    """Open the models and pair them with the base.

    Raises:
        FusionError: see `tangora.fuse_checkpoints`.
    """
    if isinstance(models, (str, os.PathLike)) or not models:
        raise FusionError("nothing to fuse", got=models, where="fuse.models", fix="give a list of at least one folder")
    asked.method.check_count(len(models), where="fuse.models")
    kinds = [holds_adapter(Path(model)) for model in models]
    if any(kinds) and not all(kinds):
        odd = models[kinds.index(False)]
        fix = "fuse adapters in one command and checkpoints in another"
        raise FusionError("adapters and checkpoints in one fusion", got=str(odd), where="fuse.models", fix=fix)
    if all(kinds):
        if allow_missing:
            fix = "leave it out: an adapter has only some sites anyway"
            raise FusionError("allow_missing is for checkpoints", got=list(allow_missing), where="fuse.models", fix=fix)
        return _adapters(base, models, asked)
    _refuse_of_adapters(asked)
    check_method(asked.method)
    opened = [open_checkpoint(model) for model in models]
    aligned = align(base, opened, allow_missing)
    names = [model.name for model in opened]
    prints = [model.fingerprint for model in opened]
    recipe = _recipe(asked, prints, [target.key for target in aligned.targets])
    about = _about(base, asked, recipe, names, prints)
    files = [path for checkpoint in (base, *opened) for path in checkpoint.files]
    stamps = _stamps([*files, *aligned.vocabulary.files])
    tokenizer = aligned.vocabulary.tokenizer
    return Models(aligned.targets, recipe, names, aligned.notes, about, stamps, aligned.config, tokenizer)


def _refuse_of_adapters(asked: Request) -> None:
    given = {"space": asked.space != "delta", "heads": asked.heads is not None, "same_base": asked.same_base}
    for name in (name for name, differs in given.items() if differs):
        fix = f"leave {name} out: whole models have neither factors nor heads of their own, and one base is given"
        raise FusionError(f"{name} is for adapters", got=getattr(asked, name), where=f"fuse.{name}", fix=fix)


def _adapters(base: Checkpoint, folders: Sequence[str | os.PathLike[str]], asked: Request) -> Models:
    from tangora.checkpoints.onto_base import align_adapters, replaced
    from tangora.checkpoints.sources import Source
    from tangora.checkpoints.tied import apart, rejoined
    from tangora.fusion.fusion import Fusion
    from tangora.support.threads import in_threads

    split = apart(base)
    fusion = Fusion(
        list(folders),
        asked.space,  # type: ignore[arg-type]
        seed=asked.seed,
        same_base=asked.same_base,
        base=split,
        heads=asked.heads,
    )
    prints = in_threads(lambda adapter: adapter.fingerprint, fusion.adapters)
    if asked.space == "delta" and (asked.method.linear or not _has_experts(fusion.adapters)):
        check_method(asked.method)
        vectors: list[Mapping[str, Any]] = [adapter.task_vector for adapter in fusion.adapters]
        targets = align_adapters(split, vectors, fusion.adapters)
        recipe = told = _recipe(asked, prints, [target.site for target in targets if target.site])
        whole, heads = fusion.whole(asked.method, told.weights, asked.parameters)
        sources = [Source(adapter, Path(folder)) for adapter, folder in zip(fusion.adapters, folders, strict=True)]
    else:  # factors are small, as are experts, and are fused before the base is looked at
        fused = fusion.merge(asked.method.name, asked.weights, asked.parameters)
        targets = align_adapters(split, [fused.task_vector], [fused])
        recipe = Recipe(get("task_arithmetic"), [1.0], {}, 0, [fused.fingerprint])
        told = _recipe(asked, prints, sorted(fused.updates))
        whole, heads, sources = dict(fused.whole), dict(fused.heads), [Source(fused)]
    targets, config, notes = rejoined(base, split, replaced(targets, whole, split))
    about = {**_about(base, asked, told, fusion.names, prints), "space": asked.space}
    notes += [f"the head of {task} is in heads/{task}.safetensors" for task in heads]
    stamps = _stamps(base.files)
    return Models(targets, recipe, fusion.names, notes, about, stamps, config, base.folder, heads, sources)


def _has_experts(adapters: Sequence[Adapter]) -> bool:
    from tangora.adapters.formats.lora.layers import expert_of

    return any(expert_of(site) for adapter in adapters for site in adapter.updates)


def _recipe(asked: Request, prints: Sequence[str], names: Sequence[str]) -> Recipe:
    method, weights = asked.method, asked.method.default_weight if asked.weights is None else asked.weights
    table = tabulate(weights, len(prints), names)
    return Recipe(method, table, {**method.parameters, **asked.parameters}, asked.seed, list(prints))


def _about(
    base: Checkpoint, asked: Request, recipe: Recipe, names: Sequence[str], prints: Sequence[str]
) -> dict[str, Any]:
    told = base.config.get("_name_or_path")
    parents = [{"name": name, "fingerprint": text} for name, text in zip(names, prints, strict=True)]
    return {
        "format": FORMAT,
        "tangora": package_version(),
        "method": asked.method.name,
        "parameters": dict(recipe.parameters),
        "weights": recipe.weights,
        "random": asked.method.random,
        "seed": asked.seed,
        "base": {"name": base.name, "model": told or None, "fingerprint": base.fingerprint},
        "parents": parents,
    }


def _stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """A file that changes between two sittings begins the fusion anew."""
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
