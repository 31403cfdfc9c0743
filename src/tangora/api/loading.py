"""`load_base` and `load_task`: from names and files to what adapters are trained on and scored by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from tangora.config.tasks import BaseSettings, TaskSettings, base_settings
from tangora.errors import ArgumentError
from tangora.support.machine import Machine
from tangora.support.seams import FAMILIES
from tangora.support.validation import validate
from tangora.tasks.base import Base
from tangora.tasks.load import load_base as load_base_of
from tangora.tasks.load import load_task as load_task_of
from tangora.tasks.values import Task

__all__ = ["load_base", "load_task"]

Files: TypeAlias = "Mapping[str, str | os.PathLike[str]]"

_KINDS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".npz": "npz", "": "imagefolder"}


def load_base(
    model: str | os.PathLike[str] | BaseSettings,
    *,
    family: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    **settings: Any,
) -> Base:
    """Load a pretrained model, with what its family needs to preprocess inputs and to name classes.

    Weights are read from safetensors only.

    Args:
        model: a folder or a Hub id; or the settings of a recipe, and nothing else.
        family: how rows become inputs, and what the model returns answers; see ``tangora plugins families``.
        device: ``auto`` is an accelerator if there is one, else ``cpu``; or a torch device, such as ``cuda:1``.
        dtype: of forward passes, ``float32``, ``bfloat16`` or ``float16``; weights stay in float32.
        settings: more of a recipe's keys under ``base``, such as ``revision`` or ``max_length``.

    Raises:
        ArgumentError: no family, the device cannot be used, or a setting is unknown or invalid.
        ModelError: the model is not found, has only pickled weights, lacks weights, or does not fit the family.

    >>> import tangora
    >>> tangora.load_base("encoder", family="text-zero-shot", max_length=16)
    Base('encoder', text-zero-shot, BertModel)
    """
    machine = Machine.resolve(device, dtype, threads=None)
    if isinstance(model, BaseSettings):
        return load_base_of(model, machine)
    if family is None:
        fix = f"give one of {', '.join(FAMILIES)}"
        raise ArgumentError("a base needs a family", where="load_base.family", fix=fix)
    raw = {"family": family, "model": os.fspath(model), **settings}
    return load_base_of(base_settings(raw, "load_base"), machine)


def load_task(
    task: str | TaskSettings,
    base: Base,
    source: Files | Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    **settings: Any,
) -> Task:
    """Read a task's rows and make them into inputs of a base model.

    Train, validation and test are three different sets of rows: without a validation split, one is cut from train by
    ``seed``, in proportion to the classes.

    Args:
        task: a name; or the settings of a recipe, and nothing else.
        base: gives the preprocessing.
        source: split -> file (``.parquet``, ``.csv``, ``.jsonl``, ``.npz``) or folder of images; or what a recipe has
            under ``source``, such as ``{"hub": "ag_news"}``.
        seed: decides which rows are cut from train, and the samples of ``limit``.
        settings: more of a recipe's keys of a task, such as ``text``, ``labels``, ``metric`` or ``limit``.

    Raises:
        ArgumentError: no source, or a setting is unknown or invalid.
        DataError: the data are not as the settings say; the message says where.

    >>> import tangora
    >>> base = tangora.load_base("encoder", family="text-zero-shot")
    >>> files = {"train": "colors/train.parquet", "test": "colors/test.parquet"}
    >>> task = tangora.load_task("colors", base, files, labels=["red", "green", "blue"])
    >>> task.labels
    ['red', 'green', 'blue']
    """
    if isinstance(task, TaskSettings):
        return load_task_of(task, base, seed)
    if source is None:
        fix = "give the files, such as {'train': 'train.csv', 'test': 'test.csv'}"
        raise ArgumentError("a task needs a source", where="load_task.source", fix=fix)
    raw = {"name": task, "source": _source(source), **settings}
    chosen: type[TaskSettings] = FAMILIES.get(base.config.family).task_settings
    return load_task_of(validate(chosen, raw, "load_task"), base, seed)


def _source(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """As a recipe writes it: files are of the kind that their names say."""
    if not given or not set(given) <= {"train", "validation", "test"}:
        return given
    files = {split: os.fspath(path) for split, path in given.items()}
    kinds = {_KINDS.get(Path(path).suffix.lower()) for path in files.values()}
    (kind, *others) = kinds
    if others or kind is None:
        fix = f"one kind for all splits, of {', '.join(suffix for suffix in _KINDS if suffix)}, or folders of images"
        raise ArgumentError("the kind of the files is not clear", got=files, where="load_task.source", fix=fix)
    return {kind: files}
