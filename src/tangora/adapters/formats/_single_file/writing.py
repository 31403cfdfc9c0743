"""Write an adapter into one file: bring it into the format's layout, then name its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangora.adapters.formats.lora.layers import is_bias
from tangora.adapters.layouts.common import adopted
from tangora.adapters.layouts.details import SingleFile
from tangora.adapters.layouts.lookup import name_of, writes_original
from tangora.adapters.layouts.models import MODELS
from tangora.adapters.layouts.pieces import has_fused, join_pieces, split_fused
from tangora.adapters.stored import filled
from tangora.errors import AdapterError
from tangora.support.threads import in_threads
from tangora.updates.task_vector import Dense, Factors, LowRank, Update

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["Style", "prepared", "tensors_of"]


@dataclass(frozen=True)
class Style:
    """How a format names the factors.

    Attributes:
        a, b: after the name of the module.
        alpha: whether alpha is written; else it is the rank, which readers assume, and the scaling is in B.
        uniform: whether all sites of a component must have one rank, for readers that take one rank for all.
    """

    a: str
    b: str
    alpha: bool
    uniform: bool = False


def prepared(adapter: Adapter, format_name: str, style: Style) -> Adapter:
    """Return the adapter as the format writes it: the same updates at the format's modules, as factors.

    Raises:
        AdapterError: the format has no names for its modules.
    """
    adapter = adopted(adapter)
    file = adapter.details.file
    if file is None or (file.format != format_name and not file.models):
        return _without_model(adapter, format_name)
    _refuse_biases(adapter, format_name)
    updates: Mapping[str, Update] = adapter.updates
    if file.models:
        model = file.models[0]
        originals = any(writes_original(model, format_name, one) for one in MODELS[model].components)
        if has_fused(updates, model) and not originals:
            updates = split_fused(updates, model)
        updates = join_pieces(updates, model, format_name)
    factors = dict(zip(updates, in_threads(_as_factors, list(updates.values())), strict=True))
    plain = {site: _scaled(update, style) for site, update in factors.items()}
    if style.uniform:
        plain = _uniform(plain)
    return replace(adapter, updates=plain).with_details(file=replace(file, format=format_name))


def _without_model(adapter: Adapter, format_name: str) -> Adapter:
    file = adapter.details.file
    if file is None:
        got, fix = min(adapter.updates, default=None), "save it as a folder, in the format of its kind"
        raise AdapterError("its modules are those of no known model of a single file", got=got, where="format", fix=fix)
    what = f"the names of an unknown model cannot be converted from {file.format} to {format_name}"
    raise AdapterError(what, got=min(adapter.updates), where="format", fix=f"write {file.format}")


def _refuse_biases(adapter: Adapter, format_name: str) -> None:
    odd = [site for site, update in adapter.updates.items() if is_bias(site, update)] + sorted(adapter.whole)
    odd += sorted(adapter.embeddings)
    if odd:
        what = f"{format_name} has no names for biases, embeddings, and parameters that are saved whole"
        raise AdapterError(what, got=odd[0], where="format", fix="save it as a folder, in the format of its kind")


def _as_factors(update: Update) -> Factors:
    factors = update.factors()
    return Dense(update.dense()).low_rank() if factors is None else factors


def _scaled(update: Factors, style: Style) -> LowRank:
    """Return the factors with a scaling that the format can hold; any other is multiplied into B, which rounds once.

    Alpha is written in float32, which all readers have, and as a positive number: one reader halves it in a loop that
    does not end for others.
    """
    scaling, b = update.scaling, update.b
    alpha = scaling * update.rank
    held = style.alpha and alpha > 0 and _float32(alpha) == alpha and alpha / update.rank == scaling
    if scaling != 1.0 and not held:
        b, scaling = (b.double() * scaling).to(b.dtype), 1.0
    return LowRank(b, update.a, scaling)


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def _uniform(updates: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Return the updates with zeros up to the largest rank of their component."""
    largest: dict[str, int] = {}
    for site, update in updates.items():
        component = site.partition(".")[0]
        largest[component] = max(largest.get(component, 0), update.rank)
    return {site: filled(update, largest[site.partition(".")[0]], update.scaling) for site, update in updates.items()}


def tensors_of(adapter: Adapter, style: Style) -> dict[str, Tensor]:
    """Return the tensors of a file.

    Args:
        adapter: as `prepared` returns it, perhaps rounded.
        style: of the format.

    Raises:
        AdapterError: the format has no name for a module.
    """
    file, dtype = adapter.details.file, adapter.details.dtype or torch.float32
    assert file is not None
    tensors: dict[str, Tensor] = {}
    for site, update in adapter.updates.items():
        factors, name = update.factors(), _name(site, file)
        assert factors is not None
        a, b = factors.a, factors.b
        if kernel := adapter.kernels.get(site):
            a = a.reshape(len(a), *kernel)
            b = b.reshape(*b.shape, *(1,) * (len(kernel) - 1))
        # Copies: modules that were split share their A, and safetensors refuses tensors that share memory.
        tensors[f"{name}.{style.a}.weight"] = a.to("cpu", dtype, copy=True)
        tensors[f"{name}.{style.b}.weight"] = b.to("cpu", dtype, copy=True)
        if style.alpha:
            tensors[f"{name}.alpha"] = torch.tensor(factors.scaling * factors.rank, dtype=torch.float32)
        elif not math.isclose(factors.scaling, 1.0, rel_tol=0, abs_tol=0):
            raise AdapterError("a scaling that the format cannot hold", got=factors.scaling, where=site)
    return tensors


def _name(site: str, file: SingleFile) -> str:
    if not file.models:
        return f"base_model.model.{site}" if file.format == "peft" else site
    names = (name_of(site, model, file.format) for model in file.models)
    if (name := next((one for one in names if one is not None), None)) is not None:
        return name
    component = site.partition(".")[0]
    what = f"{file.format} has no name for this in {file.title}"
    fix = "write kohya, diffusers or comfy"
    raise AdapterError(what, got=site, where=f"the component {component}", fix=fix)
