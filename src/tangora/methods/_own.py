"""This package's own methods, imported when they are asked for: most of them import torch, which takes seconds."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

__all__ = ["load_own"]


def load_own(name: str | None = None) -> None:
    """Import the module of that name, whose decorators register its methods; all of them where there is none."""
    names = _modules()
    for module in [name] if name in names else names:
        import_module(f"tangora.methods.{module}")


@cache
def _modules() -> tuple[str, ...]:
    package = import_module("tangora.methods")
    return tuple(found.name for found in pkgutil.iter_modules(package.__path__) if not found.name.startswith("_"))
