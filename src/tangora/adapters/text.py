"""Describe an adapter in one line, and as a table."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["line", "table"]

_COUNTS = ("sites", "parameters")


def line(adapter: Adapter) -> str:
    """Return one line, such as ``Adapter(task 'sst2', mode lora, 24 sites, rank 8, base all-MiniLM-L6-v2)``."""
    parts = (f"{value} {name}" if name in _COUNTS else f"{name} {value}" for name, value in _facts(adapter).items())
    return f"Adapter({', '.join(parts)})"


def table(adapter: Adapter) -> str:
    """Return an HTML table for notebooks."""
    facts = {**_facts(adapter), "fingerprint": adapter.fingerprint[:16]}
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
    return f"<table><caption>Adapter</caption>{rows}</table>"


def _facts(adapter: Adapter) -> dict[str, str]:
    """Return what identifies an adapter, as far as it is known without computing anything."""
    metadata, facts = adapter.metadata, {}
    if metadata.fused is not None:
        facts["fused"] = f"from {len(metadata.fused.parents)} by {metadata.fused.method}"
    if metadata.task is not None:
        facts["task"] = repr(metadata.task)
    if metadata.mode is not None:
        facts["mode"] = metadata.mode
    facts[_COUNTS[metadata.of_kind.by_parameter]] = str(len(adapter.updates))
    if ranks := sorted({f.rank for u in adapter.updates.values() if (f := u.factors()) is not None}):
        facts["rank"] = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    if metadata.gates is not None:
        facts["closed layers"] = f"{len(metadata.gates.closed)} of {len(metadata.gates.values)}"
    if metadata.base.model is not None:
        facts["base"] = metadata.base.model.rstrip("/").rpartition("/")[2]
    return facts
