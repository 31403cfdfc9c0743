"""The metadata of a file (``__metadata__``): kept, extended by Tangora's, and computed anew where it would be wrong.

Keys that all parents share are kept; the others are in ``tangora_parents``, by parent. Ranks and alphas that trainers
record (``ss_network_dim``) are those of the new tensors, and so are hashes of them. What describes the tensors and
is not known (``sshs_legacy_hash``, ``lora_adapter_metadata``) is left out.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.adapters.metadata import ABOUT, FORMAT, Metadata
from tangora.errors import AdapterError
from tangora.support.json_text import parse_json
from tangora.support.validation import validate

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.layouts.details import SingleFile
    from tangora.updates.task_vector import Factors

__all__ = ["PEFT", "about_of", "metadata_for"]

PARENTS = "tangora_parents"
PEFT = "lora_adapter_metadata"
"""Where diffusers keeps the configurations of peft."""
_HASHES = ("sshs_model_hash", "modelspec.hash_sha256")
_DROPPED = (ABOUT, PARENTS, PEFT, *_HASHES, "sshs_legacy_hash", "ss_network_dim", "ss_network_alpha", "format")
_OF_MODULE = ("ss_network_module", "ss_network_args")


def about_of(metadata: Mapping[str, str], path: Path) -> Metadata | None:
    """Return Tangora's own record in a file's metadata; None if there is none.

    Raises:
        AdapterError: it is damaged, or of a newer version.
    """
    if ABOUT not in metadata:
        return None
    try:
        raw: Any = parse_json(metadata[ABOUT])
    except ValueError:
        raw = None
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int) or raw["format"] > FORMAT:
        what = f"the metadata {ABOUT} are damaged, or of a newer version"
        raise AdapterError(what, where=path, fix="update tangora, or remove them from the file's metadata")
    return validate(Metadata, raw, f"{ABOUT} in {path}", AdapterError)


def metadata_for(
    adapter: Adapter, file: SingleFile, factors: Iterable[Factors], tensors: Path | None
) -> dict[str, str]:
    """Return the metadata of a file.

    Args:
        adapter: the adapter.
        file: its layout.
        factors: what is written.
        tensors: the file that holds the tensors already, for hashes of them.
    """
    kept = {key: value for key, value in file.metadata.items() if key not in _DROPPED}
    known = set(file.metadata).union(*(parent for parent in file.parents.values()))
    if any(key.startswith("ss_") for key in known):
        kept |= _trained(kept, known, list(factors))
    if any(key.startswith("modelspec.") for key in known) and adapter.metadata.fused is not None:
        kept["modelspec.merged_from"] = ", ".join(parent.name for parent in adapter.metadata.fused.parents)
    if tensors is not None and (held := [key for key in _HASHES if key in known]):
        total = _payload_digest(tensors)
        kept |= {key: f"0x{total}" if key.startswith("modelspec.") else total for key in held}
    if PARENTS in file.metadata:
        kept[PARENTS] = file.metadata[PARENTS]
    if file.parents:
        kept[PARENTS] = json.dumps(file.parents, ensure_ascii=False, sort_keys=True)
    kept[ABOUT] = json.dumps(adapter.metadata.model_dump(mode="json", exclude_none=True), ensure_ascii=False)
    return {"format": "pt", **kept}


def _trained(kept: dict[str, str], known: Collection[str], factors: list[Factors]) -> dict[str, str]:
    """Return what kohya's scripts record of a network, as it is now: plain LoRA."""
    ranks = {factor.rank for factor in factors}
    alphas = {factor.scaling * factor.rank for factor in factors}
    now = {
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
    }
    if not kept.get("ss_network_module", "").startswith("networks.") and "ss_network_module" in known:
        for key in _OF_MODULE:
            kept.pop(key, None)
        now["ss_network_module"] = "networks.lora"
    return now


def _payload_digest(path: Path) -> str:
    """Return the sha-256 of a file's bytes after its header, as kohya's ``sshs_model_hash`` and the model spec do."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + length)
        while block := file.read(1 << 22):
            total.update(block)
    return total.hexdigest()
