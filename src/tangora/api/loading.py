"""`load_base` and `load_task`: load a base model and tasks from names and files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from tangora.config.tasks import BaseSettings, TaskSettings, base_settings
from tangora.errors import ArgumentError
from tangora.support.machine import Machine
from tangora.support.seams import FAMILIES
from tangora.support.validation import validate
from tangora.tasks.base import Base
from tangora.tasks.load import load_base as load_base_of
from tangora.tasks.load import load_task as load_task_of
from tangora.tasks.recorded import SUFFIXES, kind_of
from tangora.tasks.values import Task

__all__ = ["load_base", "load_task"]

Files: TypeAlias = "Mapping[str, str | os.PathLike[str]]"


def load_base(
    model: str | os.PathLike[str] | BaseSettings,
    *,
    family: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    **settings: Any,
) -> Base:
    """Load a pretrained model, with the preprocessing and class names that its family needs.

    Weights are read from safetensors only.

    Args:
        model: a folder or a Hub id; or settings from a recipe, without further settings here.
        family: turns rows into inputs, and outputs into answers; see ``tangora plugins families``.
        device: ``auto`` (an accelerator if there is one, else ``cpu``), or a torch device, such as ``cuda:1``.
        dtype: of forward passes: ``float32``, ``bfloat16`` or ``float16``.
        settings: further keys of ``base`` in a recipe, such as ``revision``, ``max_length``, or ``weights_dtype`` and
            ``quantization``, the form in which the weights are held.

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
    """Read a task's rows and convert them to inputs of a base model.

    Train, validation and test are three disjoint sets of rows. Without a validation split, one is cut from train by
    ``seed``, in proportion to the classes.

    Args:
        task: a name; or settings from a recipe, without further settings here.
        base: provides the preprocessing.
        source: split -> file (``.parquet``, ``.csv``, ``.jsonl``, ``.npz``) or folder of images; or the value of
            ``source`` in a recipe, such as ``{"hub": "ag_news"}``.
        seed: determines the rows that are cut from train, and the samples of ``limit``.
        settings: further keys of a task in a recipe, such as ``text``, ``labels``, ``metric`` or ``limit``.

    Raises:
        ArgumentError: no source, or a setting is unknown or invalid.
        DataError: the data do not match the settings; the message names the location.

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


def _source(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``source`` as in a recipe: the suffixes of the files determine their kind."""
    if not source or not set(source) <= {"train", "validation", "test"}:
        return source
    files = {split: os.fspath(path) for split, path in source.items()}
    kinds = {kind_of(path) for path in files.values()}
    (kind, *others) = kinds
    if others or kind is None:
        fix = f"one kind for all splits, of {', '.join(SUFFIXES)}, or folders of images"
        raise ArgumentError("the kind of the files is not clear", got=files, where="load_task.source", fix=fix)
    return {kind: files}
