"""`Adapter`: the result of fine-tuning or fusion, as a value. It is read from and written to a plain PEFT directory.

>>> import torch
>>> adapter = Adapter({"layer": LowRank(torch.ones(3, 1), torch.ones(1, 2))})
>>> round(adapter.task_vector.norm() ** 2, 6)
6.0
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tangora.adapters.contract import format_of, needs_base
from tangora.adapters.heads import HeadRecord, read_heads, read_records
from tangora.adapters.metadata import BaseInfo, FusedInfo, InitialInfo, Metadata, Parent, read_metadata
from tangora.adapters.text import line, table
from tangora.errors import AdapterError, FileError
from tangora.storage.architecture import stored_folder
from tangora.storage.checkpoint import open_base
from tangora.storage.hub import located
from tangora.support.hub import source_of
from tangora.updates.digests import digests
from tangora.updates.task_vector import LowRank, TaskVector, Update
from tangora.updates.text import joined, tensor_digest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tangora.adapters.in_peft.verification import Verification
    from tangora.adapters.layouts.details import SingleFile
    from tangora.storage.checkpoint import Checkpoint

__all__ = [
    "Adapter",
    "BaseInfo",
    "FusedInfo",
    "InitialInfo",
    "LoraDetails",
    "Metadata",
    "Parent",
    "load",
    "load_beside",
]


@dataclass(frozen=True, eq=False)
class LoraDetails:
    """What an adapter of kind ``lora`` contains besides its updates.

    Args:
        config: ``adapter_config.json`` to start from on saving, which adjusts ranks, scalings and targets to the
            updates. None if there is none yet.
        initial: φ₀ per site, with the site's ``scaling``; None if it is not known.
        embeddings: the sites that are `Embedding` layers (their update is ``[dim, vocabulary]``).
        kernels: site -> ``(in, k₁, k₂, …)`` of a convolution (its update is ``[out, in·k₁·k₂…]``).
        dtype: of the tensors in the file, to which they are rounded already; float32 if None.
        names: site -> its name in the adapter's own files, if the adapter was renamed to be fused with others.
        tuner: the kind of peft that the updates are computed by, such as ``LoHa``; None for plain LoRA.
        file: the layout of an adapter in one file, for the diffusion models that are known, or any other.
    """

    config: Mapping[str, Any] | None = None
    initial: Mapping[str, LowRank] | None = None
    embeddings: frozenset[str] = frozenset()
    kernels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    tuner: str | None = None
    file: SingleFile | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """Updates of a base model's weights, and their provenance.

    Args:
        updates: site -> update, absolute: what is added to the base weight.
        metadata: the content of ``tangora.json``.
        details: of kind ``lora``; the properties `config`, `initial`, `embeddings` and `kernels` read them.
        whole: parameter of the base -> the value that replaces it: ``modules_to_save``, biases that were saved whole.
        heads: task -> per-task parameters: a trained head, or parameters that replace the base's. They are not applied
            automatically; pick one task's at inference.
        records: task -> what prediction needs besides base and head: class names in order, templates, scale, ...
        source: ``org/name@commit`` if it was read from the Hub; a fusion records it.

    >>> import torch
    >>> adapter = Adapter({"layer": LowRank(torch.ones(3, 1), torch.ones(1, 2), 0.5)})
    >>> adapter.task_vector
    TaskVector(1 sites, norm 1.225)
    """

    updates: Mapping[str, Update]
    metadata: Metadata = field(default_factory=Metadata)
    details: LoraDetails = field(default_factory=LoraDetails)
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    records: Mapping[str, HeadRecord] = field(default_factory=dict)
    source: str | None = None

    @property
    def config(self) -> Mapping[str, Any] | None:
        """``adapter_config.json`` to start from on saving; None if there is none yet."""
        return self.details.config

    @property
    def initial(self) -> Mapping[str, LowRank] | None:
        """φ₀ per site; None if it is not known."""
        return self.details.initial

    @property
    def embeddings(self) -> frozenset[str]:
        """The sites that are `Embedding` layers."""
        return self.details.embeddings

    @property
    def kernels(self) -> Mapping[str, tuple[int, ...]]:
        """Site -> ``(in, k₁, k₂, …)`` of a convolution."""
        return self.details.kernels

    def with_details(self, **changes: Any) -> Adapter:
        """Return the same adapter with other `LoraDetails`: ``config``, ``initial``, ``embeddings`` or ``kernels``."""
        return replace(self, details=replace(self.details, **changes))

    def __repr__(self) -> str:
        return line(self)

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        return table(self)

    @cached_property
    def start(self) -> Mapping[str, LowRank]:
        """Site -> ``s · B₀ A₀`` if that is not zero: what the adapter added before any training."""
        initial = self.initial or {}
        return {site: u for site, u in initial.items() if bool(u.b.any()) and bool(u.a.any())}

    @cached_property
    def task_vector(self) -> TaskVector:
        """What training changed: ``ΔW − s · B₀ A₀``; this is the update itself if B₀ = 0."""
        updates = TaskVector(self.updates)
        return updates - TaskVector(self.start) if self.start else updates

    @cached_property
    def fingerprint(self) -> str:
        """Sha-256 (hex) of the updates, as they are factored, of parameters saved whole and of settings of modules."""
        total = hashlib.sha256()
        for site, digest in digests(self.updates):
            total.update(joined(site, digest).encode())
        for name, value in sorted(self.whole.items()):
            total.update(joined("whole", name, tuple(value.shape), tensor_digest(value)).encode())
        if self.metadata.modules is not None:  # the same tensors are another function with other settings
            total.update(joined("modules", json.dumps(self.metadata.modules, sort_keys=True)).encode())
        return total.hexdigest()

    def with_scores(self, scores: Mapping[str, float], *, split: str, **about: Any) -> Adapter:
        """Return the same adapter with its scores in the metadata: ``{"split": ..., "tasks": scores, **about}``."""
        record = {"split": split, **about, "tasks": dict(scores)}
        return replace(self, metadata=self.metadata.model_copy(update={"scores": record}))

    def with_selection(self, selection: Mapping[str, Any]) -> Adapter:
        """Return the same fused adapter with a record of how its weights were chosen, and on which rows."""
        fused = self.metadata.fused
        assert fused is not None
        chosen = fused.model_copy(update={"selection": dict(selection)})
        return replace(self, metadata=self.metadata.model_copy(update={"fused": chosen}))

    def apply_(self, model: nn.Module) -> None:
        """Add the updates into the weights of ``model``, in place; all of them or, on an error, none.

        Args:
            model: the base model (not a `PeftModel`). Updates apply to `Linear`, transformers' `Conv1D`, `Embedding`
                and convolution layers, and to the parameters that the configuration names.

        Raises:
            ModelError: a site is missing, of another kind or shape, or shares its weight with another layer.
        """
        from tangora.adapters.application import apply_  # deferred: an adapter is also fused without a model

        apply_(model, self)

    def save(
        self,
        path: str | os.PathLike[str],
        overwrite: bool = False,
        *,
        check: Callable[[Adapter, Path], Mapping[str, Any]] | None = None,
        format: str | None = None,
        beside: Mapping[str, Path] | None = None,
    ) -> None:
        """Write a directory that stock peft loads (for kind ``full``: ``delta.safetensors``), with ``tangora.json``.

        Dense updates of kind ``lora`` are written as factors of their numerical rank, each by an SVD.

        Args:
            path: the directory; or ``NAME.safetensors`` for a format of one file, with its record in the metadata.
            overwrite: replace one that exists.
            check: called with the adapter and its files before they are published. Its result is kept as
                ``metadata.verified``; if it raises, nothing is written.
            format: a registered format to use instead of that of the adapter's file, or of its kind.
            beside: path in the directory -> a file to copy there, such as a tokenizer's.

        Raises:
            ArgumentError: the format writes no file, or no directory.
            OutputError: the directory exists and ``overwrite`` is false, or it cannot be written.
            AdapterError: an update is not finite, or the format cannot represent it.
        """
        from tangora.adapters.saving import save  # deferred: the card's YAML, which reading does not need

        save(self, path, overwrite=overwrite, check=check, format_name=format, beside=beside)

    def verify(self) -> Verification:
        """Write the adapter to a scratch folder, read it through stock peft, and compare in float64, site by site.

        Raises:
            AdapterError: peft loads something else.
        """
        from tangora.adapters.in_peft.verification import verify  # deferred: peft takes seconds to import
        from tangora.adapters.saving import write_weights

        if not self.metadata.of_kind.in_peft:
            fix = "only low-rank adapters are read by peft"
            raise AdapterError(f"an adapter of kind {self.metadata.kind} cannot be verified", where="verify", fix=fix)
        with tempfile.TemporaryDirectory() as scratch:
            write_weights(self, Path(scratch))
            return verify(self, Path(scratch))


def load_beside(path: str | os.PathLike[str], model: str | None, revision: str | None = None) -> Adapter:
    """Read an adapter that may need its base's weights, which are those of a model: a folder, or in the Hub's cache.

    Args:
        path: as of `load`.
        model: the base's name where it is now.
        revision: of the base.

    Raises:
        FileError, AdapterError: as `load`.
    """
    source = located(path, "adapter")
    metadata = read_metadata(source) if source.is_dir() else None
    if (metadata is None or metadata.base.adapted is None) and not (source.exists() and needs_base(source)):
        return load(source)
    return load(source, stored_folder(model, revision))


def load(
    path: str | os.PathLike[str],
    base: str | os.PathLike[str] | Checkpoint | None = None,
    *,
    lazily: bool = False,
) -> Adapter:
    """Read an adapter: a PEFT directory, changes of all weights, or the files of any other installed format.

    Half precision is read into float32. φ₀ is read, or drawn again from its seed, if ``tangora.json`` records it.

    Args:
        path: the directory, or the file for a format with a single file; or a name on the Hub, such as
            ``org/name/subfolder@revision``.
        base: the folder of the adapter's base model, or its name on the Hub. Only needed if the updates depend on the
            base's weights: DoRA, PiSSA, OLoRA, biases that were saved whole, and every other kind of peft (LoHa, IA³,
            VeRA, OFT, ...). Only the tensors that are needed are read from it.
        lazily: leave plain LoRA factors in their file, which must not change, and read them whenever they are needed.

    Raises:
        FileError: a file is missing, truncated, or of a newer format.
        AdapterError: no format recognizes it, or several do; a tensor is not finite, or a pickle; the adapter is no
            change of the base's weights; φ₀ does not have the recorded fingerprint.

    >>> load("adapters/one").metadata.task
    'one'
    """
    place = located(path, "adapter")
    if not place.exists():
        fix = "give the folder that holds adapter_config.json, or org/name of the Hub"
        raise FileError("no such folder", where=place, fix=fix)
    metadata = read_metadata(place) if place.is_dir() else None
    adapter = format_of(place).read(place, metadata, open_base(base), lazily=lazily)
    if (source := source_of(place)) is not None:
        adapter = replace(adapter, source=source)
    return replace(adapter, heads=read_heads(place), records=read_records(place)) if place.is_dir() else adapter
