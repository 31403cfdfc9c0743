"""Load an adapter's folder into a base model with stock peft."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.adapters.formats.lora.reading import weights_path
from tangora.adapters.formats.tuners.files import kind_of
from tangora.adapters.formats.tuners.known import tuner_of
from tangora.errors import ModelError
from tangora.storage.held import is_held
from tangora.support.files import read_safetensors

if TYPE_CHECKING:
    from peft import PeftModel

    from tangora.adapters.adapter import Adapter

__all__ = ["expansion_point", "in_peft"]

_FIX = "give the base model that the adapter was made for"


def in_peft(folder: Path, model: nn.Module) -> PeftModel:
    """Return stock peft's model of an adapter's folder.

    Raises:
        ModelError: peft refuses it, or does not load a weight of the file.
    """
    from peft import PeftModel, get_peft_model_state_dict  # deferred: takes seconds to import
    from peft.tuners.tuners_utils import BaseTunerLayer

    weights = read_safetensors(weights_path(folder))
    try:
        wrapped = PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError, KeyError) as cause:
        what = f"peft cannot put the adapter into the base ({' '.join(str(cause).split())[:200]})"
        raise ModelError(what, where=folder, fix=_FIX) from cause
    loaded = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    kind = kind_of(folder) or "LORA"
    stem = "lora_" if kind == "LORA" else tuner_of(kind).stem
    if odd := sorted(name for name in loaded.keys() ^ weights.keys() if stem in name):
        raise ModelError("base and file do not have the same sites", got=odd[0], where=folder, fix=_FIX)
    for layer in wrapped.modules():
        if isinstance(layer, BaseTunerLayer) and is_held(layer.get_base_layer()):
            layer.merge = _not_merged  # type: ignore[method-assign]
    return wrapped


def _not_merged(*_: Any, **__: Any) -> None:
    what = "weights that are held in half precision, or quantized, take no update"
    raise ModelError(what, where="merge", fix="load the base in float32: load_model(folder, base)")


def expansion_point(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]] | None:
    """Return site -> (A₀, B₀) if one factor of each site equals φ₀'s; None if the file has other factors."""
    start = {}
    for site, update in adapter.updates.items():
        initial, factors = (adapter.initial or {}).get(site), update.factors()
        if initial is None or factors is None:
            return None
        kept_a = not bool(initial.b.any()) and torch.equal(factors.a, initial.a)
        kept_b = not bool(initial.a.any()) and torch.equal(factors.b, initial.b)
        if not kept_a and not kept_b:
            return None
        start[site] = (initial.a, initial.b)
    return start
