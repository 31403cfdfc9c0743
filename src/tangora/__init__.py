"""Tangora: tangent-space adapters that add up.

One adapter per task, fine-tuned on a frozen base; all of them fused into one, exactly or with a stated error::

    import tangora

    fused = tangora.fuse(["adapters/sst2", "adapters/trec6"], method="task_arithmetic", weights=0.5)
    fused.save("fused")                                   # a PEFT adapter that stock peft loads

Names are imported when they are first used, so that ``import tangora`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter, load
    from tangora.checkpoints import fuse_checkpoints
    from tangora.config.recipe import load_recipe
    from tangora.errors import TangoraError
    from tangora.evaluation.collection import collect_statistics
    from tangora.fusion.fusion import fuse
    from tangora.methods import methods
    from tangora.modes.distillation import distill
    from tangora.modes.finetuning import finetune
    from tangora.modes.loading import load_model
    from tangora.runs.runner import run
    from tangora.tangent import TangentModel
    from tangora.tangent.linearization import linearize
    from tangora.updates.task_vector import TaskVector

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
    "Adapter": "adapters.adapter",
    "TangentModel": "tangent",
    "TangoraError": "errors",
    "TaskVector": "updates.task_vector",
    "collect_statistics": "evaluation.collection",
    "distill": "modes.distillation",
    "finetune": "modes.finetuning",
    "fuse": "fusion.fusion",
    "fuse_checkpoints": "checkpoints",
    "linearize": "tangent.linearization",
    "load": "adapters.adapter",
    "load_model": "modes.loading",
    "load_recipe": "config.recipe",
    "run": "runs.runner",
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
