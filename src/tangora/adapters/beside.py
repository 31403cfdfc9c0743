"""Updates of weights that cannot take them: computed beside the weight, or with a float32 weight in its place.

    y = W x + s B (A x)        a low-rank update of a Linear or Conv1D whose W is in half precision, or quantized
    y = (W + ΔW) x             any other update: W + ΔW is formed in float32 for as long as it is needed

Both are what the float32 model with the same W computes, up to the order of the sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangora.storage.held import values_of

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.application import Slot
    from tangora.updates.update import Factors

__all__ = ["beside"]


@contextlib.contextmanager
def beside(model: nn.Module, adapter: Adapter, slots: Mapping[str, Slot], names: Collection[str]) -> Iterator[None]:
    """Answer with the adapter's updates of some parameters for the length of the block; the parameters stay.

    Args:
        model: the adapter's base.
        adapter: of any kind.
        slots: of its updates.
        names: the parameters, which are held.
    """
    hooks: dict[nn.Module, Factors] = {}
    values: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in adapter.whole.keys() & set(names):
        values[name] = adapter.whole[name].to(parameters[name].device, torch.float32, copy=True)
    for site, slot in slots.items():
        if slot.name not in names:
            continue
        factors, module = adapter.updates[site].factors(), model.get_submodule(slot.name.rpartition(".")[0])
        if factors is not None and slot.name == f"{site}.weight" and slot.name not in values and _multiplies(module):
            hooks[module] = factors
            continue
        if slot.name not in values:
            values[slot.name] = values_of(model, slot.name).detach().clone()
        slot.add_(values[slot.name], adapter.updates[site])
    with contextlib.ExitStack() as stack:
        for module, factors in hooks.items():
            device = next(module.parameters()).device
            hook = _hook(factors.a.to(device), factors.b.to(device) * factors.scaling)
            stack.callback(module.register_forward_hook(hook).remove)
        stack.enter_context(_in_place_of(model, {id(parameters[n]): value for n, value in values.items()}))
        yield


def _multiplies(module: nn.Module) -> bool:
    """Return whether the module is always called, with its weight as a matrix: attention reads some by themselves."""
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _hook(a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def added(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        hidden = F.linear(inputs[0].to(a.dtype), a)
        return output + F.linear(hidden, b.to(hidden.dtype)).to(output.dtype)

    return added


@contextlib.contextmanager
def _in_place_of(model: nn.Module, values: Mapping[int, Tensor]) -> Iterator[None]:
    """Put values in place of parameters, given by their ids, wherever the model has them; put these back at the end."""
    before: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in model.modules() if values else ():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in values:
                    before.append((module, name, parameter))
                    module._parameters[name] = nn.Parameter(values[id(parameter)], requires_grad=False)
        yield
    finally:
        for module, name, parameter in before:
            module._parameters[name] = parameter
