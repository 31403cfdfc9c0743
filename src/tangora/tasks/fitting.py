"""Adapters of a model with a head, as stock peft saves them, on a backbone and a readout.

An adapter trained by peft (``task_type="SEQ_CLS"``) names the layers of the class with the head, such as
``bert.encoder...``, and saves the head whole (``modules_to_save``). Here the two are apart:

    bert.encoder.layer.0...   ─ of_backbone ─▶ encoder.layer.0...        updates of the backbone
    classifier.weight         ─ head_of ─────▶ heads of a task           tensors with the readout's names

Such an adapter has one head and does not name its task, so the head is that of any task that it is asked for; one of
another number of classes is refused. If it saved only a part of its head, the rest is that of the base's checkpoint, as
it was in training; if that has none, the adapter is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tangora.adapters.formats.lora.layers import layer_of
from tangora.errors import AdapterError
from tangora.tasks.classification.base import ClassifierBase

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.tasks.base import Base
    from tangora.tasks.values import Task

__all__ = ["head_of", "of_backbone", "own_names", "with_head", "with_present_names"]


def of_backbone(adapter: Adapter, base: Base) -> Adapter:
    """Return an adapter with the backbone's names and without a head that it saved whole; itself if it is so already.

    Its fingerprint stays that of its files, and ``details.names`` has their names.

    Args:
        adapter: of any kind.
        base: of the adapter.
    """
    return _renamed(adapter, base, _namer(base)) if isinstance(base, ClassifierBase) else adapter


def with_present_names(adapter: Adapter, base: Base) -> Adapter:
    """Return an adapter with the names that its layers have in a base of any family; itself if it has them already.

    An adapter of the bare model lacks the prefix that one of a task's model has (``model.``), and the other way round.
    Names that are in neither form are left as they are, and do not fit.

    Args:
        adapter: of any kind that changes weights.
        base: of the adapter.
    """
    return _renamed(adapter, base, _namer(base))


def _renamed(adapter: Adapter, base: Base, new: Callable[[str], str]) -> Adapter:
    head = set(_head_names(base)) if isinstance(base, ClassifierBase) else set()
    sites = {site: new(site) for site in adapter.updates}
    whole = {new(name): value for name, value in adapter.whole.items() if name not in head}
    if all(site == name for site, name in sites.items()) and whole.keys() == adapter.whole.keys():
        return adapter
    initial = adapter.initial
    details = replace(
        adapter.details,
        initial=None if initial is None else {new(site): update for site, update in initial.items()},
        embeddings=frozenset(map(new, adapter.embeddings)),
        kernels={new(site): kernel for site, kernel in adapter.kernels.items()},
        names={name: adapter.details.names.get(site, site) for site, name in sites.items()},
    )
    updates = {sites[site]: update for site, update in adapter.updates.items()}
    fitted = replace(adapter, updates=updates, details=details, whole=whole)
    vars(fitted)["fingerprint"] = adapter.fingerprint
    return fitted


def with_head(adapter: Adapter, base: Base, task: Task) -> Adapter:
    """Return `of_backbone` of an adapter, with a head that it saved whole as that of the task.

    Raises:
        AdapterError: see `head_of`.
    """
    fitted = of_backbone(adapter, base)
    if fitted is adapter or not isinstance(base, ClassifierBase):
        return adapter
    head = head_of(adapter, base, task, _head_names(base))
    return fitted if head is None else replace(fitted, heads={**adapter.heads, task.name: head})


def own_names(adapter: Adapter, base: Base) -> Mapping[str, str]:
    """Return the backbone's name of a site -> its name in the adapter, where they differ."""
    new = _namer(base) if isinstance(base, ClassifierBase) else str
    return {name: site for site in adapter.updates if (name := new(site)) != site}


def head_of(adapter: Adapter, base: Base, task: Task, names: Collection[str]) -> Mapping[str, Tensor] | None:
    """Return the head that an adapter has for a task; None if it has none.

    Args:
        adapter: with heads of tasks, or a head that it saved whole.
        base: of the adapter.
        task: the task.
        names: of the readout's parameters.

    Raises:
        AdapterError: the head was trained with other settings, or on another kind of features.
    """
    head = adapter.heads.get(task.name)
    if not isinstance(base, ClassifierBase):
        return head
    if head is None:
        head = {name: value for name, value in adapter.whole.items() if name in names}
    if not head:
        return None
    _refuse_other_settings(adapter, base, task)
    return {**{name: base.given[name] for name in names if name in base.given}, **head}


def _refuse_other_settings(adapter: Adapter, base: ClassifierBase, task: Task) -> None:
    """Refuse a head that reads something else, or whose logits mean something else."""
    config: Any = base.config
    record = adapter.records.get(task.name)
    where, fix = f"heads/{task.name}.json", "give base and task the settings that the adapter was trained with"
    if record is None:
        if config.layers != "model":
            what = "a head of transformers' own class needs a base with layers: model"
            raise AdapterError(what, got=config.layers, where="base.layers", fix="leave layers and pooling out")
        return
    for key in ("layers", "pooling"):
        if key in record.base and record.base[key] != getattr(config, key, None):
            what = f"the head was trained with {key}: {record.base[key]}"
            raise AdapterError(what, got=getattr(config, key, None), where=where, fix=fix)
    given, trained = (settings.get("problem") for settings in (task.record.get("task", {}), record.task))
    if None not in (given, trained) and given != trained:
        raise AdapterError(f"the head was trained for problem: {trained}", got=given, where=where, fix=fix)


def _head_names(base: ClassifierBase) -> list[str]:
    """Return the names of a head's parameters, whatever its number of classes; none with ``layers: linear``."""
    settings: Any = base.config
    if settings.layers != "model":
        return []
    modules = base.head(1).modules.items()
    return [f"{child}.{name}" for child, module in modules for name, _ in module.named_parameters()]


def _namer(base: Base) -> Callable[[str], str]:
    """Return a function for the backbone's name of a site or a parameter, which may have its prefix before it or not.

    A classifier's backbone is the bare model, so that the prefix goes; elsewhere it may be missing, too.
    """
    backbone: Any = base.backbone
    known = {name for name, _ in backbone.named_modules()} | {name for name, _ in backbone.named_parameters()}
    prefix = f"{getattr(backbone, 'base_model_prefix', '')}."

    def new(name: str) -> str:
        layer = layer_of(name).removesuffix(".bias")
        if layer in known or prefix == ".":
            return name
        if layer.removeprefix(prefix) in known:
            return name.removeprefix(prefix)
        return prefix + name if prefix + layer in known else name

    return new
