"""The inputs of a fusion into a checkpoint: the request, and the models as targets and a computation."""

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
from tangora.support.hub import source_of
from tangora.support.version import package_version

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.adapters.heads import HeadRecord
    from tangora.fusion.heads import Heads
    from tangora.fusion.sources import SourceAdapter

__all__ = ["Models", "Request", "computation_of", "lineage_of", "stamps_of"]

FORMAT = 1


@dataclass(frozen=True)
class Request:
    """The arguments of a fusion; see `tangora.fuse_checkpoints`."""

    method: Method
    weights: Weights | None
    parameters: Mapping[str, Any]
    seed: int
    space: str
    same_base: bool
    heads: Heads | None = None


@dataclass(frozen=True)
class Models:
    """The models, prepared for the fusion.

    Attributes:
        targets: every tensor of the output.
        computation: what is computed from them.
        names: the models' names.
        notes: remarks on the output for the user.
        lineage: how the output is made, for ``tangora_fusion.json``.
        stamps: size and time of every input file, to detect changes.
        config: the output's configuration.
        tokenizer: the folder to copy the output's tokenizer from.
        heads: task -> parameters that adapters saved whole, and that are kept per task.
        records: task -> what prediction needs besides the tensors.
        sources: the adapters to verify the output with.
    """

    targets: list[Target]
    computation: Computation
    names: list[str]
    notes: list[str]
    lineage: dict[str, Any]
    stamps: list[tuple[str, int, int]]
    config: Mapping[str, Any]
    tokenizer: Path
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    records: Mapping[str, HeadRecord] = field(default_factory=dict)
    sources: Sequence[SourceAdapter] = ()


def computation_of(request: Request, prints: Sequence[str], names: Sequence[str]) -> Computation:
    """Return the computation on tensors of these names; ``prints`` are the models' fingerprints."""
    method, weights = request.method, request.method.default_weight if request.weights is None else request.weights
    table = tabulate(weights, len(prints), names)
    return Computation(method, table, {**method.parameters, **request.parameters}, request.seed, list(prints))


def lineage_of(
    base: Checkpoint,
    request: Request,
    computation: Computation,
    names: Sequence[str],
    prints: Sequence[str],
    sources: Sequence[str | None],
) -> dict[str, Any]:
    """Return how the output is made, for ``tangora_fusion.json``.

    Args:
        base: it is fused into.
        request: method, parameters and seed.
        computation: with the weights.
        names, prints, sources: of the models; a source is ``org/name@commit`` of the Hub, or None.
    """
    parents = [
        {"name": name, "fingerprint": text} | ({} if source is None else {"source": source})
        for name, text, source in zip(names, prints, sources, strict=True)
    ]
    origin = source_of(base.folder)
    return {
        "format": FORMAT,
        "tangora": package_version(),
        "method": request.method.name,
        "parameters": dict(computation.parameters),
        "weights": computation.weights,
        "random": request.method.random,
        "seed": request.seed,
        "base": {"name": base.name, "model": base.model, "fingerprint": base.fingerprint}
        | ({} if origin is None else {"source": origin}),
        "parents": parents,
    }


def stamps_of(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return size and time of files; after a change of one, an interrupted fusion starts again from the beginning."""
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
