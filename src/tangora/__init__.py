"""Tangora: tangent-space adapters that add up.

One adapter per task, fine-tuned on a frozen base; all of them fused into one, exactly or with a stated error::

    import tangora

    fused = tangora.fuse(["adapters/sst2", "adapters/trec6"], method="task_arithmetic", weights=0.5)
    fused.save("fused")                                   # a PEFT adapter that stock peft loads

Names are imported when they are first used, so that ``import tangora`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tangora import analysis, coefficients, methods, tasks, testing
    from tangora.adapters.adapter import Adapter, load
    from tangora.adapters.pushing import push
    from tangora.api.analyzing import analyze
    from tangora.api.evaluating import evaluate
    from tangora.api.finetuning import finetune
    from tangora.api.loading import load_base, load_task
    from tangora.api.papers import compare, table
    from tangora.api.predicting import predict
    from tangora.api.running import run
    from tangora.checkpoints import fuse_checkpoints
    from tangora.coefficients.searching import search
    from tangora.config.recipe import load_recipe
    from tangora.config.settings import FinetuneConfig
    from tangora.errors import TangoraError
    from tangora.evaluation.collection import collect_statistics
    from tangora.evaluation.predictor import predictor
    from tangora.extraction.extract import extract
    from tangora.fusion.fusion import fuse
    from tangora.methods import fusion_method
    from tangora.modes.distillation import distill
    from tangora.modes.loading import load_model
    from tangora.polishing.polish import polish
    from tangora.routing.route import route
    from tangora.serving.exporting import export
    from tangora.tangent import TangentModel
    from tangora.tangent.linearization import linearize
    from tangora.tasks.base import Base
    from tangora.tasks.values import Task
    from tangora.updates.task_vector import Dense, LowRank, TaskVector

__all__ = [
    "Adapter",
    "Base",
    "Dense",
    "FinetuneConfig",
    "LowRank",
    "TangentModel",
    "TangoraError",
    "Task",
    "TaskVector",
    "analysis",
    "analyze",
    "coefficients",
    "collect_statistics",
    "compare",
    "distill",
    "evaluate",
    "export",
    "extract",
    "finetune",
    "fuse",
    "fuse_checkpoints",
    "fusion_method",
    "linearize",
    "load",
    "load_base",
    "load_model",
    "load_recipe",
    "load_task",
    "methods",
    "polish",
    "predict",
    "predictor",
    "push",
    "route",
    "run",
    "search",
    "table",
    "tasks",
    "testing",
]

_PACKAGES = ("analysis", "coefficients", "methods", "tasks", "testing")

_HOME = {
    "Adapter": "adapters.adapter",
    "Base": "tasks.base",
    "Dense": "updates.task_vector",
    "FinetuneConfig": "config.settings",
    "LowRank": "updates.task_vector",
    "TangentModel": "tangent",
    "TangoraError": "errors",
    "Task": "tasks.values",
    "TaskVector": "updates.task_vector",
    "analyze": "api.analyzing",
    "collect_statistics": "evaluation.collection",
    "compare": "api.papers",
    "distill": "modes.distillation",
    "evaluate": "api.evaluating",
    "export": "serving.exporting",
    "extract": "extraction.extract",
    "finetune": "api.finetuning",
    "fuse": "fusion.fusion",
    "fuse_checkpoints": "checkpoints",
    "fusion_method": "methods",
    "linearize": "tangent.linearization",
    "load": "adapters.adapter",
    "load_base": "api.loading",
    "load_model": "modes.loading",
    "load_recipe": "config.recipe",
    "load_task": "api.loading",
    "polish": "polishing.polish",
    "predict": "api.predicting",
    "predictor": "evaluation.predictor",
    "push": "adapters.pushing",
    "route": "routing.route",
    "run": "api.running",
    "search": "coefficients.searching",
    "table": "api.papers",
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"tangora.{name}")
    if name in _HOME:
        return getattr(import_module(f"tangora.{_HOME[name]}"), name)
    raise AttributeError(f"module 'tangora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
