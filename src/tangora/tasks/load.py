"""`load_base` and `load_task`: read, label, split, limit and preprocess the rows, and add what the readout needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from tangora.errors import DataError, ModelError
from tangora.storage.held import hold_
from tangora.storage.packed import pack_
from tangora.support.machine import Machine
from tangora.support.seams import FAMILIES
from tangora.tasks.base import Base, take_out, weights_fingerprint
from tangora.tasks.duplicates import input_groups
from tangora.tasks.harness_rows import read_harness
from tangora.tasks.sources import Table, read, read_whole
from tangora.tasks.splits import cut, cut_groups, sample
from tangora.tasks.values import Split, Task, fingerprint_of

if TYPE_CHECKING:
    from tangora.config.tasks import BaseSettings, TaskSettings
    from tangora.tasks.contract import Family

__all__ = ["LabelledRows", "load_base", "load_task", "made_of", "read_rows"]


_KEY = "base.trust_remote_code"


@dataclass(frozen=True)
class LabelledRows:
    """Rows of a split with their targets, before preprocessing."""

    table: Table
    targets: list[Any]

    def select(self, rows: Sequence[int]) -> LabelledRows:
        """Return the rows with these numbers, in this order."""
        return LabelledRows(self.table.select(rows), [self.targets[i] for i in rows])


def load_base(config: BaseSettings, machine: Machine | None = None) -> Base:
    """Load the pretrained model of a recipe, with what its family needs to preprocess inputs and name classes.

    Weights are read from safetensors only. The model is a folder or a Hub id, as in transformers.

    Args:
        config: the base's settings: the model, its family, ...
        machine: the machine that computes; by default the CPU, in float32.

    Raises:
        ModelError: a recipe's file alone asks to run the model's code; or the model is not found, has only pickled
            weights, lacks weights, or does not fit the family.
    """
    if config.trust_remote_code == "asked":
        fix = "read that code, and if you trust it, pass --trust-code, or trust_remote_code=True to load_recipe"
        raise ModelError("the recipe runs code from the model's repository", got=config.model, where=_KEY, fix=fix)
    family = FAMILIES.get(config.family)
    base: Base = family.load(config)
    take_out(base.backbone, family.unused)
    hold_(base.backbone, getattr(torch, config.weights_dtype))  # families that load without `pretrained`
    if config.quantization is not None:
        pack_(base.backbone, config.quantization, config.model)
    base.backbone.requires_grad_(False).eval()
    base.fingerprint = weights_fingerprint(base.backbone)
    base.place(machine or Machine())
    return base


def load_task(config: TaskSettings, base: Base, seed: int) -> Task:
    """Read a task's rows and preprocess them to inputs of ``base``.

    Train, validation and test are three disjoint sets of rows: without a validation split, one is split off from train
    by ``seed``, in proportion to the classes. ``limit`` is applied after that.

    Args:
        config: the task's settings: source, columns, labels, ...
        base: the base model, for its preprocessing and its family's readout.
        seed: of the split and of the samples for ``limit``.

    Raises:
        DataError: the data do not match the recipe; the message names the place.
    """
    classes, parts = read_rows(config, base.config.family, seed)
    return made_of(config, base, classes, parts)


def made_of(config: TaskSettings, base: Base, classes: list[str], parts: Mapping[str, LabelledRows]) -> Task:
    """Return a task of rows that were read: preprocessed, with what its readout needs.

    Args:
        config: its settings.
        base: of its family.
        classes: names, in label order.
        parts: split -> rows.

    Raises:
        DataError: a row cannot be converted; the message names it.
    """
    family: Family[Any, Any] = FAMILIES.get(base.config.family)
    splits = {
        name: Split.of(family.encode(rows.table, rows.targets, config, base), rows.targets)
        for name, rows in parts.items()
    }
    decides: dict[str, Any] = {
        "splits": {name: split.fingerprint for name, split in splits.items()},
        "family": base.config.family,
        "metric": config.metric,
        "labels": classes,
        **family.decides(config, base),
    }
    if not base.machine.exact:  # the fingerprint is part of cache keys, and results in half precision are rounded
        decides["dtype"] = base.machine.dtype
    task = Task(
        name=config.name,
        family=base.config.family,
        metric=config.metric,
        labels=classes,
        form=family.form(config),
        splits=splits,
        fingerprint=fingerprint_of(decides),
        more_metrics=config.all_metrics[1:],
    )
    task = family.finish(task, config, base)
    return replace(task, record=_record(family, task, config, base))


# What prediction does not need: rows, their names, and the first values of a head.
_DATA = {"name", "source", "limit", "test_fraction", "validation_fraction", "labels", "labels_from", "head"}


# What is not recorded of a base with a task: its name, and what depends on the machine.
_ITS_OWN = {"family", "model", "revision", "trust_remote_code", "device_map"}


def _record(family: Family[Any, Any], task: Task, config: TaskSettings, base: Base) -> dict[str, Any]:
    """Return what prediction needs besides the base's weights, as JSON."""
    return {
        "family": family.name,
        "labels": list(task.labels),
        "base": base.config.model_dump(mode="json", exclude=_ITS_OWN),
        "task": config.model_dump(mode="json", exclude=_DATA),
        "readout": dict(family.describe(task, base)),
    }


def read_rows(config: TaskSettings, family: str, seed: int) -> tuple[list[str], dict[str, LabelledRows]]:
    """Return class names, and the rows of the three splits before preprocessing; this needs no base model.

    Raises:
        DataError: the data do not match the recipe; the message names the place.
    """
    if config.source.single is not None:
        tables = {"train": read_whole(config.source, config.name)}
    else:
        tables = (read_harness if config.source.kind == "lm_eval" else read)(config.source, config.name)
    targets = FAMILIES.get(family).targets(tables, config)
    parts = {split: LabelledRows(table, targets.of_split[split]) for split, table in tables.items()}
    cut_all = _cut_whole if config.source.single is not None else _with_validation
    return targets.classes, _limited(cut_all(parts, config, seed, targets.stratify), config, seed, targets.stratify)


_TEST = 0.2  # the share of a single file that is for testing, unless the recipe says otherwise


def _cut_whole(
    parts: dict[str, LabelledRows], config: TaskSettings, seed: int, stratify: bool
) -> dict[str, LabelledRows]:
    """Cut the rows of one file into test, validation and train; rows of equal inputs are in one of them."""
    whole, where = parts["train"], f"task {config.name}"
    fraction = config.test_fraction if config.test_fraction is not None else _TEST
    groups = input_groups(whole.table, config)
    rest, test = _cut_groups(whole, groups, fraction, seed, stratify, "test", where)
    left, rest_groups = whole.select(rest), [groups[row] for row in rest]
    train, validation = _cut_groups(left, rest_groups, config.validation_fraction, seed, stratify, "validation", where)
    return {"train": left.select(train), "validation": left.select(validation), "test": whole.select(test)}


def _cut_groups(
    rows: LabelledRows, groups: Sequence[int], fraction: float, seed: int, stratify: bool, split: str, where: str
) -> tuple[list[int], list[int]]:
    if len(set(groups)) < 2:
        fix = "add rows, or give a file for each split"
        raise DataError(f"no {split} rows can be cut off, since all inputs are equal", where=where, fix=fix)
    return cut_groups(groups, fraction, seed, rows.targets if stratify else None, salt=split)


def _with_validation(
    parts: dict[str, LabelledRows], config: TaskSettings, seed: int, stratify: bool
) -> dict[str, LabelledRows]:
    if "validation" not in parts:
        train = parts["train"]
        n = len(train.targets)
        if n < 2:
            raise DataError(
                "a validation split needs at least 2 rows of train", got=n, where=f"task {config.name}", fix="add rows"
            )
        kept, held_out = cut(n, config.validation_fraction, seed, train.targets if stratify else None)
        parts = {**parts, "train": train.select(kept), "validation": train.select(held_out)}
    return {split: parts[split] for split in ("train", "validation", "test")}


def _limited(
    parts: dict[str, LabelledRows], config: TaskSettings, seed: int, stratify: bool
) -> dict[str, LabelledRows]:
    limits: dict[Any, int] = dict(config.limit)
    return {
        split: part.select(sample(len(part.targets), limits[split], seed, part.targets if stratify else None))
        if split in limits
        else part
        for split, part in parts.items()
    }
