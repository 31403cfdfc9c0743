"""Write a head that only the adapters have: a classifier, in a base that was pretrained without one.

Its tensors are added to the output, and the configuration names the class that has them, and the number of labels. A
head is not weighted: the base has none that it would be a change of. With ``heads="keep"`` it stays beside the output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tangora.adapters.model_classes import head_of, labels_of, model_class
from tangora.checkpoints.added_rows import saved_in
from tangora.checkpoints.align import Target
from tangora.checkpoints.onto_base import OrientedUpdate
from tangora.errors import FusionError
from tangora.fusion.saved import name_in
from tangora.storage.checkpoint import Checkpoint
from tangora.storage.header import Stored
from tangora.storage.tensors import read_rows
from tangora.updates.task_vector import Dense

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["beyond", "head_targets", "headed"]

_KEEP = "keep the head beside the model, with heads='keep', --heads keep"


def beyond(whole: Mapping[str, Tensor], adapters: Sequence[Adapter], base: Checkpoint, keep: bool) -> dict[str, Tensor]:
    """Return the parts of a head that are saved whole and that the base cannot hold.

    Args:
        whole: parameter -> value.
        adapters: the parents.
        base: their base.
        keep: whether heads are kept beside the output: then one of another shape counts too.
    """
    found = {}
    for name in head_of(dict.fromkeys(whole, ())):
        stored = base.find(name_in(base, name, adapters))
        if stored is None or (keep and stored.shape != tuple(whole[name].shape)):
            found[name] = whole[name]
    return found


def head_targets(head: Mapping[str, Tensor], folders: Sequence[Path], count: int) -> list[Target]:
    """Return the tensors of a head as targets, each from the first adapter's file that has it.

    Raises:
        FusionError: no file has one of them.
    """
    stored: dict[str, Stored] = {}
    for folder in reversed(folders):
        stored |= saved_in(folder)
    targets = []
    for name, value in head.items():
        if name not in stored or stored[name].shape != tuple(value.shape):
            raise FusionError("the base has no such parameter, and no adapter's file", got=name, fix=_KEEP)
        change = value.float() - read_rows(stored[name], 0, value.shape[0]).reshape(value.shape)
        start = OrientedUpdate(Dense(change), False) if bool(change.any()) else None
        targets.append(Target(name, stored[name], (None,) * count, start))
    return targets


def headed(config: Mapping[str, Any], adapter: Mapping[str, Any] | None, head: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the configuration of the base with the head: its class, and the number of its labels.

    Args:
        config: ``config.json`` of the base.
        adapter: ``adapter_config.json``.
        head: parameter -> value.

    Raises:
        FusionError: the class or the number of labels is not known.
    """
    named, labels = _class_name(config, adapter), labels_of({name: tuple(v.shape) for name, v in head.items()})
    if named is None or labels is None:
        what = "the base has no head, and the class of the model with the adapter's head is not known"
        raise FusionError(what, got=(adapter or {}).get("task_type"), where=next(iter(head)), fix=_KEEP)
    changed = {key: value for key, value in config.items() if key != "num_labels"} | {"architectures": [named]}
    if len(config.get("id2label") or {0: "", 1: ""}) != labels:
        names = {str(i): f"LABEL_{i}" for i in range(labels)}
        changed |= {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    return changed


def _class_name(config: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> str | None:
    """Return the class of the model with its head: the adapter's, or that of its task for the base's type of model."""
    named = model_class(adapter)
    if named is None or not named.startswith("AutoModelFor"):
        return named if named != "AutoModel" else None
    from transformers.models.auto import modeling_auto  # deferred: it takes a second to import

    task = {"SequenceClassification": "SEQUENCE_CLASSIFICATION", "TokenClassification": "TOKEN_CLASSIFICATION"}
    key = task.get(named.removeprefix("AutoModelFor"), "QUESTION_ANSWERING")
    table = getattr(modeling_auto, f"MODEL_FOR_{key}_MAPPING_NAMES", {})
    found = table.get(config.get("model_type"))
    return str(found) if found is not None else None
