"""`Direction`: an adapter's task vector as a direction in weight space, to differentiate a model in.

A low-rank update never becomes a matrix: at its site, ``s B (A x)`` is added to the output's tangent. Any other update
makes its parameter a dual number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangora.adapters.application import find_slots
from tangora.errors import ModelError
from tangora.storage.held import values_of
from tangora.tangent._dual import dual, parts

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["Direction", "direction_of", "stacked_directions"]


@dataclass(frozen=True)
class Direction:
    """Tangents of weights.

    Attributes:
        low_rank: site -> (A ``[r, in]``, s·B ``[out, r]``) of a Linear, Conv1D or Embedding.
        parameters: parameter name -> tangent of the parameter's shape. A parameter that is tied to it has the same
            tangent, unless it has its own here.
    """

    low_rank: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[None]:
        """Give the model these tangents for the length of the block, within `dual_numbers`."""
        hooks = [model.get_submodule(site).register_forward_hook(_hook(a, b)) for site, (a, b) in self.low_rank.items()]
        places = self._places(model) if self.parameters else {}
        before = {place: place[0]._parameters[place[1]] for place in places}
        duals = {name: _dual_parameter(values_of(model, name), t) for name, t in self.parameters.items()}
        try:
            for (module, leaf), name in places.items():
                module._parameters[leaf] = duals[name]
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for (module, leaf), parameter in before.items():
                module._parameters[leaf] = parameter

    def _places(self, model: nn.Module) -> dict[tuple[nn.Module, str], str]:
        """Return (module, attribute) -> the name in ``parameters`` of its tangent."""
        first = {id(_parameter(model, name)): name for name in self.parameters}
        every = {n: p for n, p in model.named_parameters(remove_duplicate=False) if id(p) in first}
        return {_owner(model, n): n if n in self.parameters else first[id(p)] for n, p in every.items()}

    def each(self, change: Callable[[Tensor], Tensor]) -> Direction:
        """Return the direction with every tensor changed: moved to a device, say."""
        low_rank = {site: (change(a), change(b)) for site, (a, b) in self.low_rank.items()}
        return Direction(low_rank, {name: change(tangent) for name, tangent in self.parameters.items()})

    def tensors(self) -> dict[str, Any]:
        """Return all tensors as nested dictionaries, for `torch.vmap`."""
        return {"low_rank": dict(self.low_rank), "parameters": dict(self.parameters)}


def direction_of(adapter: Adapter, model: nn.Module) -> Direction:
    """Return the task vector of an adapter as a direction in the weights of ``model``.

    Raises:
        ModelError: a site is missing, of another kind or shape, or shares its weight with another layer; or a
            parameter is replaced whole.
    """
    if adapter.whole:
        fix = "train the adapter without modules_to_save"
        raise ModelError("a parameter that is saved whole has no expansion", where=next(iter(adapter.whole)), fix=fix)
    weights = dict(model.named_parameters(remove_duplicate=False))
    low_rank: dict[str, tuple[Tensor, Tensor]] = {}
    parameters: dict[str, Tensor] = {}
    for site, slot in find_slots(model, adapter).items():
        update, weight = adapter.task_vector[site], weights[slot.name]
        factors, plain = update.factors(), slot.name == f"{site}.weight"
        if factors is not None and plain and _multiplies(model.get_submodule(site)):
            low_rank[site] = (factors.a.to(weight.device), factors.b.to(weight.device) * factors.scaling)
            continue
        if slot.name not in parameters:
            parameters[slot.name] = torch.zeros_like(values_of(model, slot.name), dtype=torch.float32).detach()
        part = slot.view(parameters[slot.name])
        part.add_(update.dense().reshape(part.shape).to(part.device))
    return Direction(low_rank, parameters)


def stacked_directions(directions: Sequence[Direction]) -> Direction:
    """Stack directions along a leading dimension; lower ranks and missing sites are padded with zeros."""
    sites = dict.fromkeys(site for d in directions for site in d.low_rank)
    names = dict.fromkeys(name for d in directions for name in d.parameters)
    if clash := [name for name in names if name.removesuffix(".weight") in sites]:
        fix = "compress the dense updates to low rank"
        raise ModelError("an update is low-rank in one vector and dense in another", where=clash[0], fix=fix)
    low_rank = {site: _stacked_factors([d.low_rank.get(site) for d in directions]) for site in sites}
    parameters = {name: _stacked([d.parameters.get(name) for d in directions]) for name in names}
    return Direction(low_rank, parameters)


def _stacked_factors(pairs: Sequence[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor]:
    rank = max(pair[0].shape[0] for pair in pairs if pair is not None)
    padded = [None if p is None else (_filled(p[0], 0, rank), _filled(p[1], 1, rank)) for p in pairs]
    return _stacked([p and p[0] for p in padded]), _stacked([p and p[1] for p in padded])


def _filled(factor: Tensor, dim: int, rank: int) -> Tensor:
    missing = rank - factor.shape[dim]
    return F.pad(factor, (0, missing) if dim == 1 else (0, 0, 0, missing)) if missing else factor


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor:
    like = next(t for t in tensors if t is not None)
    return torch.stack([torch.zeros_like(like) if t is None else t for t in tensors])


def _multiplies(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D"


def _hook(a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def moved(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        primal, tangent = parts(output)
        x = inputs[0] if isinstance(module, nn.Embedding) else parts(inputs[0])[0]
        with torch.no_grad():
            hidden = F.embedding(x, a.T) if isinstance(module, nn.Embedding) else F.linear(x, a.to(x.dtype))
            added = F.linear(hidden, b.to(hidden.dtype))
            added = added if tangent is None else tangent + added
        return dual(primal, added)

    return moved


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, leaf = name.rpartition(".")
    return model.get_submodule(module), leaf


def _parameter(model: nn.Module, name: str) -> Tensor:
    module, leaf = _owner(model, name)
    return cast(Tensor, module._parameters[leaf])  # the attribute of a held weight has its float32 values


def _dual_parameter(values: Tensor, tangent: Tensor) -> Any:
    if not isinstance(tangent, nn.Parameter):
        return dual(values, tangent)
    return dual(_AtBase.apply(values.detach(), tangent), tangent.detach())  # type: ignore[no-untyped-call]


class _AtBase(torch.autograd.Function):
    """Returns the base's weight, and passes its gradient to the offset that is trained."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, offset: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient
