"""Text Generation Inference (TGI): a folder of peft, complete in every layer, and the settings that serve it.

TGI stacks the factors of one kind of layer (``q_proj``, ...) over the whole network. If a single layer lacks them, it
leaves the kind out in all layers, without a word; if their ranks differ, it fails. So layers that the adapter does not
change get factors that are zero, which is exact.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tangora.errors import AdapterError, ArgumentError
from tangora.serving.contract import MERGE, Order, Target, Written
from tangora.serving.plain import refuse_whole
from tangora.serving.targets.peft import write_folder
from tangora.updates.task_vector import LowRank, Update

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.serving.base import ServedBase

__all__ = ["TARGET", "completed"]

_LAYER = re.compile(r"model\.layers\.(\d+)\.(self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)")
_SGMV = 128  # the largest rank of its grouped kernel; larger ones are served one request after the other


def _prepare(adapter: Adapter, base: ServedBase) -> tuple[Adapter, list[str]]:
    refuse_whole(adapter, "TGI")
    for site in adapter.updates:
        if site != "lm_head" and not _LAYER.fullmatch(site):
            what = (
                "TGI changes the layers q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj and lm_head only"
            )
            raise AdapterError(what, where=site, fix=MERGE)
    full = completed(adapter, base)
    notes = []
    if added := len(full.updates) - len(adapter.updates):
        notes.append(f"TGI needs every layer of a kind: {added} that the adapter does not change got factors of zero")
    ranks = [factors.rank for u in adapter.updates.values() if (factors := u.factors()) is not None]
    if max(ranks, default=0) > _SGMV:
        notes.append(f"above rank {_SGMV} TGI computes one adapter after the other: slower, the same result")
    return full, notes


def completed(adapter: Adapter, base: ServedBase) -> Adapter:
    """Return the adapter with zero factors in the layers that it does not change, of the kinds that it changes.

    Raises:
        AdapterError: the number of layers is not in the base's configuration, or two layers of a kind differ in shape.
    """
    kinds: dict[str, tuple[int, ...]] = {}
    for site, update in adapter.updates.items():
        if (match := _LAYER.fullmatch(site)) is None:
            continue
        if kinds.setdefault(match[2], tuple(update.shape)) != tuple(update.shape):
            raise AdapterError(f"TGI stacks all {match[2]}, but their shapes differ", where=site, fix=MERGE)
    count = base.config.get("num_hidden_layers")
    if not isinstance(count, int):
        what, fix = "the base's config.json has no num_hidden_layers", "give the base's folder as it was published"
        raise AdapterError(what, where=base.name, fix=fix)
    updates: dict[str, Update] = dict(adapter.updates)
    for kind, (rows, columns) in kinds.items():
        for layer in range(count):
            zero = LowRank(torch.zeros(rows, 1), torch.zeros(1, columns))
            updates.setdefault(f"model.layers.{layer}.{kind}", zero)
    return replace(adapter, updates=updates) if len(updates) > len(adapter.updates) else adapter


def _write(order: Order) -> Written:
    assert order.base is not None
    path = str(order.out.resolve())
    if "," in path or "=" in path:
        what = "TGI divides its list of adapters at commas and equals signs"
        raise ArgumentError(what, got=path, where="--out", fix="choose an --out without them")
    difference = write_folder(order)
    setting = f"LORA_ADAPTERS={shlex.quote(f'{order.name}={path}')}"
    command = shlex.join(["text-generation-launcher", "--model-id", order.model or order.base.place])
    return Written((f"{setting} {command}",), difference, "stock peft")


TARGET = Target("tgi", is_file=False, needs_base=True, prepare=_prepare, write=_write)
