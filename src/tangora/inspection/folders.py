"""Describe adapters and checkpoints, from file headers and one layer's tensors at a time.

No base is loaded, and no complete adapter: its format describes it (`Format.survey`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tangora.adapters.contract import Site, format_of, holds_adapter
from tangora.adapters.heads import FOLDER
from tangora.adapters.kinds import KINDS
from tangora.adapters.metadata import Metadata, read_metadata
from tangora.errors import FileError, TangoraError
from tangora.inspection.routed import RoutedSummary, routed_summary
from tangora.storage.checkpoint import Checkpoint, open_checkpoint
from tangora.storage.header import Stored
from tangora.storage.hub import located
from tangora.support.hub import hub_reference, shown_source
from tangora.support.shown import one_line

__all__ = ["Inspected", "Site", "inspect"]


@dataclass(frozen=True)
class Inspected:
    """The description of one folder.

    Attributes:
        path: the folder.
        kind: of the adapter (`tangora.adapters.kinds`), or ``checkpoint``.
        base: name, revision and fingerprint of the base, as far as they are recorded.
        mode, task, linearize: as in ``tangora.json``.
        dtypes: dtype -> number of tensors.
        size: bytes of the tensors.
        parameters: number of entries of the tensors.
        sites: those of an adapter.
        shards, tensors, tied: of a checkpoint: number of files, number of tensors, output head -> input embedding.
        quantized: how a checkpoint's weights are quantized, so that it cannot be fused.
        initial: the fingerprint of φ₀.
        start: whether φ₀ is saved in its own file: the adapter may not have started at the base.
        heads: parameters that are saved whole, and saved heads of tasks.
        fused: the method of a fused adapter.
        routed: router, experts and sizes of a routed adapter.
        format: the name of an adapter's format.
        layout: the model whose modules a single file names.
        needs_base: the reason why its updates depend on the base's weights.
        title: what an adapter is, such as ``a DoRA adapter``, if that is more exact than its kind.
        problem: the reason why it cannot be read.
        content: the opened adapter or checkpoint.
    """

    path: str
    kind: str
    base: dict[str, Any] = field(default_factory=dict)
    mode: str | None = None
    task: str | None = None
    linearize: str | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    size: int = 0
    parameters: int = 0
    sites: list[Site] = field(default_factory=list)
    shards: int | None = None
    tensors: int | None = None
    tied: dict[str, str] = field(default_factory=dict)
    quantized: str | None = None
    initial: str | None = None
    start: bool = False
    heads: list[str] = field(default_factory=list)
    fused: str | None = None
    routed: RoutedSummary | None = None
    format: str | None = None
    layout: str | None = None
    needs_base: str | None = None
    title: str | None = None
    problem: str | None = None
    content: Any = field(default=None, repr=False)

    def __repr__(self) -> str:
        size = f"{len(self.sites)} sites" if self.sites else f"{self.tensors} tensors"
        return one_line("Inspected", repr(self.path), self.kind, self.problem or size)

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the opened adapter or checkpoint, as JSON values."""
        values = {key: value for key, value in vars(self).items() if key != "content"}
        routed = None if self.routed is None else self.routed.to_dict()
        return {**values, "sites": [asdict(site) for site in self.sites], "routed": routed}


def inspect(path: str | os.PathLike[str]) -> Inspected:
    """Describe a folder, or what has a name on the Hub; report an error in ``problem`` instead of raising it.

    >>> import tempfile, torch, tangora
    >>> from tangora.updates.task_vector import LowRank
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tangora.Adapter({"layer": LowRank(torch.ones(3, 1), torch.ones(1, 2), 0.5)}).save(folder)
    ...     inspect(folder).sites
    [Site(name='layer', kind='linear', shape=[3, 2], rank=1, scaling=0.5, norm=1.224744871391589)]
    """
    shown = os.fspath(path)
    try:
        folder = located(path)
        if hub_reference(path) is not None:
            shown = shown_source(folder)
        if not folder.exists():
            fix = "give the folder of an adapter or of a checkpoint, or org/name of the Hub"
            raise FileError("no such folder", where=folder, fix=fix)
        found = _adapter(folder) if holds_adapter(folder) else _checkpoint(folder)
        return replace(found, path=shown)
    except TangoraError as problem:
        return Inspected(shown, "unknown", problem=str(problem))


def _checkpoint(folder: Path) -> Inspected:
    checkpoint = open_checkpoint(folder)
    tied = checkpoint.config.get("tie_word_embeddings") is True  # a model without a head ties nothing
    return Inspected(
        str(folder),
        "checkpoint",
        base={"model": checkpoint.model, "type": checkpoint.config.get("model_type")},
        **_counted(checkpoint.tensors),
        shards=len(checkpoint.files),
        tensors=len(checkpoint.tensors),
        tied=dict(list(checkpoint.tied.items())[:1]) if tied else {},
        quantized=checkpoint.quantized,
        content=checkpoint,
    )


def _counted(tensors: Mapping[str, Stored]) -> dict[str, Any]:
    return {
        "dtypes": dict(Counter(stored.dtype for stored in tensors.values())),
        "size": sum(stored.size for stored in tensors.values()),
        "parameters": sum(stored.entries for stored in tensors.values()),
    }


def _adapter(path: Path) -> Inspected:
    metadata = read_metadata(path) if path.is_dir() else None
    format_ = format_of(path)
    survey = format_.survey(path, metadata)
    metadata = survey.adapter.metadata
    heads = sorted(p.name.removesuffix(".safetensors") for p in (path / FOLDER).glob("*.safetensors"))
    return Inspected(
        str(path),
        metadata.kind,
        **_described(metadata),
        **_counted(survey.tensors),
        sites=survey.sites,
        heads=[*survey.whole, *(f"{FOLDER}/{name}" for name in heads)],
        start=survey.start,
        routed=routed_summary(metadata, {site.name: site.shape for site in survey.sites}),
        format=format_.name,
        layout=survey.layout,
        needs_base=survey.needs_base,
        title=survey.title,
        content=survey.adapter,
    )


def _described(metadata: Metadata) -> dict[str, Any]:
    base = {key: value for key, value in metadata.base.model_dump().items() if value is not None}
    return {
        "base": base,
        "mode": metadata.mode,
        "task": metadata.task,
        "linearize": metadata.linearize if metadata.linearize != "none" else None,
        "initial": metadata.initial.fingerprint if metadata.initial is not None else None,
        "fused": metadata.fused.method if metadata.fused is not None else None,
    }


def adapters_of(inspected: Sequence[Inspected]) -> list[Inspected]:
    """Return those that are adapters."""
    return [one for one in inspected if one.kind in KINDS]


def checkpoints_of(inspected: Sequence[Inspected]) -> list[Checkpoint]:
    """Return the checkpoints among them."""
    return [one.content for one in inspected if one.kind == "checkpoint"]
