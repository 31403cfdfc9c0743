"""The part of an adapter that all servers read: factors of linear layers, with one configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from tangora.adapters.formats.lora.base_dependent import DoraUpdate
from tangora.adapters.formats.lora.layers import expert_of, is_bias
from tangora.adapters.formats.lora.writing import content_of
from tangora.errors import AdapterError
from tangora.serving.contract import MERGE

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.updates.task_vector import Update

__all__ = ["plain_lora", "refuse_whole"]

_KEPT = ("task_type", "fan_in_fan_out", "modules_to_save", "revision", "auto_mapping")
"""Settings of ``adapter_config.json`` that are passed on. All others are of the training, or follow from the factors;
a server may refuse one that it does not have."""
_SELECTING = ("layers_to_transform", "layers_pattern", "exclude_modules")


def plain_lora(adapter: Adapter, to: str) -> tuple[Adapter, list[str]]:
    """Return the adapter as low-rank updates of layers alone, and notes; heads and records stay behind.

    Args:
        adapter: of any kind.
        to: the target's name, for messages.

    Raises:
        AdapterError: it is more than that. The message names the reason and the way out.
    """
    kind = adapter.metadata.of_kind
    if not kind.has_factors:
        fix = "only its own mode can put it to use: tangora predict" if kind.adds_modules else MERGE
        raise AdapterError(f"{to} reads low-rank adapters", got=kind.summary, where="export", fix=fix)
    for site, update in adapter.updates.items():
        if reason := _more_than_factors(adapter, site, update):
            raise AdapterError(
                f"{to} reads factors of linear layers and embeddings, not {reason}", where=site, fix=MERGE
            )
    if not adapter.updates:
        raise AdapterError("the adapter changes nothing", where="export", fix="give an adapter with updates")
    if adapter.heads:
        fix = "answer with tangora predict, which picks the head of a task"
        what = f"{to} reads no heads of tasks, and without its head the adapter has no answers"
        raise AdapterError(what, got=", ".join(sorted(adapter.heads)), where="heads", fix=fix)
    notes = []
    if adapter.metadata.linearize == "model":
        notes.append(
            "trained as a linear expansion of the network; a server computes the ordinary network with these updates, "
            "whose answers are others: score it first, with tangora evaluate"
        )
    updates = cast("Mapping[str, Update]", content_of(adapter).updates)  # a dense update becomes factors
    plain = replace(adapter, updates=updates, records={})
    return plain.with_details(config=_config(adapter.config, adapter.metadata.base.model), initial=None), notes


def _more_than_factors(adapter: Adapter, site: str, update: Any) -> str | None:
    if isinstance(update, DoraUpdate):
        return "DoRA, which rescales the rows of the weight"
    if is_bias(site, update):
        return "a change of a bias (lora_bias)"
    if expert_of(site) is not None:
        return "a parameter with experts"
    return "a convolution" if site in adapter.kernels else None


def _config(config: Mapping[str, Any] | None, base: str | None) -> dict[str, Any] | None:
    if config is None:
        return None
    named = {"base_model_name_or_path": config.get("base_model_name_or_path") or base}
    kept = {key: config[key] for key in _KEPT if config.get(key) is not None}
    if isinstance(config.get("target_modules"), (list, tuple)) and not any(config.get(key) for key in _SELECTING):
        kept["target_modules"] = list(config["target_modules"])
    return {"peft_type": "LORA", "bias": "none", **named, **kept}


def refuse_whole(adapter: Adapter, to: str) -> None:
    """Refuse parameters that are saved whole.

    Raises:
        AdapterError: names one.
    """
    if adapter.whole:
        what = f"{to} reads no parameters that are saved whole (modules_to_save, biases, new tokens)"
        raise AdapterError(what, got=", ".join(sorted(adapter.whole)[:5]), where="export", fix=MERGE)
