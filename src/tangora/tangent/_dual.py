"""Forward-mode differentiation of a whole network, with a graph of the primal for reverse mode.

PyTorch's dual tensors carry a tangent through any operator. By default, autograd also records the computation of each
tangent, since tangents are computed from primals that require a gradient. That graph is never used here (the gradient
of a linear model is taken at φ₀), and it would double the memory of a training step.

Operators that are not linear in their tensors therefore have rules (`_rules`, `_attention`), which compute the tangent
without a graph. An operator without a rule uses PyTorch's own derivative, and its graph of the tangent ends at the next
rule. What it saves for the backward pass keeps its tangent until the block ends.
"""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tangora.errors import ModelError
from tangora.tangent._numbers import dual, has_tangent, parts
from tangora.tangent._rules import rule_of

__all__ = ["dual", "dual_numbers", "expand", "expand_last", "expand_mapped", "has_tangent", "in_dual_numbers", "parts"]


def in_dual_numbers() -> bool:
    """Return whether this runs in a block of `dual_numbers`."""
    return forward_ad._current_level >= 0


@contextmanager
def dual_numbers() -> Iterator[None]:
    """Propagate tangents within the block.

    Raises:
        ModelError: an operator in the block has no forward derivative; the message names it.
    """
    with _named(), forward_ad.dual_level(), _Rules():
        yield


@contextmanager
def _named() -> Iterator[None]:
    try:
        with _eager():
            yield
    except NotImplementedError as cause:
        name = re.search(r"forward AD with (\S+)", str(cause))
        fix = (
            "load the model with another implementation of it (attn_implementation 'sdpa' or 'eager', "
            "experts_implementation 'eager'), or linearize: module"
        )
        raise ModelError(
            "an operator of the model has no forward derivative",
            got=name.group(1) if name else f"{_caller(cause)}: {cause}".splitlines()[0],
            where="linearize: model",
            fix=fix,
        ) from cause


def _eager() -> AbstractContextManager[Any]:
    """Call functions that `torch.compile` made as they were written: compiled code loses tangents silently."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes seconds
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


def _caller(cause: BaseException) -> str:
    """Return the name of the function that raised the error, or that applied the `torch.autograd.Function` that did."""
    own = inspect.getfile(torch.autograd.Function)
    frames = reversed(traceback.extract_tb(cause.__traceback__))
    return next((frame.name for frame in frames if frame.filename != own), "")


def expand(function: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Evaluate ``function`` in dual numbers; return primal and tangent of its result, zero if it has no tangent."""
    with dual_numbers():
        primal, tangent = parts(function())
        return primal, torch.zeros_like(primal) if tangent is None else tangent


def expand_last(function: Callable[[Tensor], Tensor], x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """Return primal and tangent of ``function`` at ``x`` in direction ``dx``, both with the graph of its parameters.

    `expand` drops the tangent's graph: for a model linear in φ, the gradient follows from the primal alone. But the
    last part of a network may have parameters that the model is not linear in, such as a head trained together with φ.
    Their gradient has a further term, through the tangent. ``x`` is detached for the tangent, since φ has no such term.
    Both draw the same random numbers, so that dropout has one mask.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _named(), forward_ad.dual_level():
        moved = function(forward_ad.make_dual(x.detach(), dx.detach()))
        tangent = forward_ad.unpack_dual(moved).tangent
    primal = function(x)
    return primal, torch.zeros_like(primal) if tangent is None else tangent


def expand_mapped(function: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Do what `expand` does, inside `torch.vmap`, where dual numbers need functorch's own level."""

    def with_rules(_: Tensor) -> Tensor:
        with _Rules():
            return function()

    zero = torch.zeros(())
    with _named():
        primal, tangent, *_ = torch.func.jvp(with_rules, (zero,), (zero,))
        return primal, tangent


class _Rules(TorchFunctionMode):
    """Applies the rule of an operator, if it has one and one of its tensors has a tangent."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = rule_of(func)
        if rule is not None and "out" not in kwargs and any(has_tangent(v) for v in (*args, *kwargs.values())):
            return rule(*args, **kwargs)
        return func(*args, **kwargs)
