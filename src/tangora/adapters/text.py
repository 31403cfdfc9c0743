"""An adapter in a line, and as a table."""

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
    """What identifies an adapter, as far as it is known; nothing is computed for it."""
    about, found = adapter.metadata, {}
    if about.fused is not None:
        found["fused"] = f"from {len(about.fused.parents)} by {about.fused.method}"
    if about.task is not None:
        found["task"] = repr(about.task)
    if about.mode is not None:
        found["mode"] = about.mode
    found[_COUNTS[about.of_kind.by_parameter]] = str(len(adapter.updates))
    if ranks := sorted({f.rank for u in adapter.updates.values() if (f := u.factors()) is not None}):
        found["rank"] = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    if about.base.model is not None:
        found["base"] = about.base.model.rstrip("/").rpartition("/")[2]
    return found
