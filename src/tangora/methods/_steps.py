"""Steps before a method: ``pico+tsv_m`` changes the updates of a tensor, and fuses the changed ones by ``tsv_m``.

A step is one file of pure mathematics, as a method is: a function from stacked updates to a `Change`. Its name alone
is a method too, the step before `task_arithmetic`. Steps can be chained, ``equal_norms+pico+tsv_m``: the first one sees
the updates as they are. The combination is a `Method` like any other, with promises that follow from those of its
parts, so that fusion, verification, recipes and checkpoints need nothing more than its name.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from tangora.errors import ArgumentError, PluginError
from tangora.methods._limits import Limit
from tangora.methods._registry import SEPARATOR, Method, combine_by, fusion_method, get, load_own
from tangora.methods._sums import weighted_sum, widened
from tangora.support.validation import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Change", "Step", "combination", "fusion_step", "norms_of"]

_STEPS: dict[str, Step] = {}
_CANCELLED = 1e-6  # a norm below this fraction of the wanted one is what rounding left of terms that cancel
ByNorms: TypeAlias = "Callable[[Sequence[float]], tuple[Sequence[float], float | None]]"


def _itself(fused: Tensor) -> Tensor:
    return fused


@dataclass(frozen=True)
class Change:
    """What a step makes of the updates of one tensor.

    Attributes:
        deltas: the changed updates, stacked, in any shape: the coordinates that are fused.
        back: fused coordinates -> the update; it must be linear.
        norm: the Frobenius norm that the result has for weights of 1; None to leave it.
    """

    deltas: Tensor
    back: Callable[[Tensor], Tensor] = _itself
    norm: float | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step: its function, its parameters, and what it promises.

    Attributes:
        name: its name before the ``+``.
        function: ``(deltas [tasks, *param], **parameters) -> Change``; deltas are in float32 or better.
        reference: as for a method.
        parameters, limits: as for a method.
        plain: whether the changed updates are still changes of the same weights, so that statistics of the experts'
            data apply to them.
        by_norms: for a step that multiplies each update by a number, and the numbers depend on the norms alone:
            norms -> one number per task, and `Change.norm`. A linear method after it stays exact on low-rank updates.
        symmetric, identity, neutral: as for a method; for the step followed by a sum.
        default_weight: the default λ of a combination; that of the method after it if None.
    """

    name: str
    function: Callable[..., Change]
    reference: str
    parameters: Mapping[str, Any]
    limits: Mapping[str, Limit]
    plain: bool = True
    by_norms: ByNorms | None = None
    symmetric: bool = True
    identity: bool = True
    neutral: Mapping[str, Any] = field(default_factory=dict)
    default_weight: float | None = None


def fusion_step(
    name: str, *, reference: str, limits: Mapping[str, Limit] | None = None, **promises: Any
) -> Callable[[Callable[..., Change]], Callable[..., Tensor]]:
    """Register a function as a step, and the step before `task_arithmetic` as a method of the same name.

    The decorated function becomes that method: ``(deltas, *, weights, **parameters) -> update``, with its docstring.

    Args:
        name: its name before the ``+``.
        reference: the step's source.
        limits: the ranges of parameters that have one.
        promises: see `Step`.

    Raises:
        PluginError: the name is taken, or a promise is unknown.
    """
    known = [entry.name for entry in fields(Step)]
    if odd := [promise for promise in promises if promise not in known]:
        raise PluginError(f"{name}: no such promise of a step", got=odd[0], fix=did_you_mean(odd[0], known))

    def register(function: Callable[..., Change]) -> Callable[..., Tensor]:
        signature = inspect.signature(function).parameters.values()
        parameters = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
        step = Step(
            name=name,
            function=function,
            reference=reference,
            parameters=MappingProxyType(parameters),
            limits=MappingProxyType(dict(limits or {})),
            **promises,
        )
        rule = get("task_arithmetic")
        weight = rule.default_weight if step.default_weight is None else step.default_weight
        decorate = fusion_method(
            name, reference=reference, default_weight=weight, limits=limits, **_promises(step, rule)
        )
        method: Callable[..., Tensor] = decorate(_alone(step, rule))
        _STEPS[name] = step
        return method

    return register


def combination(name: str) -> Method:
    """Return the record of ``STEP+METHOD``.

    Raises:
        PluginError: a part is unknown, the first one is not a step, or the parts do not fit together.

    >>> combination("pico+tsv_m")
    Method('pico+tsv_m', tensor, strength=1.0)
    """
    first, _, rest = name.partition(SEPARATOR)
    get(first)  # imports it; an unknown name is refused
    step = _STEPS.get(first)
    if step is None:
        fix = f"steps that can come before a method: {', '.join(_known())}"
        raise PluginError(f"{first} is a method, not a step before one", got=name, fix=fix)
    rule = get(rest)
    _check_fit(name, step, rule)
    return Method(
        name=name,
        function=_before(step, rule, name),
        reference=", ".join(dict.fromkeys([step.reference, rule.reference])),
        default_weight=rule.default_weight if step.default_weight is None else step.default_weight,
        parameters=MappingProxyType({**step.parameters, **rule.parameters}),
        limits=MappingProxyType({**step.limits, **rule.limits}),
        **_promises(step, rule),
    )


combine_by(SEPARATOR, combination)


def norms_of(deltas: Tensor) -> list[float]:
    """Return the Frobenius norm of every update, accumulated in float64."""
    import torch  # deferred: torch takes a second, and linear methods do without it

    norms = torch.linalg.vector_norm(deltas.reshape(len(deltas), -1), dim=1, dtype=torch.float64)
    return [float(norm) for norm in norms]


def _known() -> list[str]:
    load_own()
    return sorted(_STEPS)


def _alone(step: Step, rule: Method) -> Callable[..., Tensor]:
    """Return the step before a method as a function with the step's docstring and its parameters."""
    function = _before(step, rule, step.name)
    keyword = inspect.Parameter.KEYWORD_ONLY
    arguments = [
        inspect.Parameter("deltas", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        inspect.Parameter("weights", keyword),
        *(inspect.Parameter(name, keyword, default=value) for name, value in step.parameters.items()),
    ]
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(function, name, getattr(step.function, name))
    function.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    return function


def _promises(step: Step, rule: Method) -> dict[str, Any]:
    """Return the promises of a step before a method."""
    p, q = rule.copies
    return {
        "granularity": "tensor",
        "mixing": _mixing(step, rule),
        "homogeneous": rule.homogeneous,
        "additive": rule.additive,
        "random": rule.random,
        "tasks": rule.tasks,
        "statistics": rule.statistics,
        "exact": False,
        "symmetric": step.symmetric and rule.symmetric,
        "identity": step.identity and rule.identity,
        "neutral": {**step.neutral, **rule.neutral},
        "copies": (p + 3, q + 4),
    }


def _mixing(step: Step, rule: Method) -> Callable[..., Sequence[float]] | None:
    """Return the coefficients of the updates by their inner products, if step and method depend on no more."""
    by_norms = step.by_norms
    if by_norms is None or not (rule.linear or rule.mixing):
        return None

    def mixing(gram: Sequence[Sequence[float]], weights: Sequence[float], **parameters: Any) -> list[float]:
        rest = {key: value for key, value in parameters.items() if key in rule.parameters}
        scales, norm = by_norms([math.sqrt(max(row[t], 0.0)) for t, row in enumerate(gram)])
        scaled = [[g * s * r for g, s in zip(row, scales, strict=True)] for row, r in zip(gram, scales, strict=True)]

        def of(row: Sequence[float]) -> Sequence[float]:
            return rule.mixing(scaled, row, **rest) if rule.mixing else rule.coefficients(row, rest)

        level = 1.0
        if norm is not None:
            unit = of([1.0] * len(scales))
            square = math.fsum(
                a * b * g for a, row in zip(unit, scaled, strict=True) for b, g in zip(unit, row, strict=True)
            )
            level = _level(math.sqrt(max(square, 0.0)), norm)
        return [c * s * level for c, s in zip(of(weights), scales, strict=True)]

    return mixing


def _check_fit(name: str, step: Step, rule: Method) -> None:
    if rule.granularity == "model":
        fix = f"use {step.name}+ties_per_tensor" if rule.name == "ties" else "choose a method that works by tensor"
        raise PluginError(f"{step.name} works tensor by tensor, {rule.name} on the whole model", got=name, fix=fix)
    if rule.statistics and not step.plain:
        what = f"{rule.name} needs statistics of whole weights, and {step.name} fuses other coordinates"
        raise PluginError(what, got=name, fix=f"use {rule.name} alone")
    if twice := sorted(step.parameters.keys() & rule.parameters.keys()):
        what = f"{step.name} and {rule.name} both have a parameter {twice[0]!r}"
        raise PluginError(what, got=name, fix="choose another method after the step")


def _before(step: Step, rule: Method, name: str) -> Callable[..., Tensor]:
    """Return the function of a combination."""

    def fused(deltas: Tensor, *, weights: Tensor, **arguments: Any) -> Tensor:
        import torch  # deferred: torch takes a second, and linear methods do without it

        own = {key: arguments.pop(key) for key in step.parameters if key in arguments}
        change = step.function(widened(deltas), **own)
        uniforms = arguments.pop("uniforms", None)
        if uniforms is not None:  # independent draws, as many as there are coordinates
            size = change.deltas[:1].numel()
            arguments["uniforms"] = uniforms.reshape(len(deltas), -1)[:, :size].reshape(change.deltas.shape)

        def by_rule(row: Tensor) -> Tensor:
            column = row.reshape(-1, *(1,) * (change.deltas.ndim - 1))
            return rule.function(change.deltas, weights=column, **arguments)  # type: ignore[no-any-return]

        level = 1.0
        if change.norm is not None:
            unit = by_rule(change.deltas.new_ones(len(deltas)))
            level = _level(float(torch.linalg.vector_norm(unit, dtype=torch.float64)), change.norm)

        def part(row: Tensor) -> Tensor:
            return (change.back(by_rule(row)) * level).reshape(deltas.shape[1:])

        if (row := _one_per_task(weights)) is not None:
            return part(row).to(deltas.dtype)
        if not rule.additive:
            what, fix = f"{name}: weights must not differ within a tensor", "give one weight per task"
            raise ArgumentError(what, where="fuse.weights", fix=fix)
        # The coordinates may be other than the entries: each task's part of the sum is weighted, entry by entry.
        one_hot = torch.eye(len(deltas), dtype=weights.dtype, device=weights.device)
        return weighted_sum(map(part, one_hot), weights).to(deltas.dtype)

    first_line = (inspect.getdoc(step.function) or "").split("\n", 1)[0]
    fused.__doc__ = f"{first_line} Then: {rule.summary}"
    return fused


def _one_per_task(weights: Tensor) -> Tensor | None:
    """Return one weight per task, or None if they differ within a task."""
    flat = weights.reshape(len(weights), -1)
    if flat.shape[1] == 1:
        return flat[:, 0]
    if weights.requires_grad or not bool((flat == flat[:, :1]).all()):
        return None
    return flat[:, 0]


def _level(found: float, norm: float) -> float:
    """Return the factor that makes a norm the wanted one; 1 if there is nothing but rounding to scale."""
    return 1.0 if found <= _CANCELLED * norm else norm / found
