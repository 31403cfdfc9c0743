"""Find the tensor of a checkpoint that a parameter is, and whether it is stored transposed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from tangora.errors import FusionError
from tangora.storage.architecture import Architecture, architectures_of, own_architectures
from tangora.storage.checkpoint import Checkpoint
from tangora.storage.header import Stored

__all__ = ["Names", "is_turned"]

Shape: TypeAlias = "tuple[int, ...] | None"

_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder")
_CONV1D_ALONE = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_LAYERS = ("c_attn", "q_attn", "c_fc", "c_proj")
_FIX = "give the base model that the adapters were made for"


@dataclass(frozen=True)
class _Found:
    """The base's names for those wanted, and how any other name is found."""

    names: Mapping[str, str]
    other: Callable[[str], str]


class Names:
    """Maps an adapter's names for parameters to the base's.

    A name is tried unchanged, with a prefix of the base's names, and without a prefix of its own; the same prefix
    holds for all names. If exactly one fits, by the shapes too, it is taken. If none or several fit, the class of the
    model that the adapter was made for decides, by the names that transformers gives to the base's tensors in memory.

    Args:
        base: the checkpoint.
        wanted: the adapter's names -> shape of the update, or None for any shape.
        config: the adapter's ``adapter_config.json``.

    Raises:
        FusionError: the base has no such parameters, or several that they may be.
    """

    def __init__(self, base: Checkpoint, wanted: Mapping[str, Shape], config: Mapping[str, Any] | None = None) -> None:
        by_name = list(_prefixed(base, list(wanted)))
        fitting = [found for found in by_name if _fit(base, wanted, found.names)]
        if len(fitting) != 1:
            by_class = _by_class(base, wanted, config)
            fitting = by_class or fitting or by_name[:1]
        if not fitting:
            missing = next((name for name in wanted if name not in base.tensors), next(iter(wanted), ""))
            what, got = "the base has no weight for a site", missing.removesuffix(".weight")
            raise FusionError(what, got=got, where=base.folder, fix=_FIX)
        if len(fitting) > 1:
            name = next(n for n in wanted if len({found.names[n] for found in fitting}) > 1)
            what = f"{name.removesuffix('.weight')} may be any of several weights of the base"
            got = ", ".join(sorted({found.names[name] for found in fitting}))
            fix = "train or save the adapter on the whole model, or give the part of the base that it was made for"
            raise FusionError(what, got=got, where=base.folder, fix=fix)
        self._found = fitting[0]

    def __call__(self, name: str) -> str:
        """Return the base's name."""
        return self._found.names.get(name) or self._found.other(name)


def _prefixed(base: Checkpoint, wanted: list[str]) -> Iterator[_Found]:
    """Yield the names of the base for each prefix that gives all of them."""
    first = wanted[0] if wanted else ""
    longer = sorted({n.removesuffix(first) for n in base.tensors if n.endswith("." + first)})
    shorter = [first[: i + 1] for i, letter in enumerate(first) if letter == "."]
    for add, drop in [("", ""), *((add, "") for add in longer), *(("", drop) for drop in shorter)]:
        other = partial(_moved, add=add, drop=drop)
        found = {name: other(name) for name in wanted}
        if len(set(found.values())) == len(found) and all(name in base.tensors for name in found.values()):
            yield _Found(found, other)


def _moved(name: str, add: str, drop: str) -> str:
    return add + name.removeprefix(drop)


def _fit(base: Checkpoint, wanted: Mapping[str, Shape], found: Mapping[str, str]) -> bool:
    return all(shape is None or any(_fits(shape, base.tensors[found[name]].shape)) for name, shape in wanted.items())


def _fits(shape: tuple[int, ...], stored: tuple[int, ...]) -> tuple[bool, bool]:
    """Return whether an update has the shape of a stored weight, and of its transpose."""
    straight = shape == stored or (len(shape) == 2 and len(stored) > 2 and shape == (stored[0], math.prod(stored[1:])))
    return straight, len(shape) == 2 and shape[::-1] == stored


def _by_class(base: Checkpoint, wanted: Mapping[str, Shape], config: Mapping[str, Any] | None) -> list[_Found]:
    """Return the names of the base by the classes that the adapter may have been made for; each set once."""
    found: list[_Found] = []
    for one in architectures_of(base.config, config):
        if (names := _stored_names(base, wanted, one, "")) is not None:
            return [names]
    named = (config or {}).get("auto_mapping")
    inner = named.get("base_model_class") if isinstance(named, Mapping) else None
    for one in own_architectures(base.config) if inner else ():
        for path in (path for path, kind in one.modules.items() if kind == inner and path):
            names = _stored_names(base, wanted, one, f"{path}.")
            if names is not None and all(names.names != earlier.names for earlier in found):
                found.append(names)
    return found


def _stored_names(
    base: Checkpoint, wanted: Mapping[str, Shape], architecture: Architecture, prefix: str
) -> _Found | None:
    """Return the stored tensor of every name in memory; None if one has none, or several, or another shape."""
    stored: dict[str, list[str]] = {}
    for name in base.tensors:
        if (parameter := architecture.in_memory(name)) is not None:
            stored.setdefault(parameter, []).append(name)

    def one(name: str) -> str:
        parameter = prefix + name
        if parameter not in architecture.parameters:
            parameter = architecture.in_memory(parameter) or parameter
        tensors = stored.get(parameter, [])
        return tensors[0] if len(tensors) == 1 else ""

    found = {name: one(name) for name in wanted}
    unique = len(set(found.values())) == len(found)
    return _Found(found, one) if unique and all(found.values()) and _fit(base, wanted, found) else None


def is_turned(
    shape: tuple[int, ...],
    stored: Stored,
    site: str,
    embedding: bool,
    config: Mapping[str, Any] | None,
    base: Checkpoint,
) -> bool:
    """Return whether a weight is stored as the transpose of its update.

    A square weight has no shape that tells. Then the kind of its layer decides, never ``fan_in_fan_out``: peft saves
    one value for layers of both kinds.

    Raises:
        FusionError: the shapes do not fit, transposed or not, or the kind of the layer is not known.
    """
    straight, turned = _fits(shape, stored.shape)
    if not straight and not turned:
        what = f"the base's weight is {list(stored.shape)}, the adapter's update {list(shape)}"
        raise FusionError(what, where=site, fix=_FIX)
    if not (straight and turned):
        return turned
    return embedding or _is_conv1d(stored, site, bool((config or {}).get("fan_in_fan_out")), base)


def _is_conv1d(stored: Stored, site: str, flag: bool, base: Checkpoint) -> bool:
    """Return whether the layer of a square weight is transformers' ``Conv1D``, which stores the transpose."""
    types = set(_model_types(base.config))
    if len(types) == 1 and types <= set(_CONV1D_ALONE):
        return site.rpartition(".")[2] in _CONV1D_LAYERS
    if not flag and not types & set(_CONV1D):
        return False
    for architecture in own_architectures(base.config):
        if (kind := architecture.kind(stored.name)) is not None:
            return kind == "Conv1D"
    what = "a square weight in a model that may store some layers transposed, and the kind of this layer is not known"
    fix = "give a base of which config.json names a class that transformers has, or merge it with peft"
    raise FusionError(what, got=stored.name, where=site, fix=fix)


def _model_types(config: Any) -> Iterator[str]:
    """Yield the types of a model and of those that are nested in it."""
    if isinstance(config, Mapping):
        if isinstance(kind := config.get("model_type"), str):
            yield kind
        for value in config.values():
            yield from _model_types(value)
