"""`Adapter`: what fine-tuning or fusion made, as a value; a plain PEFT directory in and out.

>>> import torch
>>> adapter = Adapter({"layer": LowRank(torch.ones(3, 1), torch.ones(1, 2))})
>>> round(adapter.task_vector.norm() ** 2, 6)
6.0
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangora.adapters.formats import lora as peft_files
from tangora.adapters.formats.lora.based import open_base
from tangora.adapters.formats.lora.layers import is_bias
from tangora.adapters.heads import read_heads, write_heads
from tangora.adapters.metadata import FILE, BaseInfo, FusedInfo, InitialInfo, Metadata, Parent, read_metadata
from tangora.adapters.start import INITIAL, can_redraw, initial_tensors, read_initial
from tangora.errors import AdapterError
from tangora.storage.tensors import finite
from tangora.support.files import atomic_dir, inside, read_safetensors, write_json, write_safetensors, write_text
from tangora.updates.task_vector import Dense, Factors, LowRank, TaskVector, Update
from tangora.updates.text import joined, tensor_digest

if TYPE_CHECKING:
    from torch import nn

    from tangora.adapters.in_peft.verification import Verification
    from tangora.storage.checkpoint import Checkpoint

__all__ = ["Adapter", "BaseInfo", "FusedInfo", "InitialInfo", "Metadata", "Parent", "load"]

DELTA = "delta.safetensors"


@dataclass(frozen=True, eq=False)
class Adapter:
    """Updates of a base model's weights, with where they come from.

    Args:
        updates: site -> update, absolute: what is added to the base weight.
        metadata: what ``tangora.json`` says.
        config: ``adapter_config.json`` to start from on saving; ranks, scalings and targets are adjusted to the
            updates there. None for kind ``full``, or where there is none yet.
        initial: φ₀ per site (``scaling`` is that of the site); None where it is not known.
        embeddings: the sites that are `Embedding` layers (their update is ``[dim, vocabulary]``).
        kernels: site -> ``(in, k₁, k₂, …)`` of a convolution (its update is ``[out, in·k₁·k₂…]``).
        whole: parameter of the base -> the value that replaces it: ``modules_to_save``, biases that were saved whole.
        heads: task -> such values of which an application chooses one task's; none of them acts by itself.

    >>> adapter = Adapter({"layer": LowRank(torch.ones(3, 1), torch.ones(1, 2), 0.5)})
    >>> adapter.task_vector
    TaskVector(1 sites, norm 1.225)
    """

    updates: Mapping[str, Update]
    metadata: Metadata = field(default_factory=Metadata)
    config: Mapping[str, Any] | None = None
    initial: Mapping[str, LowRank] | None = None
    embeddings: frozenset[str] = frozenset()
    kernels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @cached_property
    def start(self) -> Mapping[str, LowRank]:
        """``s · B₀ A₀`` at the sites where it is not zero: what the adapter added before any training."""
        initial = self.initial or {}
        return {site: u for site, u in initial.items() if bool(u.b.any()) and bool(u.a.any())}

    @cached_property
    def task_vector(self) -> TaskVector:
        """What training changed: ``ΔW − s · B₀ A₀``, which is the update itself where B₀ = 0."""
        updates = TaskVector(self.updates)
        return updates - TaskVector(self.start) if self.start else updates

    @cached_property
    def fingerprint(self) -> str:
        """Sha-256 (hex) of the sites and their updates, as they are factored, and of what is saved whole."""
        total = hashlib.sha256()
        for site in sorted(self.updates):
            total.update(joined(site, self.updates[site].digest()).encode())
        for name, value in sorted(self.whole.items()):
            total.update(joined("whole", name, tuple(value.shape), tensor_digest(value)).encode())
        return total.hexdigest()

    def with_scores(self, scores: Mapping[str, float], *, split: str, **about: Any) -> Adapter:
        """The same adapter whose metadata says how it scored: ``{"split": ..., "tasks": scores, **about}``."""
        told = {"split": split, **about, "tasks": dict(scores)}
        return replace(self, metadata=self.metadata.model_copy(update={"scores": told}))

    def with_selection(self, selection: Mapping[str, Any]) -> Adapter:
        """The same fused adapter whose metadata says who chose its weights, and on which rows."""
        fused = self.metadata.fused
        assert fused is not None
        told = fused.model_copy(update={"selection": dict(selection)})
        return replace(self, metadata=self.metadata.model_copy(update={"fused": told}))

    def apply_(self, model: nn.Module) -> None:
        """Add the updates into the weights of ``model``, in place; all of them or, on an error, none.

        Args:
            model: the base model (not a `PeftModel`); `Linear`, transformers' `Conv1D`, `Embedding` and convolutions
                take updates, and the parameters that the configuration names.

        Raises:
            ModelError: a site is missing, of another kind or shape, or shares its weight with another layer.
        """
        from tangora.adapters.application import apply_

        apply_(model, self)

    def save(
        self,
        path: str | os.PathLike[str],
        overwrite: bool = False,
        *,
        check: Callable[[Adapter, Path], Mapping[str, Any]] | None = None,
    ) -> None:
        """Write a directory that stock peft loads (kind ``full``: ``delta.safetensors``), with ``tangora.json``.

        Dense updates of kind ``lora`` are written as factors of their numerical rank, by an SVD of each.

        Args:
            path: the directory.
            overwrite: replace one that exists.
            check: called with the adapter and its files before they appear; what it returns is kept as
                ``metadata.verified``, and nothing is written where it raises.

        Raises:
            OutputError: the directory exists and ``overwrite`` is false, or it cannot be written.
            AdapterError: an update is not finite, or peft has no file for it.
        """
        from tangora.adapters import card

        self._refuse_infinity(Path(path))
        with atomic_dir(path, overwrite=overwrite) as folder:
            if self.metadata.kind == "full":
                deltas = {name: update.dense().float().cpu() for name, update in self.updates.items()}
                write_safetensors(folder / DELTA, deltas)
            else:
                self._save_lora(folder)
            verified = check(self, folder) if check is not None else None
            told = replace(self, metadata=self.metadata.model_copy(update={"verified": verified}))
            write_json(folder / FILE, told.metadata.model_dump(mode="json"))
            write_text(folder / "README.md", card.render(told))

    def verify(self) -> Verification:
        """Write the adapter to a scratch folder, read it through stock peft, and compare in float64, site by site.

        Raises:
            AdapterError: peft loads something else.
        """
        from tangora.adapters.in_peft.verification import verify

        if self.metadata.kind == "full":
            fix = "only low-rank adapters are read by peft"
            raise AdapterError("an adapter of kind full cannot be verified", where="verify", fix=fix)
        with tempfile.TemporaryDirectory() as scratch:
            self._save_lora(Path(scratch))
            return verify(self, Path(scratch))

    def _refuse_infinity(self, path: Path) -> None:
        for name, tensor in self.whole.items():
            finite(name, tensor, path)
        for site, update in self.updates.items():
            factors = update.factors()
            for tensor in (update.dense(),) if factors is None else (factors.b, factors.a):
                finite(site, tensor, path)

    def _save_lora(self, folder: Path) -> None:
        content = self.content()
        config = peft_files.write_config(content, self.config, self.metadata.base.model)
        write_json(folder / peft_files.CONFIG, config)
        write_safetensors(folder / peft_files.WEIGHTS, peft_files.write_tensors(content))
        if self.initial is not None and not can_redraw(self):
            write_safetensors(folder / INITIAL, initial_tensors(self.initial))
        write_heads(folder, self.heads)

    def content(self) -> peft_files.Content:
        """What the files of the adapter hold: every update as factors, biases apart."""
        biases = {site: update for site, update in self.updates.items() if is_bias(site, update)}
        return peft_files.Content(
            updates={site: _as_factors(u) for site, u in self.updates.items() if site not in biases},
            biases={site.removesuffix(".bias"): update.dense() for site, update in biases.items()},
            embeddings=self.embeddings,
            kernels=self.kernels,
            whole=self.whole,
        )


def load(
    path: str | os.PathLike[str],
    base: str | os.PathLike[str] | Checkpoint | None = None,
    *,
    lazily: bool = False,
) -> Adapter:
    """Read an adapter: any PEFT LoRA directory, with or without ``tangora.json``, or one of kind ``full``.

    Half precision is read into float32. φ₀ is drawn again from its seed, or read, where ``tangora.json`` tells of it.

    Args:
        path: the directory.
        base: the folder of the model that it is for. Only needed where the updates depend on the base's weights: DoRA,
            PiSSA, OLoRA, and biases that were saved whole; of these weights single tensors are read.
        lazily: plain LoRA factors stay in their file, which must not change, and are read whenever they are asked for.

    Raises:
        AdapterError: a file is missing, corrupt, not finite, of a newer format or a pickle; the adapter is no change of
            the base's weights; φ₀ does not have the fingerprint that was written down.

    >>> load("adapters/one").metadata.task
    'one'
    """
    folder = Path(path)
    if not folder.is_dir():
        raise AdapterError("no such folder", where=folder, fix="give the folder that holds adapter_config.json")
    metadata = read_metadata(folder)
    if metadata is not None and metadata.kind == "full":
        deltas = read_safetensors(inside(folder, DELTA))
        updates = {name: Dense(finite(name, t, folder / DELTA)) for name, t in sorted(deltas.items())}
        return Adapter(updates, metadata)
    read = peft_files.read_peft(folder, open_base(base), lazily=lazily)
    if metadata is None:
        told = BaseInfo(model=read.config.get("base_model_name_or_path") or None, revision=read.config.get("revision"))
        metadata = Metadata(base=told)
    heads = read_heads(folder)
    adapter = Adapter(read.updates, metadata, read.config, None, read.embeddings, read.kernels, read.whole, heads)
    return replace(adapter, initial=read_initial(adapter, folder))


def _as_factors(update: Update) -> Factors:
    factors = update.factors()
    if factors is None:
        return Dense(update.dense()).low_rank()
    # a loader may take an alpha of 0 for one that is missing
    return factors if factors.scaling != 0.0 else LowRank(torch.zeros_like(factors.b), factors.a)
