"""The registry of fusion methods: a decorator that writes a record, and the look-ups that read it.

A method is a pure function (see `tangora.methods`); its `Method` record holds the promises that the fusion engine
relies on. Nothing here imports torch.

Methods register by name and not by file, as the members of a `tangora.support.registry.Registry` do: a file may hold
several that share their code (``ties``, ``ties_per_tensor``, ``ties_sum``), and a notebook cell is enough for one.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module, metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tangora.errors import ArgumentError, FusionError, PluginError
from tangora.methods._limits import Limit, check_type
from tangora.methods._promises import Promises
from tangora.support.registry import load_entry, origin_of
from tangora.support.validation import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ENTRY_POINT_GROUP", "Method", "fusion_method", "get", "methods"]

ENTRY_POINT_GROUP = "tangora.methods"

_Function = TypeVar("_Function", bound=Callable[..., Any])
_CONTRACT = ("weights", "uniforms", "cutoffs", "statistics")  # keyword-only arguments of the engine, not of the user
_METHODS: dict[str, Method] = {}
_LOADED: set[str] = set()  # places of the entry points that were loaded


@dataclass(frozen=True, kw_only=True)
class Method(Promises):
    """A fusion method: its `Promises`, its function, and what people see of it.

    Attributes:
        name: as recipes, the command line and ``scores.csv`` write it.
        function: ``(deltas [tasks, *param], *, weights [tasks, *#param], **parameters) -> [*param]``.
        reference: where the method is from, ``arXiv:NNNN.NNNNN`` where it has a paper.
        default_weight: λ when none is given.
        parameters: the method's own parameters and their defaults.
        limits: the range of a parameter, where it has one.
    """

    name: str
    function: Callable[..., Any]
    reference: str
    default_weight: float
    parameters: Mapping[str, Any]
    limits: Mapping[str, Limit]

    def __repr__(self) -> str:
        parameters = "".join(f", {name}={value!r}" for name, value in self.parameters.items())
        return f"Method({self.name!r}, {self.granularity}{parameters})"

    def __call__(self, deltas: Tensor, **arguments: Any) -> Tensor:
        """Return ``function(deltas, weights=..., density=...)``."""
        return cast("Tensor", self.function(deltas, **arguments))

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @property
    def choose(self) -> str:
        """The docstring's sentence on when to choose the method: what follows "Choose it "."""
        paragraphs = (inspect.getdoc(self.function) or "").split("\n\n")
        found = next((p for p in paragraphs if p.startswith("Choose it ")), "")
        return " ".join(found.split()).removeprefix("Choose it ").removesuffix(".")

    def coefficients(self, weights: Sequence[float], parameters: Mapping[str, Any]) -> list[float]:
        """Return the cₜ of a linear method: by its rule, or else by applying it to the identity.

        >>> get("average").coefficients([3.0, 1.0], {})
        [0.75, 0.25]
        """
        if self.rule is not None:
            return list(self.rule(weights, **parameters))
        import torch  # deferred: the rules of linear methods, and so the fusion of checkpoints by them, do without

        column = torch.tensor(weights, dtype=torch.float64)[:, None]
        identity = torch.eye(len(weights), dtype=torch.float64)
        return [float(c) for c in self.function(identity, weights=column, **parameters)]

    def check_count(self, count: int, *, where: str = "fuse.adapters") -> None:
        """Refuse another number of task vectors than the method can fuse; no tensor is needed.

        Raises:
            FusionError: says how many it needs.

        >>> get("ties").check_count(7)
        """
        if self.tasks is not None and count != self.tasks:
            what = f"{self.name} fuses exactly {self.tasks}"
            raise FusionError(what, got=count, where=where, fix="choose another method for any other number")

    def check(self, parameters: Mapping[str, Any], *, where: str = "fuse") -> None:
        """Refuse parameters that the method does not have, of the wrong type, or out of range; no tensor is needed.

        Args:
            parameters: by name; those left out keep their defaults.
            where: the key path that the error names, such as ``fusion.methods.2.parameters``.

        Raises:
            ArgumentError: an unknown parameter (the nearest is named), a wrong type, a value out of range.

        >>> get("ties").check({"density": 0.2})
        >>> get("ties").check({"density": 20})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        tangora.errors.ArgumentError: ties: density must be in (0, 1], got 20 at fuse.density. Densities are ...
        """
        for name, value in parameters.items():
            if name not in self.parameters:
                known = list(self.parameters)
                fix = did_you_mean(name, known) if known else "it has no parameters"
                raise ArgumentError(f"{self.name}: unknown parameter {name!r}", where=where, fix=fix)
            check_type(self.name, name, value, self.parameters[name], where)
            if name in self.limits:
                self.limits[name].check(self.name, name, value, where)


def fusion_method(
    name: str,
    *,
    reference: str,
    default_weight: float,
    limits: Mapping[str, Limit] | None = None,
    **promises: Any,
) -> Callable[[_Function], _Function]:
    """Register a fusion method; the function itself is returned unchanged.

    The method's parameters are read from the signature: every keyword-only argument but ``weights``, ``uniforms``,
    ``cutoffs`` and ``statistics``, each with a default.

    Args:
        name: as recipes and the command line write it.
        reference: where the method is from.
        default_weight: λ when none is given.
        limits: the range of a parameter, where it has one.
        promises: see `tangora.methods.Promises`; ``granularity`` is needed.

    Raises:
        PluginError: the name is taken, a promise is unknown, or the signature is not the contract's.

    ::

        @fusion_method("first", granularity="element", reference="none", default_weight=1.0, linear=True)
        def first(deltas, *, weights):
            '''Return only the first task.'''
            return weights[0] * deltas[0]
    """
    known = [promise.name for promise in fields(Promises)]
    if odd := [promise for promise in promises if promise not in known]:
        raise PluginError(f"{name}: no such promise", got=odd[0], fix=did_you_mean(odd[0], known))
    if "granularity" not in promises:
        raise PluginError(f"{name}: a granularity is needed", fix="declare granularity='tensor', for instance")

    def register(function: _Function) -> _Function:
        try:
            promised = Promises(**promises)
        except PluginError as cause:
            where = _place(function)
            raise PluginError(f"{name}: {cause.what}", got=cause.got, where=where, fix=cause.fix) from None
        parameters = _parameters(name, function, promised)
        if not function.__module__.startswith("tangora.methods."):
            load_own()  # so that no name of theirs is taken
        # The same place again is a module reloaded or a notebook cell run twice, not a second method.
        taken = _METHODS.get(name)
        if taken is not None and _place(taken.function) != _place(function):
            where = f"{_place(taken.function)} and {_place(function)}"
            fix = "rename one, or uninstall the package that brings it"
            raise PluginError(f"two fusion methods are called {name!r}", where=where, fix=fix)
        _METHODS[name] = Method(
            name=name,
            function=function,
            reference=reference,
            default_weight=float(default_weight),
            parameters=MappingProxyType(parameters),
            limits=MappingProxyType(dict(limits or {})),
            **promises,
        )
        return function

    return register


def methods() -> Mapping[str, Method]:
    """Return every fusion method by name, sorted, third parties' included.

    Raises:
        PluginError: an installed package announces a method that cannot be loaded, or whose name is taken.

    >>> "ties" in methods()
    True
    """
    load_own()
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        if (origin := origin_of(entry)) in _LOADED:
            continue
        load_entry(entry, "fusion method")
        if entry.name not in _METHODS:
            what, fix = f"loading it registers no fusion method {entry.name!r}", "name it as its @fusion_method"
            raise PluginError(what, where=origin, fix=fix)
        _LOADED.add(origin)
    return MappingProxyType({name: _METHODS[name] for name in sorted(_METHODS)})


def get(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        PluginError: there is none; the nearest name and the whole list are in the message.

    >>> get("average").linear
    True
    """
    if name not in _METHODS:
        load_own(name)
    # Other people's packages are imported only when the name is not already known: a broken one must not stop `ties`.
    found = _METHODS.get(name) or methods().get(name)
    if found is None:
        raise PluginError("no such fusion method", got=name, fix=did_you_mean(str(name), sorted(_METHODS)))
    return found


def load_own(name: str | None = None) -> None:
    """Import our module of that name, whose decorators register its methods; all of them if there is none."""
    names = _modules()
    for module in [name] if name in names else names:
        import_module(f"tangora.methods.{module}")


@cache
def _modules() -> tuple[str, ...]:
    package = import_module("tangora.methods")
    return tuple(found.name for found in pkgutil.iter_modules(package.__path__) if not found.name.startswith("_"))


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"


def _parameters(name: str, function: Callable[..., Any], promised: Promises) -> dict[str, Any]:
    """The method's own parameters and their defaults, of a signature that is the contract's."""
    signature = inspect.signature(function).parameters.values()
    named = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    positional = [p for p in signature if p.kind is not p.KEYWORD_ONLY]
    given = {"uniforms": promised.random, "statistics": promised.statistics is not None}
    if "weights" not in named or any((k in named) != v for k, v in given.items()) or len(positional) != 1:
        rule = "the signature is (deltas, *, weights, [uniforms if random, statistics,] parameters with defaults)"
        raise PluginError(f"{name}: {rule}", got=str(inspect.signature(function)), where=_place(function))
    parameters = {k: v for k, v in named.items() if k not in _CONTRACT}
    cutoff = promised.cutoff
    declared = cutoff is not None and cutoff in parameters
    if ("cutoffs" in named) != declared or (cutoff and not declared) or named.get("cutoffs") is not None:
        rule = "a method with a cutoff names the parameter that decides it, and takes cutoffs=None"
        raise PluginError(f"{name}: {rule}", got=cutoff, where=_place(function))
    if bare := [k for k, v in parameters.items() if v is inspect.Parameter.empty]:
        raise PluginError(f"{name}: parameters need defaults", got=bare[0], where=_place(function))
    return parameters
