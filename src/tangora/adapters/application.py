"""Add an adapter's updates into the weights of a loaded model, after checking where and how each of them goes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tangora.adapters.beside import beside
from tangora.adapters.formats.lora.layers import expert_of, is_bias, layer_of
from tangora.adapters.formats.lora.settings import parameters_of
from tangora.errors import ModelError
from tangora.storage.held import held_names
from tangora.storage.packed import is_packed

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.updates.update import Update

__all__ = ["Slot", "applied", "apply_", "find_slots"]

_FIX = "give the base model that the adapter was made for"


@dataclass(frozen=True)
class Slot:
    """Where an update is added.

    Attributes:
        name: the parameter.
        transposed: whether the parameter is stored as the transpose of the update.
        expert: the index of one expert, if the parameter holds several.
    """

    name: str
    transposed: bool = False
    expert: int | None = None

    def view(self, parameter: Tensor) -> Tensor:
        """Return a view of the part of the parameter that the update is added to, in the update's orientation."""
        part = parameter.data if self.expert is None else parameter.data[self.expert]
        return part.T if self.transposed else part

    def add_(self, parameter: Tensor, update: Update) -> None:
        """Add an update to the parameter, in its dtype."""
        part = self.view(parameter)
        part.add_(update.dense().reshape(part.shape).to(part.device, part.dtype))


@torch.no_grad()
def apply_(model: nn.Module, adapter: Adapter) -> None:
    """Add the updates, and set the parameters that were saved whole; all of it or, on an error, nothing."""
    slots = find_slots(model, adapter)
    if held := sorted(held_names(model).keys() & (adapter.whole.keys() | {slot.name for slot in slots.values()})):
        what = "the weight is held in another dtype, in which the update would be rounded away"
        raise ModelError(
            what, where=held[0], fix="load the base with base.weights_dtype: float32, and without quantization"
        )
    _add_(model, adapter, slots)


def _add_(model: nn.Module, adapter: Adapter, slots: Mapping[str, Slot], without: Collection[str] = ()) -> None:
    """Add updates and set parameters, except those of some parameters."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in adapter.whole.keys() - set(without):
        parameters[name].data.copy_(adapter.whole[name])
    for site, slot in slots.items():
        if slot.name not in without:
            slot.add_(parameters[slot.name], adapter.updates[site])


@contextlib.contextmanager
def applied(model: nn.Module, adapter: Adapter, saved: dict[str, Tensor] | None = None) -> Iterator[None]:
    """Add the adapter's updates into the model's weights for the length of the block.

    Weights that are held in half precision stay as they are, since an update would be rounded away in them. A low-rank
    update of such a layer is computed beside it; any other makes the weight a float32 one (`tangora.adapters.beside`).

    Args:
        model: the adapter's base model, in float32 or held by `tangora.storage.held`.
        adapter: of any kind.
        saved: the original weights kept from earlier calls with the same model; filled here. A caller that owns the
            model may clear it in the block: the weights then stay as they are.
    """
    saved = {} if saved is None else saved
    parameters = dict(model.named_parameters(remove_duplicate=False))
    slots = find_slots(model, adapter)
    all_touched = {slot.name for slot in slots.values()} | adapter.whole.keys()
    apart = held_names(model).keys() & all_touched
    touched = all_touched - apart
    for name in touched:
        if name not in saved:
            saved[name] = parameters[name].detach().clone()
    try:
        with torch.no_grad():
            _add_(model, adapter, slots, apart)
        with beside(model, adapter, slots, apart):
            yield
    finally:
        for name in touched & saved.keys():
            parameters[name].data.copy_(saved[name])


def find_slots(model: nn.Module, adapter: Adapter) -> dict[str, Slot]:
    """Return site -> the slot of its update in ``model``, checked; check the parameters that are replaced whole too.

    Raises:
        ModelError: a site is missing, of another kind or shape, or shares its weight with another layer.
    """
    if adapter.metadata.of_kind.adds_modules:
        what = "parameters of added modules are no change of the base's weights"
        raise ModelError(what, got=adapter.metadata.kind, where="apply", fix="load the network with tangora.load_model")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    users: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        users.setdefault(id(parameter), []).append(name)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    shapes |= {f"{n}.weight": (m.out_features, m.in_features) for n, m in model.named_modules() if is_packed(m)}
    for name, value in adapter.whole.items():
        _require(name, parameters)
        if shapes[name] != tuple(value.shape):
            what = f"the model's parameter is {shapes[name]}, the adapter's {tuple(value.shape)}"
            raise ModelError(what, where=name, fix=_FIX)
    slots: dict[str, Slot] = {}
    for site, update in adapter.updates.items():
        full = adapter.metadata.of_kind.by_parameter
        slots[site] = Slot(site) if full or is_bias(site, update) else _find_slot(model, site, adapter)
        name = slots[site].name
        _require(name, parameters)
        _check_shape(site, shapes[name], slots[site], update.shape, full)
    return slots if adapter.metadata.of_kind.by_parameter else _once(slots, parameters, users, adapter)


def _once(
    slots: dict[str, Slot], parameters: Mapping[str, Tensor], users: Mapping[int, list[str]], adapter: Adapter
) -> dict[str, Slot]:
    """Return one slot for each parameter that several adapted layers share, whose updates must be one change of it."""
    kept: dict[str, Slot] = {}
    done: set[int] = set()
    for site, slot in slots.items():
        shared = id(parameters[slot.name])
        if len(users[shared]) == 1:
            kept[site] = slot
        elif shared not in done:
            done.add(shared)
            kept[site] = slot
            sharing = [s for s in slots if id(parameters[slots[s].name]) == shared]
            alike = {slots[s].name for s in sharing if _same(s, site, slots, adapter)}
            if odd := [name for name in users[shared] if name not in alike]:
                what = f"the weight is shared with {odd[0]}, which is not adapted alike"
                raise ModelError(what, where=site, fix="untie the two before applying, or load the adapter with peft")
    return kept


def _same(one: str, other: str, slots: Mapping[str, Slot], adapter: Adapter) -> bool:
    """Return whether the updates of two sites are the same change of the parameter that they share."""
    if one == other:
        return True
    mine, theirs = adapter.updates[one].dense(), adapter.updates[other].dense()
    turned = slots[one].transposed != slots[other].transposed
    return torch.equal(mine, theirs.T if turned and theirs.ndim == 2 else theirs)


def _require(name: str, parameters: Mapping[str, Tensor]) -> None:
    if name not in parameters:
        raise ModelError("the model has no such parameter", where=name, fix=_FIX)


def _check_shape(site: str, own: tuple[int, ...], slot: Slot, shape: tuple[int, ...], full: bool) -> None:
    part = own if slot.expert is None else own[1:]
    part = part[::-1] if slot.transposed else part
    flat = (part[0], math.prod(part[1:])) if len(part) > 2 and not full else part
    has_expert = slot.expert is None or slot.expert < own[0]
    if flat != tuple(shape) or not has_expert:
        what = f"the model's weight is {part}, the adapter's update {tuple(shape)}"
        raise ModelError(what, where=site, fix=_FIX)


def _find_slot(model: nn.Module, site: str, adapter: Adapter) -> Slot:
    try:
        module = model.get_submodule(layer_of(site))
    except AttributeError:
        fix = "give the base model that the adapter was made for, not one wrapped by peft"
        raise ModelError("the model has no such layer", where=site, fix=fix) from None
    if expert := expert_of(site):
        return _parameter_slot(module, site, expert[1], adapter)
    kind = type(module).__name__
    convolution = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
    if not isinstance(module, nn.Linear | nn.Embedding) and kind != "Conv1D" and not convolution:
        fix = "Linear, Conv1D, Embedding and convolutions can be adapted; unwrap a PeftModel with get_base_model()"
        raise ModelError("no update can be added to this kind of layer", got=kind, where=site, fix=fix)
    return Slot(f"{site}.weight", isinstance(module, nn.Embedding) or kind == "Conv1D")


def _parameter_slot(module: nn.Module, site: str, index: int, adapter: Adapter) -> Slot:
    """Find the parameter of a module: peft wraps one after the other in the order of their definition."""
    layer = layer_of(site)
    named = parameters_of(adapter.config, layer)
    wrapped = [n for n, _ in module.named_parameters(prefix=layer, recurse=False) if n in named]
    depth = site.count(".base_layer")
    if depth >= len(wrapped):
        raise ModelError("the model has no such parameter", where=site, fix=_FIX)
    name = wrapped[-1 - depth]
    if getattr(module, name.rpartition(".")[2]).ndim == 2:
        return Slot(name)
    return Slot(name, bool(getattr(module, "is_transposed", False)), index)
