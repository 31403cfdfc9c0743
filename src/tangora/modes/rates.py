"""Parameters with a learning rate of their own, such as gates beside weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["at_own_rate", "own_rate", "with_own_rates"]

_RATE = "tangora_own_rate"
_O = TypeVar("_O", bound=torch.optim.Optimizer)


def at_own_rate(parameters: Iterable[nn.Parameter], rate: float) -> None:
    """Train parameters at a learning rate of their own, by the same schedule, and without weight decay."""
    for parameter in parameters:
        setattr(parameter, _RATE, rate)


@contextlib.contextmanager
def own_rate(parameters: Iterable[nn.Parameter], rate: float) -> Iterator[None]:
    """Train parameters at a rate of their own for the block, as `at_own_rate`: for those that stay when it ends."""
    chosen = list(parameters)
    at_own_rate(chosen, rate)
    try:
        yield
    finally:
        for parameter in chosen:
            delattr(parameter, _RATE)


def with_own_rates(optimizer: _O) -> _O:
    """Move the parameters with rates of their own into groups of an optimizer that has taken no step, and return it."""
    apart: dict[float, list[nn.Parameter]] = {}
    groups: list[dict[str, Any]] = optimizer.param_groups
    for group in groups:
        for parameter in group["params"]:
            if (rate := getattr(parameter, _RATE, None)) is not None:
                apart.setdefault(rate, []).append(parameter)
        group["params"] = [p for p in group["params"] if not hasattr(p, _RATE)]
    for rate, parameters in _in_order(apart).items():
        optimizer.add_param_group({"params": parameters, "lr": rate, "weight_decay": 0.0})
    return optimizer


def _in_order(apart: Mapping[float, list[nn.Parameter]]) -> dict[float, list[nn.Parameter]]:
    """Sort by rate: a checkpoint's groups must be those of the next process."""
    return {rate: apart[rate] for rate in sorted(apart)}
