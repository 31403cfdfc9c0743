"""φ₀ of a saved adapter: drawn again from its seed, or read from a file beside it."""

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
    """Read φ₀, or draw it again; None if the folder does not record it.

    Raises:
        AdapterError: it does not have the recorded fingerprint.
    """
    recorded = adapter.metadata.initial
    if (folder / INITIAL).exists():
        initial: dict[str, LowRank] | None = _read(inside(folder, INITIAL))
    else:
        initial = _redraw(adapter)
    if initial is None or recorded is None or recorded.fingerprint is None:
        return initial
    if (actual := fingerprint(initial)) != recorded.fingerprint:
        what = f"φ₀ has fingerprint {actual[:12]}, {FILE} records {recorded.fingerprint[:12]}"
        raise AdapterError(what, where=folder, fix="the files are not of one adapter: copy the whole folder again")
    return initial


def _redraw(adapter: Adapter) -> dict[str, LowRank] | None:
    """Draw φ₀ again from its seed; None if it was not drawn from one."""
    recorded = adapter.metadata.initial
    if recorded is None or recorded.init not in DRAWN:
        return None
    initial: dict[str, LowRank] = {}
    for site, update in adapter.updates.items():
        if is_bias(site, update):
            continue
        factors = update.factors()
        if factors is None:
            return None
        initial[site] = draw_factors(
            recorded.seed,
            site,
            factors.rank,
            (update.shape[0], update.shape[1]),
            kind=DRAWN[recorded.init],
            embedding=site in adapter.embeddings,
            task=adapter.metadata.task if recorded.a_init == "per_task" else None,
            scaling=factors.scaling,
        )
    return initial


def can_redraw(adapter: Adapter) -> bool:
    """Return whether seed and sites are enough to draw the adapter's φ₀ again."""
    drawn, initial = _redraw(adapter), adapter.initial or {}
    if drawn is None or fingerprint(drawn) != fingerprint(initial):
        return False
    return all(drawn[site].scaling == start.scaling for site, start in adapter.start.items())


def initial_tensors(initial: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """Return φ₀ as the tensors of a file."""
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
    except (ArgumentError, RuntimeError) as cause:  # the shapes are not those of factors and one scaling
        raise AdapterError(f"φ₀ does not fit together ({cause})", where=path, fix="copy it again") from None
