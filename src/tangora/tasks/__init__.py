"""Tasks: rows of a data set made into a model's inputs, with their head and metric.

    Source ── sources ──> rows ── splits ──> three disjoint sets ── a family ──> Task
    BaseConfig ── load_base ──> Base (frozen backbone, text tower for heads)

A **family** says how a model answers: ``image-zero-shot`` (CLIP, SigLIP), ``text-zero-shot`` (sentence encoders) and
``text-to-text`` (T5). Everything is preprocessed once; `predict` then costs nothing but forward passes.
"""

from __future__ import annotations

from tangora.tasks.base import Base
from tangora.tasks.load import load_base, load_task
from tangora.tasks.metrics import METRICS, score
from tangora.tasks.model import Predictions, TaskModel, collate, predict
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
    "predict",
    "score",
]
