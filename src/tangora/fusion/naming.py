"""Bring the names of adapters' sites together: those of one base differ by the class and the time of their saving.

An adapter of the bare model lacks the prefix that one of a task's model has (``bert.``). transformers renames modules
from one version to another (``language_model.model`` became ``model.language_model``), and stock peft then loads either
adapter, but not both names in one file. There are three ways to relate two names, from the surest to the least:

1. The class of the model is known, from the base's configuration or from the adapters': its present names count.
2. The base is given: two sites are the same if they are one tensor of it.
3. One name is the other behind the usual name of a base model. Any other pair that may be one module is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from tangora.adapters.adapter import Adapter
from tangora.adapters.formats.lora.layers import expert_of, is_bias, weight_of
from tangora.adapters.layouts.common import in_one_layout
from tangora.errors import FusionError
from tangora.storage.architecture import Architecture, class_of, default_architecture, stored_config, with_classes
from tangora.storage.names import Names

if TYPE_CHECKING:
    from tangora.storage.checkpoint import Checkpoint

__all__ = ["with_common_names"]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")
_PREFIXES = ("model.", "transformer.", "base_model.", "backbone.", "bert.", "roberta.", "distilbert.")
_FIX = "give the base's folder, with --base or base=, by which the names are related, or save them from one class"


def with_common_names(
    adapters: Sequence[Adapter], names: Sequence[str], base: Checkpoint | None = None
) -> list[Adapter]:
    """Return the adapters with one name per module; those of one naming are returned as they are.

    Raises:
        FusionError: two names may be one module, and nothing decides.
    """
    if any(adapter.details.file is not None for adapter in adapters):
        return in_one_layout(adapters, names)
    low_rank = all(not adapter.metadata.of_kind.by_parameter for adapter in adapters)
    if len(adapters) < 2 or not low_rank or len({_patterns(adapter) for adapter in adapters}) == 1:
        return list(adapters)
    if (common := _by_class(adapters, base)) is not None:
        return common
    return _by_prefix(_by_tensors(adapters, base) if base is not None else adapters, names)


def _patterns(adapter: Adapter) -> frozenset[str]:
    """Return the sites with ``N`` for every number."""
    return frozenset(_NUMBER.sub("N", site) for site in adapter.updates)


def _by_tensors(adapters: Sequence[Adapter], base: Checkpoint) -> list[Adapter]:
    """Rename sites that are one tensor of the base: the longest name is that of the model which contains the others."""
    stored: list[dict[str, str]] = []
    for adapter in adapters:
        plain = {site: update for site, update in adapter.updates.items() if expert_of(site) is None}
        tensors = {s: s if is_bias(s, u) else weight_of(s, adapter.updates) for s, u in plain.items()}
        named = Names(base, {tensors[s]: tuple(u.shape) for s, u in plain.items()}, adapter.config)
        stored.append({site: named(tensor) for site, tensor in tensors.items()})
    order = sorted(range(len(adapters)), key=lambda i: (-_depth(adapters[i]), i))
    common: dict[str, str] = {}
    for i in order:
        for site, tensor in stored[i].items():
            common.setdefault(tensor, site)
    result = []
    for adapter, tensors in zip(adapters, stored, strict=True):
        table = {site: common[tensor] for site, tensor in tensors.items()}
        longer = {name.removesuffix(site) for site, name in table.items() if name != site and name.endswith(f".{site}")}
        if len(longer) == 1:  # also for the sites that no other adapter has
            (prefix,) = longer
            table = {site: prefix + site if name == site else name for site, name in table.items()}
        result.append(_renamed(adapter, table))
    return result


def _depth(adapter: Adapter) -> int:
    """Return how many names stand before the first number of a site, at most."""
    return max((_root(site).count(".") for site in adapter.updates), default=0)


def _by_class(adapters: Sequence[Adapter], base: Checkpoint | None) -> list[Adapter] | None:
    """Rename all sites to those of one class; None if no class that the adapters name has them all."""
    if base is not None:
        config: Mapping[str, Any] | None = base.config
    else:
        configs = (stored_config(adapter.metadata.base.model) for adapter in adapters)
        config = next((one for one in configs if one is not None), None)
    classes = list(dict.fromkeys(name for a in adapters if (name := class_of(a.config)) is not None))
    known: Iterable[Architecture | None]
    if config is not None:
        known = with_classes(config, classes, [(a.config or {}).get("task_type") for a in adapters])
    else:
        known = [default_architecture(name) for name in classes]
    fitting = []
    for architecture in known:
        if architecture is None:
            continue
        tables = [_present_names(adapter, architecture) for adapter in adapters]
        if all(table is not None for table in tables):
            fitting.append(
                [_renamed(a, t, architecture) for a, t in zip(adapters, tables, strict=True) if t is not None]
            )
    return max(fitting, key=lambda renamed: _depth(renamed[0]), default=None)


def _present_names(adapter: Adapter, architecture: Architecture) -> dict[str, str] | None:
    """Return site -> its present name in the class; None if it has none, or two sites would be one."""
    found = {}
    for site in adapter.updates:
        module = expert_of(site)[0] if expert_of(site) else site  # type: ignore[index]
        name = architecture.module(module.replace(".base_layer", ""))
        if name is None or (module != site and name != module):
            return None
        found[site] = site if module != site else name
    return found if len(set(found.values())) == len(found) else None


def _by_prefix(adapters: Sequence[Adapter], names: Sequence[str]) -> list[Adapter]:
    trees = [_trees(adapter) for adapter in adapters]
    roots = [set(tree) for tree in trees]
    together = [pair for held in roots for pair in combinations(sorted(held), 2)]
    add = ["" for _ in adapters]
    for i, j in combinations(range(len(adapters)), 2):
        for one in sorted(roots[i] - roots[j]):
            for other in sorted(roots[j] - roots[i]):
                if tuple(sorted((one, other))) in together or not _related(one, other):
                    continue
                if not trees[i][one] & trees[j][other]:
                    continue
                short, longer, which = (one, other, i) if len(one) < len(other) else (other, one, j)
                prefix = longer.removesuffix(short)
                if not longer.endswith(f".{short}") or prefix not in _PREFIXES or add[which] not in ("", prefix):
                    what = f"{one} in {names[i]} and {other} in {names[j]} may be the same modules"
                    raise FusionError(what, where="fuse.adapters", fix=_FIX)
                add[which] = prefix
    return [
        _renamed(a, {site: prefix + site for site in a.updates}) if prefix else a
        for a, prefix in zip(adapters, add, strict=True)
    ]


def _trees(adapter: Adapter) -> dict[str, set[str]]:
    """Return root -> the modules under it that hold adapted layers, with ``N`` for every number."""
    trees: dict[str, set[str]] = {}
    for site, update in adapter.updates.items():
        layer = site.removesuffix(".bias") if is_bias(site, update) else site
        root = _root(layer)
        inner = (
            _NUMBER.sub("N", layer.removeprefix(root)).rpartition(".")[0] if root != layer else layer.rpartition(".")[2]
        )
        trees.setdefault(root, set()).add(inner)
    return trees


def _root(site: str) -> str:
    """Return the name before the first number, or all of it."""
    match = _NUMBER.search(site)
    return site if match is None else site[: match.start()].rstrip(".")


def _related(one: str, other: str) -> bool:
    """Return whether two names may be of one module: one has all the parts of the other."""
    x, y = set(one.split(".")), set(other.split("."))
    return x <= y or y <= x


def _renamed(adapter: Adapter, table: Mapping[str, str], architecture: Architecture | None = None) -> Adapter:
    """Return the adapter with other names of its sites; its fingerprint is still that of its files."""
    if all(site == name for site, name in table.items()):
        return adapter
    new: Callable[[str], str] = lambda site: table.get(site, site)  # noqa: E731
    updates = {new(site): update for site, update in adapter.updates.items()}
    initial = None if adapter.initial is None else {new(site): u for site, u in adapter.initial.items()}
    details = replace(
        adapter.details,
        initial=initial,
        embeddings=frozenset(map(new, adapter.embeddings)),
        kernels={new(site): kernel for site, kernel in adapter.kernels.items()},
        names={name: adapter.details.names.get(site, site) for site, name in table.items()},
    )
    whole = {_whole(name, table, architecture): value for name, value in adapter.whole.items()}
    renamed = replace(adapter, updates=updates, details=details, whole=whole)
    vars(renamed)["fingerprint"] = adapter.fingerprint
    return renamed


def _whole(name: str, table: Mapping[str, str], architecture: Architecture | None) -> str:
    """Return the name of a parameter that is saved whole: that of its site, or as the class has it."""
    module, _, leaf = name.rpartition(".")
    if module in table:
        return f"{table[module]}.{leaf}"
    return name if architecture is None else architecture.in_memory(name) or name
