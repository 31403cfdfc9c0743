"""Write the files beside the tensors: configuration, tokenizer, generation settings, model card, and lineage."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.adapters.usage import BASE, usage
from tangora.checkpoints.carried import Carried
from tangora.storage.checkpoint import CONFIG
from tangora.support.files import inside, write_json, write_text
from tangora.support.markdown import as_code, as_table, as_text

if TYPE_CHECKING:
    from tangora.adapters.heads import HeadRecord

__all__ = ["LINEAGE", "write_sidecars"]

LINEAGE = "tangora_fusion.json"
_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def write_sidecars(
    folder: Path,
    carried: Carried,
    config: Mapping[str, Any],
    lineage: Mapping[str, Any],
    records: Mapping[str, HeadRecord],
) -> None:
    """Fill ``folder`` with the small files of a checkpoint, a README and ``tangora_fusion.json``.

    Args:
        folder: the output.
        carried: the files to copy, and settings that the models agree on.
        config: ``config.json``; only the dtype, the carried keys and the names of files are still adjusted.
        lineage: how the output was made.
        records: task -> what prediction needs, for the card.
    """
    for name, source in carried.copies.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(inside(source.parent, source.name), folder / name)
    for name, settings in carried.written.items():
        write_json(folder / name, settings)
    config = {key: value for key, value in config.items() if key != "transformers_weights"} | dict(carried.config)
    if lineage["dtype"] is not None:
        for key in [k for k in ("dtype", "torch_dtype") if k in config] or ["torch_dtype"]:
            config[key] = _DTYPE_NAMES[lineage["dtype"]]
    write_json(folder / CONFIG, config)
    write_json(folder / LINEAGE, lineage)
    write_text(folder / "README.md", _card(lineage, config, records))


def _loading(config: Mapping[str, Any]) -> str:
    """Return the code that loads the checkpoint, by the class that its configuration names."""
    named, custom = str((config.get("architectures") or [""])[0]), config.get("auto_map")
    loader = named if named.isidentifier() and not custom else "AutoModel"
    if isinstance(custom, Mapping):
        loader = next((str(key) for key in custom if str(key).startswith("AutoModel")), loader)
    code = ", trust_remote_code=True" if custom else ""
    return f'from transformers import {loader}\n\nmodel = {loader}.from_pretrained("path/to/this/folder"{code})\n'


def _card(lineage: Mapping[str, Any], config: Mapping[str, Any], records: Mapping[str, HeadRecord]) -> str:
    base, parents = lineage["base"], lineage["parents"]
    front = ["---"]
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(base.get("model") or "")):
        front.append(f"base_model: {base['model']}")
    front += ["library_name: transformers", "tags:", "- tangora", "- model-merging", "---"]
    rows: list[Sequence[str]] = [
        ("method", as_code(lineage["method"])),
        ("base", as_text(base.get("source") or base["name"])),
    ]
    rows += [(as_text(name), as_code(json.dumps(value))) for name, value in lineage["parameters"].items()]
    if lineage["random"]:
        rows.append(("seed", str(lineage["seed"])))
    sources = [
        (as_text(p.get("source") or p["name"]), w, as_code(p["fingerprint"][:16]))
        for p, w in zip(parents, _weights(lineage), strict=True)
    ]
    table = as_table(("parent", "weight", "fingerprint"), sources)
    title = ", ".join(as_text(p["name"]) for p in parents)
    notes = "\n".join(f"- {as_text(note)}" for note in lineage["notes"])
    parts = [
        "\n".join(front),
        f"# {len(parents)} models in one: {title}",
        f"A full checkpoint, fused with Tangora {lineage['tangora']}. It is the base plus the fused differences from "
        "it, computed in float32 or wider and rounded once.",
        _used(records),
        f"## How to load the network\n\n```python\n{_loading(config)}```",
        f"## How it was fused\n\n{as_table(('', ''), rows)}\n\n{table}",
        f"## Notes\n\n{notes}" if notes else "",
        f"All of this in machine-readable form: `{LINEAGE}`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _used(records: Mapping[str, HeadRecord]) -> str:
    """Return the section on prediction; the class names of some tasks are embedded by the unchanged base."""
    if not records:
        return ""
    from tangora.tasks.contract import names_by_backbone  # deferred: pydantic

    by_base = names_by_backbone(next(iter(records.values())).family)
    note = "\n\nThe class names are embedded by the unchanged base, which the code names." if by_base else ""
    return usage(records, BASE if by_base else None) + note


def _weights(lineage: Mapping[str, Any]) -> list[str]:
    if isinstance(lineage["weights"], dict):
        return ["per tensor"] * len(lineage["parents"])
    return [f"{weight:g}" for weight in lineage["weights"]]
