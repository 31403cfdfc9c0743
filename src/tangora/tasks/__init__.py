"""Tasks: the rows of a data set as inputs of a model, with a readout and metrics.

    Source ── sources ──> rows ── splits ──> three disjoint sets ── a family ──> Task
    BaseConfig ── load_base ──> Base (frozen backbone, text tower for heads)

A **family** defines how a model predicts: by class names (``image-zero-shot``, ``text-zero-shot``), by trained heads
(``text-classification``, ``image-classification``, ``token-classification``), by trained decoders of pixels
(``image-dense``) or by generated text (``text-to-text``, ``causal-lm``, ``vision-language``). Everything is
preprocessed once, so that `predict` costs only forward passes.

>>> import tangora
>>> tangora.tasks.score("accuracy", [0, 1, 1], [0, 1, 0])
0.6666666666666666
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tangora.support.seams import METRICS

if TYPE_CHECKING:
    from tangora.tasks.base import Base
    from tangora.tasks.load import load_base, load_task
    from tangora.tasks.metrics import score
    from tangora.tasks.model import Predictions, TaskModel, collate, make_readout, predict
    from tangora.tasks.values import Split, Task

__all__ = [
    "METRICS",
    "Base",
    "Predictions",
    "Split",
    "Task",
    "TaskModel",
    "collate",
    "load_base",
    "load_task",
    "make_readout",
    "predict",
    "score",
]

_HOME = {
    "Base": "base",
    "Predictions": "model",
    "Split": "values",
    "Task": "values",
    "TaskModel": "model",
    "collate": "model",
    "load_base": "load",
    "load_task": "load",
    "make_readout": "model",
    "predict": "model",
    "score": "metrics",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: reading the names of metrics and families needs no torch."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
