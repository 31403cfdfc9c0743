"""Weight parameters that adapters saved whole like any other change, if their base is given: W + F({Wₜ − W}; λ).

``modules_to_save`` replaces a parameter. Without the base, its change is not known, and the value that the parents
agree on is kept. With the base, a method fuses the changes by its weights, so that all weights of zero give the base.
Embeddings of tokens and norms may then differ among the parents. Another module that differs may be the head of a task,
which is not one parameter: see `tangora.fusion.heads`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangora.adapters.adapter import Adapter
from tangora.adapters.formats.lora.layers import expert_of
from tangora.adapters.formats.lora.settings import is_bias_alone
from tangora.adapters.metadata import Metadata
from tangora.errors import FusionError
from tangora.storage.names import Names
from tangora.storage.tensors import read_rows
from tangora.storage.vocabulary import is_vocabulary
from tangora.updates.task_vector import Dense

if TYPE_CHECKING:
    from tangora.fusion.heads import Heads
    from tangora.storage.checkpoint import Checkpoint
    from tangora.storage.header import Stored

__all__ = ["base_values", "changes", "moved", "name_in", "sum_of_changes"]


def base_values(base: Checkpoint, adapters: Sequence[Adapter], heads: Heads | None) -> dict[str, Tensor]:
    """Return the base's values of the parameters that are weighted as changes of it.

    Args:
        base: the adapters' base.
        adapters: the parents.
        heads: how heads that differ are treated, if the caller chose it.
    """
    if adapters[0].metadata.of_kind.by_parameter:
        return {}
    values: dict[str, Tensor] = {}
    for name in sorted({name for adapter in adapters for name in adapter.whole if _is_module(name, adapter)}):
        given = [adapter.whole[name] for adapter in adapters if name in adapter.whole]
        agree = len(given) == len(adapters) and all(torch.equal(given[0], value) for value in given[1:])
        stored = base.find(name_in(base, name, adapters))
        if stored is None or any(not _fits(name, value, stored) for value in given):
            continue
        if agree or (heads is None and _is_of_every_task(name)):
            value = read_rows(stored, 0, stored.shape[0]).reshape(stored.shape)
            longest = max(given, key=len)
            if len(longest) > len(value):
                _refuse_other_rows(name, len(value), given)
                value = torch.cat([value, longest[len(value) :].to(value.dtype)])
            values[name] = value
    return values


def _is_of_every_task(name: str) -> bool:
    """Return whether a parameter is an embedding of tokens, an output head over them, or a norm's: no task's own."""
    layer = name.rpartition(".")[0].rpartition(".")[2].lower()
    return is_vocabulary(name) or "norm" in layer or layer.startswith("ln_")


def _fits(name: str, value: Tensor, stored: Stored) -> bool:
    """Return whether a value has the stored shape, or that with more rows for tokens."""
    more = is_vocabulary(name) and value.shape[1:] == stored.shape[1:] and len(value) > stored.shape[0]
    return tuple(value.shape) == stored.shape or more


def _refuse_other_rows(name: str, rows: int, values: Sequence[Tensor]) -> None:
    """Refuse adapters that have different rows for the tokens that the base does not have."""
    if any(not torch.equal(value[rows:], values[0][rows:]) for value in values[1:]):
        what = f"the adapters' rows of tokens beyond the base's {rows} differ"
        fix = "train them on one base with these tokens, which was saved after it was resized, and give that"
        raise FusionError(what, got=[len(value) for value in values], where=name, fix=fix)


def name_in(base: Checkpoint, name: str, adapters: Sequence[Adapter]) -> str:
    """Return the base's name for a parameter that an adapter saved whole; the adapter's own name if it has none."""
    updates = adapters[0].updates.items()
    sites = {f"{site}.weight": tuple(u.shape) for site, u in updates if len(u.shape) > 1 and expert_of(site) is None}
    sites = {tensor: shape for tensor, shape in sites.items() if not is_vocabulary(tensor)}
    try:
        return Names(base, sites or {name: None}, adapters[0].config)(name)
    except FusionError:
        return name


def _is_module(name: str, adapter: Adapter) -> bool:
    return not is_bias_alone(name, adapter.config)


def sum_of_changes(
    values: Mapping[str, Tensor], adapters: Sequence[Adapter], coefficients: Sequence[float]
) -> dict[str, Tensor]:
    """Return ``W + Σ cₜ (Wₜ − W)``, computed in float64.

    Args:
        values: parameter -> W.
        adapters: the parents; one without the parameter left it unchanged.
        coefficients: cₜ of a linear method.
    """
    fused: dict[str, Tensor] = {}
    for name, value in values.items():
        total = value.double().clone()
        for adapter, coefficient in zip(adapters, coefficients, strict=True):
            if name in adapter.whole:
                total += coefficient * (adapter.whole[name].double() - value.double())
        fused[name] = total.to(value.dtype)
    return fused


def changes(values: Mapping[str, Tensor], adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return each parent's changes of the base's parameters as an adapter of kind ``full``, for any method.

    Args:
        values: parameter -> the base's value.
        adapters: the parents; one without the parameter left it unchanged.
    """
    parts = []
    for adapter in adapters:
        new = {name: adapter.whole.get(name, value) for name, value in values.items()}
        updates = {name: Dense(new[name].to(value.dtype) - value) for name, value in values.items()}
        parts.append(Adapter(updates, Metadata(kind="full", mode="full", train="full")))
    return parts


def moved(values: Mapping[str, Tensor], fused: Adapter) -> dict[str, Tensor]:
    """Return the base's values plus the fused changes."""
    return {name: value + fused.updates[name].dense().reshape(value.shape) for name, value in values.items()}
