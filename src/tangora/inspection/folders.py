"""What adapters and checkpoints are, and whether they can be fused: from headers, and one layer's tensors at a time.

No base is loaded, and no adapter as a whole: of each layer the factors are read, its norms taken, and let go.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tangora.adapters.formats.lora import CONFIG, WEIGHTS
from tangora.adapters.formats.lora.layers import expert_of, is_bias, kernel_of, updates_of
from tangora.adapters.formats.lora.names import sorted_out
from tangora.adapters.formats.lora.settings import check_config
from tangora.adapters.metadata import Metadata, read_metadata
from tangora.errors import AdapterError, FileError, TangoraError
from tangora.storage.checkpoint import Checkpoint, is_adapter, open_checkpoint
from tangora.storage.header import FLOATS, Stored, read_header
from tangora.storage.tensors import finite, read_rows
from tangora.support.files import inside, read_json
from tangora.support.shown import one_line
from tangora.updates.task_vector import Dense, Update

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["Inspected", "Site", "inspect"]


@dataclass(frozen=True)
class Site:
    """One site: ``kind`` is linear, embedding, convolution, expert, bias, or parameter (kind ``full``).

    ``norm`` is Frobenius, of the update; None where that depends on the base's weights.
    """

    name: str
    kind: str
    shape: list[int]
    rank: int | None
    scaling: float | None
    norm: float | None


@dataclass(frozen=True)
class Inspected:
    """One folder.

    Attributes:
        path: the folder.
        kind: ``lora``, ``full`` (differences of all weights) or ``checkpoint``.
        base: name, revision and fingerprint of the base, as far as they are told.
        mode, task, linearize: what ``tangora.json`` says.
        dtypes: dtype -> how many tensors.
        size: bytes of the tensors.
        parameters: how many numbers.
        sites: of an adapter.
        shards, tensors, tied: of a checkpoint: files, how many tensors, output head -> input embedding.
        initial: the fingerprint of φ₀.
        start: whether φ₀ is in a file of its own: the adapter may not have started at the base.
        heads: parameters that are saved whole, and tasks whose heads are kept.
        fused: the method, where it is fused.
        needs_base: why its updates depend on the base's weights.
        problem: why it cannot be read.
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
    initial: str | None = None
    start: bool = False
    heads: list[str] = field(default_factory=list)
    fused: str | None = None
    needs_base: str | None = None
    problem: str | None = None
    about: Any = field(default=None, repr=False)

    def __repr__(self) -> str:
        held = f"{len(self.sites)} sites" if self.sites else f"{self.tensors} tensors"
        return one_line("Inspected", repr(self.path), self.kind, self.problem or held)

    def told(self) -> dict[str, Any]:
        """For a machine: everything but the objects behind it."""
        values = {key: value for key, value in vars(self).items() if key != "about"}
        return {**values, "sites": [asdict(site) for site in self.sites]}


def inspect(path: str | os.PathLike[str]) -> Inspected:
    """What a folder holds; what is wrong with it is told in ``problem``, not raised.

    >>> import tempfile, torch, tangora
    >>> from tangora.updates.task_vector import LowRank
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tangora.Adapter({"layer": LowRank(torch.ones(3, 1), torch.ones(1, 2), 0.5)}).save(folder)
    ...     inspect(folder).sites
    [Site(name='layer', kind='linear', shape=[3, 2], rank=1, scaling=0.5, norm=1.224744871391589)]
    """
    folder = Path(path)
    try:
        if not folder.is_dir():
            raise FileError("no such folder", where=folder, fix="give the folder of an adapter or of a checkpoint")
        if not is_adapter(folder):
            return _checkpoint(folder)
        metadata = read_metadata(folder)
        if metadata is not None and metadata.kind == "full":
            return _full(folder, metadata)
        return _lora(folder, metadata)
    except TangoraError as problem:
        return Inspected(str(folder), "unknown", problem=str(problem))


def _checkpoint(folder: Path) -> Inspected:
    checkpoint = open_checkpoint(folder)
    said = checkpoint.config.get("tie_word_embeddings") is True  # a model without a head ties nothing
    return Inspected(
        str(folder),
        "checkpoint",
        base={"model": checkpoint.config.get("_name_or_path") or None, "type": checkpoint.config.get("model_type")},
        **_counted(checkpoint.tensors),
        shards=len(checkpoint.files),
        tensors=len(checkpoint.tensors),
        tied=dict(list(checkpoint.tied.items())[:1]) if said else {},
        about=checkpoint,
    )


def _counted(tensors: Mapping[str, Stored]) -> dict[str, Any]:
    return {
        "dtypes": dict(Counter(stored.dtype for stored in tensors.values())),
        "size": sum(stored.size for stored in tensors.values()),
        "parameters": sum(stored.entries for stored in tensors.values()),
    }


def _full(folder: Path, metadata: Metadata) -> Inspected:
    from tangora.adapters.adapter import DELTA

    path = inside(folder, DELTA)
    tensors = read_header(path)
    sites = []
    shapes: dict[str, Update] = {}
    for name, stored in sorted(tensors.items()):
        norm = float(_read(stored, path).double().norm())
        sites.append(Site(name, "parameter", list(stored.shape), None, None, norm))
        shapes[name] = Dense(torch.empty(stored.shape, device="meta"))
    return Inspected(
        str(folder), "full", **_told(metadata), **_counted(tensors), sites=sites, about=_light(shapes, metadata)
    )


def _lora(folder: Path, metadata: Metadata | None) -> Inspected:
    from tangora.adapters.heads import FOLDER
    from tangora.adapters.metadata import BaseInfo
    from tangora.adapters.start import INITIAL

    config = read_json(inside(folder, CONFIG))
    check_config(config, folder / CONFIG, with_base=True)
    path = inside(folder, WEIGHTS)
    tensors = read_header(path)
    named = sorted_out(tensors, config, path)
    needs_base = _needs_base(config, folder)
    sites: list[Site] = []
    shapes: dict[str, Update] = {}
    kernels: dict[str, tuple[int, ...]] = {}
    for (site, kind), stored in sorted(named.factors.items()):
        pair = {part: _read(one, path) for part, one in stored.items()}
        for name, update in updates_of(site, kind, pair, config, path).items():
            norm = None if needs_base and (config.get("use_dora") or not is_bias(name, update)) else update.norm()
            sites.append(_site(name, kind, update, pair, norm))
            shapes[name] = update.to("meta")
        if kernel := kernel_of(pair):
            kernels[site] = kernel
    told = metadata or Metadata(
        base=BaseInfo(model=config.get("base_model_name_or_path"), revision=config.get("revision"))
    )
    embeddings = frozenset(site for site, kind in named.factors if kind == "lora_embedding")
    kept = sorted(p.name.removesuffix(".safetensors") for p in (folder / FOLDER).glob("*.safetensors"))
    return Inspected(
        str(folder),
        "lora",
        **_told(told),
        **_counted(tensors),
        sites=sites,
        heads=[*sorted(named.whole), *(f"{FOLDER}/{name}" for name in kept)],
        start=(folder / INITIAL).exists(),
        needs_base=needs_base,
        about=_light(shapes, told, config, embeddings, kernels),
    )


def _read(stored: Stored, path: Path) -> torch.Tensor:
    if stored.dtype not in FLOATS:
        raise AdapterError("weights must be floating-point", got=stored.dtype, where=f"{stored.name} in {path}")
    rows = stored.shape[0] if stored.shape else 1
    return finite(stored.name, read_rows(stored, 0, rows).reshape(stored.shape), path)


def _needs_base(config: Mapping[str, Any], folder: Path) -> str | None:
    try:
        check_config(config, folder / CONFIG, with_base=False)
    except AdapterError as reason:
        return reason.what
    return None


def _site(name: str, kind: str, update: Update, pair: Mapping[str, torch.Tensor], norm: float | None) -> Site:
    words = "bias" if is_bias(name, update) else "expert" if expert_of(name) else "linear"
    words = "embedding" if kind == "lora_embedding" else words
    shape = list(update.shape)
    if words == "linear" and (kernel := kernel_of(pair)):
        words, shape = "convolution", [shape[0], *kernel]
    factors = update.factors()
    rank, scaling = (None, None) if factors is None else (factors.rank, factors.scaling)
    return Site(name, words, shape, rank, scaling, norm)


def _light(updates: dict[str, Update], metadata: Metadata, *rest: Any) -> Adapter:
    from tangora.adapters.adapter import Adapter

    config, embeddings, kernels = rest or (None, frozenset(), {})
    return Adapter(updates, metadata, config, None, embeddings, kernels)


def _told(metadata: Metadata) -> dict[str, Any]:
    base = {key: value for key, value in metadata.base.model_dump().items() if value is not None}
    return {
        "base": base,
        "mode": metadata.mode,
        "task": metadata.task,
        "linearize": metadata.linearize if metadata.linearize != "none" else None,
        "initial": metadata.initial.fingerprint if metadata.initial is not None else None,
        "fused": metadata.fused.method if metadata.fused is not None else None,
    }


def adapters_of(found: Sequence[Inspected]) -> list[Inspected]:
    """Those that are adapters."""
    return [one for one in found if one.kind in ("lora", "full")]


def checkpoints_of(found: Sequence[Inspected]) -> list[Checkpoint]:
    """The checkpoints among them."""
    return [one.about for one in found if one.kind == "checkpoint"]
