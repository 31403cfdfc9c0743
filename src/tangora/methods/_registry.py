"""The registry of fusion methods: a decorator that writes a record, and the look-ups that read it.

A method is a pure function (see `tangora.methods`); its `Method` record holds the promises that the fusion engine
relies on. Nothing here imports torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from tangora.errors import FusionError
from tangora.methods._limits import Limit, check_type
from tangora.methods._own import load_own
from tangora.support.validation import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ENTRY_POINT_GROUP", "Granularity", "Method", "Statistic", "fusion_method", "get", "methods"]

Granularity = Literal["element", "tensor", "model"]
Statistic = Literal["gram", "fisher"]
ENTRY_POINT_GROUP = "tangora.methods"

_Function = TypeVar("_Function", bound=Callable[..., Any])
_CONTRACT = ("weights", "uniforms", "cutoffs", "statistics")  # keyword-only arguments of the engine, not of the user
_METHODS: dict[str, Method] = {}
_LOADED: set[str] = set()  # entry points already loaded, as "distribution: name = value"


@dataclass(frozen=True)
class Method:
    """What the registry knows of a fusion method.

    Attributes:
        name: as recipes, the command line and ``scores.csv`` write it.
        function: ``(deltas [tasks, *param], *, weights [tasks, *#param], **parameters) -> [*param]``.
        granularity: ``element`` (any chunking gives the same), ``tensor`` (a site's whole tensor at a time),
            ``model`` (every site at once, as one vector per task).
        reference: where the method is from, ``arXiv:NNNN.NNNNN`` where it has a paper.
        default_weight: λ when none is given.
        linear: the result is ``Σ cₜ νₜ`` with coefficients that depend on the weights only.
        homogeneous: ``f(c·weights) = c·f(weights)``, so that a grid over λ costs one call.
        additive: ``f(v + w) = f(v) + f(w)`` in the weights: a sum over the tasks, each times its weight, so that
            coefficients can be found by gradients of a model that is linear in them.
        random: the function takes ``uniforms`` in [0, 1), shaped like ``deltas``.
        tasks: the only number of tasks that it can fuse; None for any.
        parameters: the method's own parameters and their defaults.
        summary: the first line of the function's docstring.
        limits: the range of a parameter, where it has one.
        cutoff: the parameter that says which fraction of a task's entries is large enough, for a method that looks
            beyond an entry only to find that. The function then takes ``cutoffs``, one magnitude per task (of the
            smallest entry that is kept, of the tensor or of the model as ``granularity`` says), with which it is
            entry by entry; without them it finds them itself.
        statistics: what the method must know of the experts' data, one tensor per task and tensor of the model:
            ``gram`` (second moments of a linear layer's inputs, ``[in, in]``) or ``fisher`` (diagonal Fisher
            information, shaped like the update). The function then takes ``statistics``, stacked, or None for a tensor
            that has none.
        by_rows: every row of the result is a linear function of that row of the updates, the same for all rows, so that
            low-rank updates stay low-rank: the method is applied to their factors A.
        rule: of a linear method: cₜ from one weight per task, in closed form.
        copies: ``(p, q)``: of T tensors of n entries, a call holds at most ``(p·T + q)·n`` numbers at once.
    """

    name: str
    function: Callable[..., Any]
    granularity: Granularity
    reference: str
    default_weight: float
    linear: bool
    homogeneous: bool
    random: bool
    tasks: int | None
    parameters: Mapping[str, Any]
    summary: str
    limits: Mapping[str, Limit] = field(default_factory=dict)
    cutoff: str | None = None
    statistics: Statistic | None = None
    by_rows: bool = False
    rule: Callable[..., Sequence[float]] | None = None
    additive: bool = True
    copies: tuple[int, int] = (3, 6)

    def __call__(self, deltas: Tensor, **arguments: Any) -> Tensor:
        """The function itself: ``method(deltas, weights=..., density=...)``."""
        return cast("Tensor", self.function(deltas, **arguments))

    @property
    def choose(self) -> str:
        """The docstring's sentence on when to choose the method: what follows "Choose it "."""
        paragraphs = (inspect.getdoc(self.function) or "").split("\n\n")
        found = next((p for p in paragraphs if p.startswith("Choose it ")), "")
        return " ".join(found.split()).removeprefix("Choose it ").removesuffix(".")

    def coefficients(self, weights: Sequence[float], parameters: Mapping[str, Any]) -> list[float]:
        """The cₜ of a linear method: by its rule, or else by applying it to the identity.

        >>> get("average").coefficients([3.0, 1.0], {})
        [0.75, 0.25]
        """
        if self.rule is not None:
            return list(self.rule(weights, **parameters))
        import torch

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
            FusionError: an unknown parameter (the nearest is named), a wrong type, a value out of range.

        >>> get("ties").check({"density": 0.2})
        >>> get("ties").check({"density": 20})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        tangora.errors.FusionError: ties: density must be in (0, 1], got 20 at fuse.density. Densities are ...
        """
        for name, value in parameters.items():
            if name not in self.parameters:
                known = list(self.parameters)
                fix = did_you_mean(name, known) if known else "it has no parameters"
                raise FusionError(f"{self.name}: unknown parameter {name!r}", where=where, fix=fix)
            check_type(self.name, name, value, self.parameters[name], where)
            if name in self.limits:
                self.limits[name].check(self.name, name, value, where)


def fusion_method(
    name: str,
    *,
    granularity: Granularity,
    reference: str,
    default_weight: float,
    linear: bool = False,
    homogeneous: bool = True,
    random: bool = False,
    tasks: int | None = None,
    limits: Mapping[str, Limit] | None = None,
    cutoff: str | None = None,
    statistics: Statistic | None = None,
    by_rows: bool = False,
    rule: Callable[..., Sequence[float]] | None = None,
    additive: bool = True,
    copies: tuple[int, int] = (3, 6),
) -> Callable[[_Function], _Function]:
    """Register a fusion method; the function itself is returned unchanged.

    The promises are those of `Method`. The method's parameters are read from the signature: every keyword-only
    argument but ``weights``, ``uniforms``, ``cutoffs`` and ``statistics``, each with a default.

    Raises:
        FusionError: the name is taken, or the signature is not the contract's.

    ::

        @fusion_method("first", granularity="element", reference="none", default_weight=1.0, linear=True)
        def first(deltas, *, weights):
            '''Only the first task.'''
            return weights[0] * deltas[0]
    """

    def register(function: _Function) -> _Function:
        if granularity not in get_args(Granularity):
            fix = f"valid: {', '.join(get_args(Granularity))}"
            raise FusionError(f"{name}: unknown granularity", got=granularity, where=_place(function), fix=fix)
        if statistics not in (None, *get_args(Statistic)) or (statistics and granularity == "model"):
            fix = f"valid: {', '.join(get_args(Statistic))}, tensor by tensor"
            raise FusionError(f"{name}: unknown statistics", got=statistics, where=_place(function), fix=fix)
        if not function.__module__.startswith("tangora.methods."):
            load_own()  # so that no name of theirs is taken
        known = _METHODS.get(name)
        # The same place again is a module reloaded or a notebook cell run twice, not a second method.
        if known is not None and _place(known.function) != _place(function):
            raise FusionError(
                f"two fusion methods are called {name!r}",
                where=f"{_place(known.function)} and {_place(function)}",
                fix="rename one, or uninstall the package that brings it",
            )
        _METHODS[name] = Method(
            name=name,
            function=function,
            granularity=granularity,
            reference=reference,
            default_weight=float(default_weight),
            linear=linear,
            homogeneous=homogeneous,
            random=random,
            tasks=tasks,
            parameters=MappingProxyType(_parameters(name, function, random, cutoff, statistics)),
            summary=(inspect.getdoc(function) or "").split("\n", 1)[0],
            limits=MappingProxyType(dict(limits or {})),
            cutoff=cutoff,
            statistics=statistics,
            by_rows=by_rows,
            rule=rule,
            additive=additive,
            copies=copies,
        )
        return function

    return register


def methods() -> Mapping[str, Method]:
    """Every fusion method by name, sorted, third parties' included.

    Raises:
        FusionError: an installed package announces a method that cannot be loaded, or whose name is taken.

    >>> "ties" in methods()
    True
    """
    load_own()
    _load_entry_points()
    return MappingProxyType({name: _METHODS[name] for name in sorted(_METHODS)})


def get(name: str) -> Method:
    """The method called ``name``.

    Raises:
        FusionError: there is none; the nearest name and the whole list are in the message.

    >>> get("average").linear
    True
    """
    if name not in _METHODS:
        load_own(name)
    # Other people's packages are imported only when the name is not already known: a broken one must not stop `ties`.
    found = _METHODS.get(name) or methods().get(name)
    if found is None:
        raise FusionError("no such fusion method", got=name, fix=did_you_mean(str(name), sorted(_METHODS)))
    return found


def _load_entry_points() -> None:
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        package = entry.dist.name if entry.dist is not None else "unknown"
        label = f"{package}: {entry.name} = {entry.value}"
        if label in _LOADED:
            continue
        try:
            entry.load()
        except Exception as cause:  # whatever a stranger's import raises
            what = f"the fusion method {entry.name!r} cannot be loaded ({type(cause).__name__}: {cause})"
            fix = f"update or uninstall {package}"
            raise FusionError(what, where=f"entry point {label}", fix=fix) from cause
        if entry.name not in _METHODS:
            what, fix = f"loading it registers no fusion method {entry.name!r}", "name it as its @fusion_method"
            raise FusionError(what, where=f"entry point {label}", fix=fix)
        _LOADED.add(label)


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"


def _parameters(
    name: str, function: Callable[..., Any], random: bool, cutoff: str | None, statistics: str | None
) -> dict[str, Any]:
    signature = inspect.signature(function).parameters.values()
    named = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    positional = [p for p in signature if p.kind is not p.KEYWORD_ONLY]
    given = {"uniforms": random, "statistics": statistics is not None}
    if "weights" not in named or any((k in named) != v for k, v in given.items()) or len(positional) != 1:
        rule = "the signature is (deltas, *, weights, [uniforms if random, statistics,] parameters with defaults)"
        raise FusionError(f"{name}: {rule}", got=str(inspect.signature(function)), where=_place(function))
    parameters = {k: v for k, v in named.items() if k not in _CONTRACT}
    declared = cutoff is not None and cutoff in parameters
    if ("cutoffs" in named) != declared or (cutoff and not declared) or named.get("cutoffs") is not None:
        rule = "a method with a cutoff names the parameter that decides it, and takes cutoffs=None"
        raise FusionError(f"{name}: {rule}", got=cutoff, where=_place(function))
    if bare := [k for k, v in parameters.items() if v is inspect.Parameter.empty]:
        raise FusionError(f"{name}: parameters need defaults", got=bare[0], where=_place(function))
    return parameters
