"""The registry of fusion methods: a decorator that registers a method, and functions to look methods up.

A method is a pure function (see `tangora.methods`); its `Method` record contains the promises that the fusion engine
relies on. This module does not import torch.

Unlike the members of a `tangora.support.registry.Registry`, methods are registered by name and not by file: a module
may define several that share code (``ties``, ``ties_per_tensor``, ``ties_sum``), and a notebook cell is enough for one.
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
SEPARATOR = "+"  # between a step and the method after it, as in pico+tsv_m

_Function = TypeVar("_Function", bound=Callable[..., Any])
_CONTRACT = ("weights", "uniforms", "cutoffs", "statistics")  # keyword-only arguments of the engine, not of the user
_METHODS: dict[str, Method] = {}
# `tangora.methods._steps` adds the function that makes STEP+METHOD: it needs the registry, and modules import one way.
_COMBINERS: dict[str, Callable[[str], Method]] = {}
_LOADED: set[str] = set()  # origins of the entry points that were loaded


@dataclass(frozen=True, kw_only=True)
class Method(Promises):
    """A fusion method: its `Promises`, its function, and its documentation.

    Attributes:
        name: its name in recipes, on the command line and in ``scores.csv``.
        function: ``(deltas [tasks, *param], *, weights [tasks, *#param], **parameters) -> [*param]``.
        reference: the method's source, ``arXiv:NNNN.NNNNN`` for a paper.
        default_weight: the default λ.
        parameters: the method's own parameters and their defaults.
        limits: the ranges of parameters that have one.
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
        """The docstring's sentence on when to choose the method, without "Choose it "."""
        paragraphs = (inspect.getdoc(self.function) or "").split("\n\n")
        advice = next((p for p in paragraphs if p.startswith("Choose it ")), "")
        return " ".join(advice.split()).removeprefix("Choose it ").removesuffix(".")

    def coefficients(self, weights: Sequence[float], parameters: Mapping[str, Any]) -> list[float]:
        """Return the cₜ of a linear method, by its rule, or else by applying it to the identity.

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
        """Check the number of task vectors; this needs no tensor.

        Raises:
            FusionError: the method cannot fuse this number; the message has the number it needs.

        >>> get("ties").check_count(7)
        """
        if self.tasks is not None and count != self.tasks:
            what = f"{self.name} fuses exactly {self.tasks}"
            raise FusionError(what, got=count, where=where, fix="choose another method for any other number")

    def check(self, parameters: Mapping[str, Any], *, where: str = "fuse") -> None:
        """Check parameters by name, type and range; this needs no tensor.

        Args:
            parameters: by name; missing ones have their defaults.
            where: the key path for the error, such as ``fusion.methods.2.parameters``.

        Raises:
            ArgumentError: a parameter is unknown (the message has the nearest name), of the wrong type, or out of
                range.

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
    """Register a fusion method; return the function unchanged.

    The method's parameters are read from the signature: all keyword-only arguments except ``weights``, ``uniforms``,
    ``cutoffs`` and ``statistics``, each with a default.

    Args:
        name: its name in recipes and on the command line.
        reference: the method's source.
        default_weight: the default λ.
        limits: the ranges of parameters that have one.
        promises: see `tangora.methods.Promises`; ``granularity`` is required.

    Raises:
        PluginError: the name is taken, a promise is unknown, or the signature does not match the contract.

    >>> @fusion_method("first", granularity="element", reference="none", default_weight=1.0, linear=True)
    ... def first(deltas, *, weights):
    ...     '''Return only the first task.'''
    ...     return weights[0] * deltas[0]
    >>> get("first")
    Method('first', element)
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
            where = _qualified(function)
            raise PluginError(f"{name}: {cause.what}", got=cause.got, where=where, fix=cause.fix) from None
        parameters = _parameters(name, function, promised)
        if not function.__module__.startswith("tangora.methods."):
            load_own()  # so that no built-in name is taken
        # The same qualified name is a module reloaded or a notebook cell run twice, not a second method.
        taken = _METHODS.get(name)
        if taken is not None and _qualified(taken.function) != _qualified(function):
            where = f"{_qualified(taken.function)} and {_qualified(function)}"
            fix = "rename one, or uninstall the package that defines it"
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


def combine_by(separator: str, combiner: Callable[[str], Method]) -> None:
    """Let `get` pass names with this separator to a function that makes their record."""
    _COMBINERS[separator] = combiner


def methods() -> Mapping[str, Method]:
    """Return all fusion methods by name, sorted, including third parties'.

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
    """Return the method with this name, or the combination ``STEP+METHOD`` (`tangora.methods.fusion_step`).

    Raises:
        PluginError: there is none; the message has the nearest name, or all names. Or the parts do not fit.

    >>> get("average").linear
    True
    >>> get("equal_norms+ties_per_tensor").parameters
    mappingproxy({'density': 0.2})
    """
    if SEPARATOR in str(name):
        return _COMBINERS[SEPARATOR](name)
    if name not in _METHODS:
        load_own(name)
    # Other packages are imported only for unknown names: a broken one must not stop `ties`.
    method = _METHODS.get(name) or methods().get(name)
    if method is None:
        raise PluginError("no such fusion method", got=name, fix=did_you_mean(str(name), sorted(_METHODS)))
    return method


def load_own(name: str | None = None) -> None:
    """Import the built-in module of this name, or all if there is none: importing it registers its methods.

    A name may go on after the module's, as ``ties_per_tensor`` does: other modules would import torch for nothing.
    """
    names = _modules()
    for module in [m for m in names if name is not None and (name == m or name.startswith(f"{m}_"))] or names:
        import_module(f"tangora.methods.{module}")


@cache
def _modules() -> tuple[str, ...]:
    package = import_module("tangora.methods")
    return tuple(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def _qualified(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"


def _parameters(name: str, function: Callable[..., Any], promised: Promises) -> dict[str, Any]:
    """Return the method's own parameters and their defaults; check the signature against the contract."""
    signature = inspect.signature(function).parameters.values()
    named = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    positional = [p for p in signature if p.kind is not p.KEYWORD_ONLY]
    required = {"uniforms": promised.random, "statistics": promised.statistics is not None}
    if "weights" not in named or any((k in named) != v for k, v in required.items()) or len(positional) != 1:
        rule = "the signature is (deltas, *, weights, [uniforms if random, statistics,] parameters with defaults)"
        raise PluginError(f"{name}: {rule}", got=str(inspect.signature(function)), where=_qualified(function))
    parameters = {k: v for k, v in named.items() if k not in _CONTRACT}
    cutoff = promised.cutoff
    declared = cutoff is not None and cutoff in parameters
    if ("cutoffs" in named) != declared or (cutoff and not declared) or named.get("cutoffs") is not None:
        rule = "a method with a cutoff names the parameter that decides it, and takes cutoffs=None"
        raise PluginError(f"{name}: {rule}", got=cutoff, where=_qualified(function))
    if promised.after_thinning and promised.random and "density" not in parameters:
        rule = "a method that declares after_thinning, and draws, has a parameter density"
        raise PluginError(f"{name}: {rule}", got=list(parameters), where=_qualified(function))
    if bare := [k for k, v in parameters.items() if v is inspect.Parameter.empty]:
        raise PluginError(f"{name}: parameters need defaults", got=bare[0], where=_qualified(function))
    return parameters
