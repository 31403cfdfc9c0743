"""What is to be fused into a checkpoint: the request, and the models as targets and a computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.checkpoints.align import Target
from tangora.fusion.computation import Computation
from tangora.fusion.weights import Weights, tabulate
from tangora.methods import Method
from tangora.storage.checkpoint import Checkpoint
from tangora.support.version import package_version

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.adapters.heads import HeadRecord
    from tangora.fusion.heads import Heads
    from tangora.fusion.sources import Source

__all__ = ["Models", "Request", "about", "computation_of", "stamps_of"]

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
        computation: what is done to them.
        names: the models'.
        notes: what is to be known of the output.
        about: how the output is made, for `tangora_fusion.json`.
        stamps: size and time of every input file, which tell a change of it.
        config: the output's.
        tokenizer: the folder whose tokenizer it has.
        heads: task -> parameters that adapters saved whole, and that are kept apart.
        records: task -> what prediction needs besides the tensors.
        sources: the adapters, by which the output can be verified.
    """

    targets: list[Target]
    computation: Computation
    names: list[str]
    notes: list[str]
    about: dict[str, Any]
    stamps: list[tuple[str, int, int]]
    config: Mapping[str, Any]
    tokenizer: Path
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    records: Mapping[str, HeadRecord] = field(default_factory=dict)
    sources: Sequence[Source] = ()


def computation_of(asked: Request, prints: Sequence[str], names: Sequence[str]) -> Computation:
    """Return what is computed of these models, on tensors of these names."""
    method, weights = asked.method, asked.method.default_weight if asked.weights is None else asked.weights
    table = tabulate(weights, len(prints), names)
    return Computation(method, table, {**method.parameters, **asked.parameters}, asked.seed, list(prints))


def about(
    base: Checkpoint, asked: Request, computation: Computation, names: Sequence[str], prints: Sequence[str]
) -> dict[str, Any]:
    """Return how the output is made, for ``tangora_fusion.json``."""
    told = base.config.get("_name_or_path")
    parents = [{"name": name, "fingerprint": text} for name, text in zip(names, prints, strict=True)]
    return {
        "format": FORMAT,
        "tangora": package_version(),
        "method": asked.method.name,
        "parameters": dict(computation.parameters),
        "weights": computation.weights,
        "random": asked.method.random,
        "seed": asked.seed,
        "base": {"name": base.name, "model": told or None, "fingerprint": base.fingerprint},
        "parents": parents,
    }


def stamps_of(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return size and time of files: one that changes between two sittings begins the fusion anew."""
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
