"""`load_base`, and `load_task`: read, name, split, limit, preprocess, and give it a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tangora.errors import DataError
from tangora.tasks import labels as naming
from tangora.tasks.base import Base, weights_fingerprint
from tangora.tasks.families import text_to_text
from tangora.tasks.families.registry import FAMILIES
from tangora.tasks.sources import Table, read
from tangora.tasks.splits import cut, sample
from tangora.tasks.values import Split, Task, fingerprint_of

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.config.recipe import BaseConfig, TaskConfig
    from tangora.tasks.base import TextEncoder

__all__ = ["Part", "head", "load_base", "load_task", "read_parts"]

_EMBEDDED_AT_ONCE = 256


@dataclass(frozen=True)
class Part:
    """Rows of a split with their targets, before preprocessing."""

    table: Table
    targets: list[Any]

    def select(self, rows: Sequence[int]) -> Part:
        """The rows with these numbers, in this order."""
        return Part(self.table.select(rows), [self.targets[i] for i in rows])


def load_base(config: BaseConfig) -> Base:
    """Load the pretrained model of a recipe, with what its family needs to preprocess inputs and name classes.

    Weights are read from safetensors only. The model is found as transformers finds it: a folder, or a Hub id.

    Raises:
        ModelError: the model is not found, has only pickled weights, lacks weights, or does not fit the family.
    """
    base = FAMILIES[config.family].load(config)
    base.backbone.requires_grad_(False).eval()
    base.fingerprint = weights_fingerprint(base.backbone)
    return base


def load_task(config: TaskConfig, base: Base, seed: int) -> Task:
    """Read a task's rows and make them into inputs of ``base``.

    Train, validation and test are three different sets of rows: without a validation split, one is cut from train by
    ``seed``, in proportion to the classes. ``limit`` is applied after that.

    Args:
        config: where the rows are, which columns, which labels.
        base: gives the preprocessing, and embeds the class names.
        seed: decides the cut and the samples of ``limit``.

    Raises:
        DataError: the data are not as the recipe says; the message says where.
    """
    classes, parts = read_parts(config, base.config.family, seed)
    splits = {name: _split(part, config, base) for name, part in parts.items()}
    scale = base.scale if base.text is not None else None
    decides: dict[str, Any] = {
        "splits": {name: split.fingerprint for name, split in splits.items()},
        "family": base.config.family,
        "metric": config.metric,
        "labels": classes,
        "scale": scale,
        "head": [base.text.fingerprint, config.templates] if base.text else None,
        "generation": base.config.max_new_tokens if base.text is None else None,
    }
    return Task(
        name=config.name,
        family=base.config.family,
        metric=config.metric,
        labels=classes,
        splits=splits,
        head=head(base.text, classes, config.templates) if base.text else None,
        scale=scale,
        fingerprint=fingerprint_of(decides),
        more_metrics=config.all_metrics[1:],
    )


def read_parts(config: TaskConfig, family: str, seed: int) -> tuple[list[str], dict[str, Part]]:
    """Class names, and the rows of the three splits before preprocessing: no base model is needed.

    Raises:
        DataError: the data are not as the recipe says; the message says where.
    """
    classes, parts, stratify = _targets(read(config.source, config.name), config, family)
    return classes, _limited(_three(parts, config, seed, stratify), config, seed, stratify)


def head(text: TextEncoder, labels: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "classes dim"]:
    """A unit vector per class: the mean of its normalized prompt embeddings, normalized.

    As in Radford et al. 2021 (CLIP), section 3.1.4.

    Args:
        text: the pretrained text encoder.
        labels: class names.
        templates: prompts with ``{}`` where the class name goes.
    """
    prompts = [template.replace("{}", label) for label in labels for template in templates]
    chunks = [prompts[i : i + _EMBEDDED_AT_ONCE] for i in range(0, len(prompts), _EMBEDDED_AT_ONCE)]
    embedded = normalize(torch.cat([text.embed(chunk) for chunk in chunks]), dim=-1)
    return normalize(embedded.view(len(labels), len(templates), -1).mean(1), dim=-1)


def _targets(tables: Mapping[str, Table], config: TaskConfig, family: str) -> tuple[list[str], dict[str, Part], bool]:
    """Class names, targets per split, and whether the rows fall into classes."""
    names = naming.given_names(tables, config)
    if family != "text-to-text":
        classes, numbers = naming.class_numbers(tables, config, names)
        return classes, {split: Part(table, list(numbers[split])) for split, table in tables.items()}, True
    classes, labels = _spoken_labels(tables, config, names)
    parts = {
        split: Part(table, text_to_text.targets(table, config, labels.get(split, [])))
        for split, table in tables.items()
    }
    return classes, parts, bool(classes)


def _spoken_labels(
    tables: Mapping[str, Table], config: TaskConfig, names: list[str] | dict[str, str] | None
) -> tuple[list[str], dict[str, list[Any]]]:
    """What ``{label}`` stands for: the class name where there are names, else the value as it is."""
    if "label" not in text_to_text.fields(config.target, "target"):
        return [], {}
    if names is None:
        raw = {split: naming.raw_labels(table, config.label) for split, table in tables.items()}
        if any(isinstance(value, float) for values in raw.values() for value in values):
            return [], raw
        if "{label}" not in config.target:  # a number format: a grade, not a class
            return [], raw
    classes, numbers = naming.class_numbers(tables, config, names)
    return classes, {split: [classes[i] for i in values] for split, values in numbers.items()}


def _three(parts: dict[str, Part], config: TaskConfig, seed: int, stratify: bool) -> dict[str, Part]:
    if "validation" not in parts:
        train = parts["train"]
        n = len(train.targets)
        if n < 2:
            raise DataError(
                "a validation split needs at least 2 rows of train", got=n, where=f"task {config.name}", fix="give more"
            )
        kept, held_out = cut(n, config.validation_fraction, seed, train.targets if stratify else None)
        parts = {**parts, "train": train.select(kept), "validation": train.select(held_out)}
    return {split: parts[split] for split in ("train", "validation", "test")}


def _limited(parts: dict[str, Part], config: TaskConfig, seed: int, stratify: bool) -> dict[str, Part]:
    limits: dict[Any, int] = dict(config.limit)
    return {
        split: part.select(sample(len(part.targets), limits[split], seed, part.targets if stratify else None))
        if split in limits
        else part
        for split, part in parts.items()
    }


def _split(part: Part, config: TaskConfig, base: Base) -> Split:
    inputs = FAMILIES[base.config.family].encode(part.table, config, base)
    if base.config.family == "text-to-text":
        inputs["labels"] = text_to_text.answers(part.targets, part.table, base)
    return Split(inputs, part.targets)
