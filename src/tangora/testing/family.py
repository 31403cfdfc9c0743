"""`check_family`: the promises of `tangora.tasks.contract.Family` and `Readout`, on a tiny model and its data."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from typing import Any, get_args

import transformers
from pydantic import ValidationError
from torch import Tensor

from tangora.config.tasks import BaseSettings, TaskSettings
from tangora.support.seams import FAMILIES, METRICS
from tangora.tasks.base import Base
from tangora.tasks.contract import Answers, Family, LogitsOver
from tangora.tasks.load import load_base, load_task, read_rows
from tangora.tasks.values import Task
from tangora.testing._readout import check_followed, check_readout, check_value

__all__ = ["check_family"]


def check_family(family: Family[Any, Any], base: Mapping[str, Any], task: Mapping[str, Any]) -> None:
    """Check the promises of a family and of its readout.

    A family cannot be checked without a model that fits it, so pass a tiny one: a random checkpoint of two layers and
    a few dozen rows suffice, and take seconds.

    Args:
        family: registered under its name, by an entry point or ``tangora.support.seams.FAMILIES.register``.
        base: the keys of ``base`` in a recipe, without ``family``.
        task: the keys of one of ``tasks``.

    Raises:
        AssertionError: says which promise is broken.
        TangoraError: the settings, the model or the data are not valid.
    """
    _check_declarations(family)
    settings = family.base_settings.model_validate({"family": family.name, **base})
    config = family.task_settings.model_validate(task)
    _check_settings(family, settings, config)
    loaded = load_base(settings)
    _check_base(family, settings, loaded)
    made = load_task(config, loaded, seed=0)
    _check_task(family, config, loaded, made)
    _check_batches(family, loaded, made)
    _check_examples(family, config)
    check_readout(family, loaded, made)
    check_followed(family, loaded, made)


def _check_declarations(family: Family[Any, Any]) -> None:
    assert isinstance(family, Family), f"{family!r} lacks a name of tangora.tasks.contract.Family"
    name = family.name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name), f"name consists of small letters, digits and -, got {name!r}"
    assert name in FAMILIES, f"{name} is not registered: announce it in the group tangora.families"
    assert FAMILIES.get(name) is family, f"another family is registered as {name}"
    for attribute, parent in (("base_settings", BaseSettings), ("task_settings", TaskSettings)):
        derived = getattr(family, attribute)
        assert issubclass(derived, parent), f"{attribute} is derived from {parent.__name__}, got {derived.__name__}"
        config = derived.model_config
        assert config.get("frozen"), f"{attribute} must be frozen"
        assert config.get("extra") == "forbid", f"{attribute} must forbid keys that it does not have"


def _check_settings(family: Family[Any, Any], base: BaseSettings, task: TaskSettings) -> None:
    for settings in (base, task):
        raw = settings.model_dump(mode="json")
        again = type(settings).model_validate(json.loads(json.dumps(raw)))
        assert again == settings, f"{type(settings).__name__} does not read back what it wrote"
        try:
            type(settings).model_validate({**raw, "no_such_key": 1})
        except ValidationError:
            continue
        raise AssertionError(f"{type(settings).__name__} accepts an unknown key")
    kind, over = family.form(task).kind, family.form(task).logits_over
    assert kind in get_args(Answers), f"the kind of answers is one of {get_args(Answers)}, got {kind!r}"
    assert over is None or over in get_args(LogitsOver), f"logits_over is one of {get_args(LogitsOver)} or None"
    for name in task.all_metrics:
        takes = METRICS.get(name).takes
        assert kind in takes, f"give a metric that takes {kind}; {name} takes {sorted(takes)}"


def _check_base(family: Family[Any, Any], settings: BaseSettings, base: Base) -> None:
    assert base.config == settings, "load keeps the settings as base.config"
    for child in family.unused:
        assert getattr(base.backbone, child, None) is None, f"{child} is listed in unused, but load keeps it"
    assert load_base(settings).fingerprint == base.fingerprint, "loading twice gives different weights"
    loader = family.auto_class(settings.model)
    assert hasattr(transformers, loader), f"auto_class names no class of transformers, got {loader!r}"


def _check_task(family: Family[Any, Any], config: TaskSettings, base: Base, task: Task) -> None:
    again = load_task(config, base, seed=0)
    assert again.fingerprint == task.fingerprint, "preparing a task twice gives different fingerprints"
    assert isinstance(task, Task), f"finish returns a Task, got {type(task).__name__}"
    assert (task.family, task.name) == (family.name, config.name), "finish changes the name of the task or the family"
    json.dumps(task.record)
    for split, rows in task.splits.items():
        for name, values in rows.inputs.items():
            got = f"{len(values)} of {name} for {len(rows)} rows of {split}"
            assert len(values) == len(rows), f"encode returns one entry per row, got {got}"
    for rows in task.splits.values():
        for target in rows.targets:
            check_value(target, task, "target")


def _check_batches(family: Family[Any, Any], base: Base, task: Task) -> None:
    collate = pickle.loads(pickle.dumps(family.collate(base)))
    rows = task.splits["test"].dataset()
    picked = [rows[i] for i in range(min(4, len(rows)))]
    batch = collate(picked)
    assert "labels" in batch, "a batch has labels"
    for name, value in batch.items():
        assert isinstance(value, Tensor), f"a batch holds tensors, got {type(value).__name__} for {name}"
        assert len(value) == len(picked), f"{name} has {len(value)} entries for {len(picked)} rows"


def _check_examples(family: Family[Any, Any], config: TaskSettings) -> None:
    table = read_rows(config, family.name, 0)[1]["test"].table
    shown = list(family.examples(table, config))
    assert len(shown) == len(table), f"examples gives one per row, got {len(shown)} for {len(table)}"
    for example in shown:
        assert isinstance(example, str) or hasattr(example, "thumbnail"), (
            f"an example is a text or an image: {example!r}"
        )
