"""One page for each kind of member but methods: modes, families, metrics, searches, formats, spaces, executors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from pages.prose import Docstring, marked
from tangora.support.registry import Registry
from tangora.support.seams import EXECUTORS, FAMILIES, FORMATS, METRICS, MODES, SEARCHES, SPACES

__all__ = ["pages"]

_SEE = re.compile(r"See `([\w.]+)`")
_KINDS: dict[str, tuple[Registry, str, str]] = {
    "modes": (MODES, "Modes", "How adapters are trained: `modes: {NAME: {train: MODE}}` in a recipe."),
    "families": (FAMILIES, "Families", "How rows become inputs of a model, and its features answers: `base.family`."),
    "metrics": (METRICS, "Metrics", "Scores of predictions against targets: `metric` and `metrics` of a task."),
    "searches": (SEARCHES, "Searches", "How coefficients are found: `search` of an entry of `fusion.methods`."),
    "formats": (FORMATS, "Formats", "The files of adapters that are read and written."),
    "spaces": (SPACES, "Spaces", "The coordinates in which adapters are fused: `--space`, `space` of an entry."),
    "executors": (EXECUTORS, "Executors", "What does the jobs of a run: `executor.name`."),
}


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every page."""
    for file, (registry, title, intro) in _KINDS.items():
        parts = [f"# {title}", f"{intro} Packages can add more: [Plug-ins](../plug-ins.md)."]
        parts += [_member(registry, name) for name in registry.own]
        yield f"reference/{file}.md", "\n\n".join(parts) + "\n"


def _member(registry: Registry, name: str) -> str:
    module, member = import_module(registry.own[name]), registry.get(name)
    parts = [f"## {name}", *_of(module)]
    if type(member).__module__ == module.__name__:  # else it is of a class that several share
        text = Docstring.of(member)
        see = _SEE.match(text.summary)
        parts += _of(_named(see[1])) if see else _of(member)
    return "\n\n".join(parts)


def _of(thing: Any) -> Iterator[str]:
    text = Docstring.of(thing)
    summary = re.sub(r"^The \w+ `+[\w-]+`+: ", "", text.summary)
    if summary:
        yield marked(summary[:1].upper() + summary[1:])
    for paragraph in text.paragraphs:
        yield f"```text\n{inspect.cleandoc(paragraph)}\n```" if paragraph.startswith("    ") else marked(paragraph)


def _named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
