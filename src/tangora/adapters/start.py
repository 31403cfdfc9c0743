"""φ₀ of an adapter on disk: drawn again from its seed, or read from a file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangora.adapters.formats.lora.layers import is_bias
from tangora.adapters.initial import DRAWN, draw_factors, fingerprint
from tangora.adapters.metadata import FILE
from tangora.errors import AdapterError, ArgumentError
from tangora.storage.tensors import finite
from tangora.support.files import inside, read_safetensors
from tangora.updates.task_vector import LowRank

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["INITIAL", "can_redraw", "initial_tensors", "read_initial"]

INITIAL = "tangora_initial.safetensors"


def read_initial(adapter: Adapter, folder: Path) -> dict[str, LowRank] | None:
    """φ₀, where the folder tells it.

    Raises:
        AdapterError: it does not have the fingerprint that was written down.
    """
    told = adapter.metadata.initial
    if (folder / INITIAL).exists():
        initial: dict[str, LowRank] | None = _read(inside(folder, INITIAL))
    else:
        initial = _redraw(adapter)
    if initial is None or told is None or told.fingerprint is None:
        return initial

    if (found := fingerprint(initial)) != told.fingerprint:
        what = f"φ₀ has fingerprint {found[:12]}, {FILE} says {told.fingerprint[:12]}"
        raise AdapterError(what, where=folder, fix="the files are not of one adapter: copy the whole folder again")
    return initial


def _redraw(adapter: Adapter) -> dict[str, LowRank] | None:
    """φ₀ from its seed; None where that is not how it was made."""
    told = adapter.metadata.initial
    if told is None or told.init not in DRAWN:
        return None
    initial: dict[str, LowRank] = {}
    for site, update in adapter.updates.items():
        if is_bias(site, update):
            continue
        factors = update.factors()
        if factors is None:
            return None
        initial[site] = draw_factors(
            told.seed,
            site,
            factors.rank,
            (update.shape[0], update.shape[1]),
            kind=DRAWN[told.init],
            embedding=site in adapter.embeddings,
            task=adapter.metadata.task if told.a_init == "per_task" else None,
            scaling=factors.scaling,
        )
    return initial


def can_redraw(adapter: Adapter) -> bool:
    """Whether seed and sites are enough to draw the adapter's φ₀ again."""
    drawn, initial = _redraw(adapter), adapter.initial or {}
    if drawn is None or fingerprint(drawn) != fingerprint(initial):
        return False
    return all(drawn[site].scaling == start.scaling for site, start in adapter.start.items())


def initial_tensors(initial: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """φ₀ as the tensors of a file."""
    tensors: dict[str, Tensor] = {}
    for site, update in initial.items():
        scaling = torch.tensor(update.scaling, dtype=torch.float64)
        tensors |= {f"{site}.A": update.a.clone(), f"{site}.B": update.b.clone(), f"{site}.scaling": scaling}
    return tensors


def _read(path: Path) -> dict[str, LowRank]:
    tensors = {name: finite(name, tensor, path) for name, tensor in read_safetensors(path).items()}
    sites = sorted({name.rpartition(".")[0] for name in tensors})
    try:
        return {s: LowRank(tensors[f"{s}.B"], tensors[f"{s}.A"], float(tensors[f"{s}.scaling"])) for s in sites}
    except KeyError as cause:
        raise AdapterError("a factor of φ₀ is missing", got=cause.args[0], where=path, fix="copy it again") from None
    except (ArgumentError, RuntimeError) as cause:  # shapes that are none of factors, or more than one scaling
        raise AdapterError(f"φ₀ does not fit together ({cause})", where=path, fix="copy it again") from None
