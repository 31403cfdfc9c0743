"""`Adapter`: what fine-tuning or fusion made, as a value; a plain PEFT directory in and out.

>>> import torch
>>> adapter = Adapter({"layer": LowRank(torch.ones(3, 1), torch.ones(1, 2))})
>>> round(adapter.task_vector.norm() ** 2, 6)
6.0
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangora import peft_files
from tangora._io import atomic_dir, read_safetensors, write_json, write_safetensors, write_text
from tangora.errors import AdapterError, ModelError
from tangora.metadata import FILE, BaseInfo, FusedInfo, InitialInfo, Metadata, Parent, read_metadata
from tangora.task_vector import Dense, LowRank, TaskVector, Update

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Adapter", "BaseInfo", "FusedInfo", "InitialInfo", "Metadata", "Parent", "load"]

DELTA, INITIAL = "delta.safetensors", "tangora_initial.safetensors"


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
    """

    updates: Mapping[str, Update]
    metadata: Metadata = field(default_factory=Metadata)
    config: Mapping[str, Any] | None = None
    initial: Mapping[str, LowRank] | None = None
    embeddings: frozenset[str] = frozenset()

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
        """Sha-256 (hex) of the sites and their updates, as they are factored, in float32."""
        total = hashlib.sha256()
        for site in sorted(self.updates):
            update = self.updates[site]
            if isinstance(update, Dense):
                tensors = [update.weight]
            else:
                tensors = [update.b, update.a, torch.tensor([update.scaling])]
            for tensor in tensors:
                total.update(f"{site}\x1f{tuple(tensor.shape)}\x1f".encode())
                total.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return total.hexdigest()

    def with_scores(self, scores: Mapping[str, float], *, split: str, **about: Any) -> Adapter:
        """The same adapter whose metadata says how it scored: ``{"split": ..., "tasks": scores, **about}``."""
        told = {"split": split, **about, "tasks": dict(scores)}
        return replace(self, metadata=self.metadata.model_copy(update={"scores": told}))

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Add the updates into the weights of ``model``, in place; all of them or, on an error, none.

        Args:
            model: the base model (not a `PeftModel`); `Linear`, transformers' `Conv1D` and `Embedding` take updates.

        Raises:
            ModelError: a site is missing, of another kind or shape, or shares its weight with another layer.
        """
        names = parameter_names(model, self)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for site, (name, transposed) in names.items():
            weight, delta = parameters[name], self.updates[site].dense()
            weight.data.add_((delta.T if transposed else delta).to(weight.device, weight.dtype))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write a directory that stock peft loads (kind ``full``: ``delta.safetensors``), with ``tangora.json``.

        Dense updates of kind ``lora`` are written as factors of their numerical rank, by an SVD of each.

        Raises:
            OutputError: the directory exists and ``overwrite`` is false, or it cannot be written.
            AdapterError: an update is not finite.
        """
        from tangora.report import card

        for site, update in self.updates.items():
            for tensor in (update.weight,) if isinstance(update, Dense) else (update.b, update.a):
                peft_files.finite(site, tensor, Path(path))
        with atomic_dir(path, overwrite=overwrite) as folder:
            if self.metadata.kind == "full":
                deltas = {name: update.dense().float().cpu() for name, update in self.updates.items()}
                write_safetensors(folder / DELTA, deltas)
            else:
                self._save_lora(folder)
            write_json(folder / FILE, self.metadata.model_dump(mode="json"))
            write_text(folder / "README.md", card.render(self))

    def _save_lora(self, folder: Path) -> None:
        updates = {site: _as_low_rank(update) for site, update in self.updates.items()}
        config = peft_files.write_config(updates, self.config, self.metadata.base.model)
        write_json(folder / peft_files.CONFIG, config)
        write_safetensors(folder / peft_files.WEIGHTS, peft_files.write_tensors(updates, self.embeddings))
        if self.initial is not None and not _can_redraw(self):
            write_safetensors(folder / INITIAL, _initial_tensors(self.initial))


def load(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter: any plain PEFT LoRA directory, with or without ``tangora.json``, or one of kind ``full``.

    Half precision is read into float32. φ₀ is drawn again from its seed, or read, where ``tangora.json`` tells of it.

    Raises:
        AdapterError: a file is missing, corrupt, not finite, of a newer format or a pickle; the adapter is not plain
            LoRA (DoRA, biases, ``modules_to_save``, ...); φ₀ does not have the fingerprint that was written down.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise AdapterError("no such folder", where=folder, fix="give the folder that holds adapter_config.json")
    metadata = read_metadata(folder)
    if metadata is not None and metadata.kind == "full":
        deltas = read_safetensors(folder / DELTA)
        updates = {name: Dense(peft_files.finite(name, t, folder / DELTA)) for name, t in sorted(deltas.items())}
        return Adapter(updates, metadata)
    low_rank, config, embeddings = peft_files.read_peft(folder)
    if metadata is None:
        base = BaseInfo(model=config.get("base_model_name_or_path") or None, revision=config.get("revision"))
        metadata = Metadata(base=base)
    adapter = Adapter(low_rank, metadata, config, None, embeddings)
    return replace(adapter, initial=_initial(adapter, folder))


def parameter_names(model: nn.Module, adapter: Adapter) -> dict[str, tuple[str, bool]]:
    """Site -> (the name of its parameter in ``model``, whether that is stored transposed), checked.

    Raises:
        ModelError: a site is missing, of another kind or shape, or shares its weight with another layer.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    users: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        users.setdefault(id(parameter), []).append(name)
    names: dict[str, tuple[str, bool]] = {}
    for site, update in adapter.updates.items():
        full = adapter.metadata.kind == "full"
        name, transposed = (site, False) if full else _weight_of(model, site)
        if name not in parameters:
            fix = "give the base model that the adapter was made for"
            raise ModelError("the model has no such parameter", where=name, fix=fix)
        shape = tuple(parameters[name].shape[::-1] if transposed else parameters[name].shape)
        if shape != update.shape:
            what = f"the model's weight is {shape}, the adapter's update {update.shape}"
            raise ModelError(what, where=site, fix="give the base model that the adapter was made for")
        if not full and (others := [other for other in users[id(parameters[name])] if other != name]):
            fix = "untie the two before applying, or load the adapter with peft"
            raise ModelError(f"the weight is shared with {others[0]}, which is not adapted", where=site, fix=fix)
        names[site] = (name, transposed)
    return names


def _weight_of(model: nn.Module, site: str) -> tuple[str, bool]:
    from torch import nn

    try:
        module = model.get_submodule(site)
    except AttributeError:
        fix = "give the base model that the adapter was made for, not one wrapped by peft"
        raise ModelError("the model has no such layer", where=site, fix=fix) from None
    kind = type(module).__name__
    if not isinstance(module, nn.Linear | nn.Embedding) and kind != "Conv1D":
        fix = "Linear, Conv1D and Embedding can be adapted; unwrap a PeftModel with get_base_model()"
        raise ModelError("no update can be added to this kind of layer", got=kind, where=site, fix=fix)
    return f"{site}.weight", not isinstance(module, nn.Linear)


def _as_low_rank(update: Update) -> LowRank:
    if isinstance(update, Dense):
        return update.low_rank()
    # a loader may take an alpha of 0 for one that is missing
    return update if update.scaling != 0.0 else LowRank(torch.zeros_like(update.b), update.a)


def _initial(adapter: Adapter, folder: Path) -> dict[str, LowRank] | None:
    told = adapter.metadata.initial
    if (folder / INITIAL).exists():
        initial: dict[str, LowRank] | None = _read_initial(folder / INITIAL)
    else:
        initial = _redraw(adapter)
    if initial is None or told is None or told.fingerprint is None:
        return initial
    from tangora.initial import fingerprint

    if (found := fingerprint(initial)) != told.fingerprint:
        what = f"φ₀ has fingerprint {found[:12]}, {FILE} says {told.fingerprint[:12]}"
        raise AdapterError(what, where=folder, fix="the files are not of one adapter: copy the whole folder again")
    return initial


def _redraw(adapter: Adapter) -> dict[str, LowRank] | None:
    """φ₀ from its seed; None where that is not how it was made."""
    from tangora.initial import DRAWN, draw_factors

    told = adapter.metadata.initial
    if told is None or told.init not in DRAWN:
        return None
    initial: dict[str, LowRank] = {}
    for site, update in adapter.updates.items():
        if not isinstance(update, LowRank):
            return None
        initial[site] = draw_factors(
            told.seed,
            site,
            update.rank,
            (update.shape[0], update.shape[1]),
            kind=DRAWN[told.init],
            embedding=site in adapter.embeddings,
            task=adapter.metadata.task if told.a_init == "per_task" else None,
            scaling=update.scaling,
        )
    return initial


def _can_redraw(adapter: Adapter) -> bool:
    from tangora.initial import fingerprint

    drawn, initial = _redraw(adapter), adapter.initial or {}
    if drawn is None or fingerprint(drawn) != fingerprint(initial):
        return False
    return all(drawn[site].scaling == start.scaling for site, start in adapter.start.items())


def _initial_tensors(initial: Mapping[str, LowRank]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for site, update in initial.items():
        scaling = torch.tensor(update.scaling, dtype=torch.float64)
        tensors |= {f"{site}.A": update.a.clone(), f"{site}.B": update.b.clone(), f"{site}.scaling": scaling}
    return tensors


def _read_initial(path: Path) -> dict[str, LowRank]:
    tensors = {name: peft_files.finite(name, tensor, path) for name, tensor in read_safetensors(path).items()}
    sites = sorted({name.rpartition(".")[0] for name in tensors})
    try:
        return {s: LowRank(tensors[f"{s}.B"], tensors[f"{s}.A"], float(tensors[f"{s}.scaling"])) for s in sites}
    except KeyError as cause:
        raise AdapterError("a factor of φ₀ is missing", got=cause.args[0], where=path, fix="copy it again") from None
