"""Tangora: tangent-space adapters that add up.

One adapter per task, fine-tuned on a frozen base; all of them fused into one, exactly or with a stated error::

    import tangora

    fused = tangora.fuse(["adapters/sst2", "adapters/trec6"], method="task_arithmetic", weights=0.5)
    fused.save("fused")                                   # a PEFT adapter that stock peft loads

Names are imported when they are first used, so that ``import tangora`` costs nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tangora.adapter import Adapter, load
    from tangora.checkpoints import fuse_checkpoints
    from tangora.collect import collect_statistics
    from tangora.distill import distill
    from tangora.errors import TangoraError
    from tangora.finetune import finetune
    from tangora.fuse import fuse
    from tangora.linearize import linearize
    from tangora.load_model import load_model
    from tangora.methods import methods
    from tangora.recipe import load_recipe
    from tangora.run import run
    from tangora.tangent import TangentModel
    from tangora.task_vector import TaskVector

__all__ = [
    "Adapter",
    "TangentModel",
    "TangoraError",
    "TaskVector",
    "collect_statistics",
    "distill",
    "finetune",
    "fuse",
    "fuse_checkpoints",
    "linearize",
    "load",
    "load_model",
    "load_recipe",
    "methods",
    "run",
]

_HOME = {
    "Adapter": "adapter",
    "TangentModel": "tangent",
    "TangoraError": "errors",
    "TaskVector": "task_vector",
    "collect_statistics": "collect",
    "distill": "distill",
    "finetune": "finetune",
    "fuse": "fuse",
    "fuse_checkpoints": "checkpoints",
    "linearize": "linearize",
    "load": "adapter",
    "load_model": "load_model",
    "load_recipe": "recipe",
    "run": "run",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "methods":
        return import_module("tangora.methods")
    if name in _HOME:
        return getattr(import_module(f"tangora.{_HOME[name]}"), name)
    raise AttributeError(f"module 'tangora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps ``tangora.fuse`` the function: importing the submodule of that name would bind the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
