"""A model on several devices: each part computes where its weights are, and its inputs follow it there.

    cuda:0  embeddings, blocks 0 to 15 ─▶ cuda:1  blocks 16 to 31, output ─▶ cuda:0  where the inputs were

One part computes at a time: this is for models that are too large for one device, and makes nothing faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from tangora.errors import ModelError
from tangora.support.extras import require

__all__ = ["automatic", "is_spread", "move_", "places_of", "spread_"]

_WHERE = "base.device_map"
_PLACES = "_tangora_places"


def automatic(model: nn.Module, how: str) -> dict[str, str]:
    """Return a map of parts to devices by accelerate: blocks that fill the accelerators one after the other, or evenly.

    Args:
        model: on the CPU.
        how: ``auto`` or ``balanced`` (evenly), or ``sequential``.

    Raises:
        MissingExtraError: accelerate is not installed.
        ModelError: the model does not say which of its parts must not be divided.
    """
    require("train", purpose="a device map")
    from accelerate import infer_auto_device_map  # deferred: takes a second to import
    from accelerate.utils import get_balanced_memory

    if not torch.cuda.is_available():
        return {"": "cpu"}
    whole = [name for name in getattr(model, "_no_split_modules", None) or () if name]
    if not whole:
        fix = "give a map from parts to devices, such as {embeddings: 0, encoder: 1}"
        raise ModelError("the model does not name its blocks", got=type(model).__name__, where=_WHERE, fix=fix)
    memory = get_balanced_memory(model, no_split_module_classes=whole) if how != "sequential" else None
    found = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
    return {name: str(device) for name, device in found.items()}


def spread_(model: nn.Module, places: Mapping[str, str | int], first: torch.device) -> nn.Module:
    """Move the parts of a model to devices, in place, and return it.

    Args:
        model: on one device.
        places: name of a submodule -> device; the longest name that fits a weight decides. ``""`` is the whole model.
        first: where inputs come from: the device of the model's first weight.

    Raises:
        ModelError: a name or a device does not exist, a weight has no place, layers on two devices share a weight, or
            the first weight is not where the inputs are.
    """
    modules = dict(model.named_modules())
    devices = {name: _device(place, name) for name, place in places.items()}
    for name in devices:
        if name not in modules:
            raise ModelError("the model has no such part", got=name, where=_WHERE, fix="name submodules of the base")
    owners: dict[int, tuple[str, torch.device]] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        device = _place(name, devices)
        other, before = owners.setdefault(id(tensor), (name, device))
        if before != device:
            fix = "put both on one device"
            raise ModelError(f"{name} shares its weight with {other}, on another device", where=_WHERE, fix=fix)
    start, placed = next(iter(model.named_parameters()))[0], next(iter(owners.values()))[1]
    if _number(placed) != _number(first):
        fix = f"put {start} on {first}, or set machine.device: {placed}"
        raise ModelError("inputs are on another device than the first weight", got=str(placed), where=_WHERE, fix=fix)
    _move(model, devices)
    for name, module in modules.items():
        own = next((t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None), None)
        if name in devices:
            module.register_forward_pre_hook(_following(devices[name]), with_kwargs=True)
        elif own is not None:
            module.register_forward_pre_hook(_following(own.device), with_kwargs=True)
    model.register_forward_hook(_back, with_kwargs=True)
    setattr(model, _PLACES, {name: str(device) for name, device in devices.items()})
    return model


def is_spread(model: nn.Module) -> bool:
    """Return whether the parts of the model itself were moved by `spread_`."""
    return hasattr(model, _PLACES)


def places_of(model: nn.Module) -> dict[str, str]:
    """Return the map by which a model, or a model inside it, was moved; empty if none was."""
    return next((dict(getattr(module, _PLACES)) for module in model.modules() if is_spread(module)), {})


def move_(model: nn.Module, device: torch.device) -> None:
    """Move everything to a device, except models in it that are spread over several."""
    if not any(is_spread(module) for module in model.modules()):
        model.to(device)
    elif not is_spread(model):
        for parameter in model.parameters(recurse=False):
            parameter.data = parameter.data.to(device)
        for name, buffer in model.named_buffers(recurse=False):
            model._buffers[name] = buffer.to(device)
        for child in model.children():
            move_(child, device)


def _device(place: str | int, name: str) -> torch.device:
    if place == "disk":
        fix = "hold the weights in fewer bytes with base.quantization, or use more devices"
        raise ModelError("weights on disk cannot be computed with", got=place, where=f"{_WHERE}, {name}", fix=fix)
    try:
        device = torch.device(f"cuda:{place}" if str(place).isdigit() else place)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as cause:  # torch raises either, by how it was built
        reason = str(cause).split("\n")[0]
        fix = "name devices of this machine"
        what = f"the device cannot be used ({reason})"
        raise ModelError(what, got=place, where=f"{_WHERE}, {name}", fix=fix) from cause
    return device


def _place(name: str, devices: Mapping[str, torch.device]) -> torch.device:
    fitting = [key for key in devices if not key or name.startswith(f"{key}.")]
    if not fitting:
        raise ModelError("a weight has no device", got=name, where=_WHERE, fix="name its part, or '' for all others")
    return devices[max(fitting, key=len)]


def _number(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0


def _move(model: nn.Module, devices: Mapping[str, torch.device]) -> None:
    moved: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                device = _place(f"{prefix}.{name}" if prefix else name, devices)
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(
                        parameter.data.to(device), requires_grad=parameter.requires_grad
                    )
                module._parameters[name] = moved[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(_place(f"{prefix}.{name}" if prefix else name, devices))


def _following(device: torch.device) -> Any:
    def follow(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        return _moved(inputs, device), _moved(named, device)

    return follow


def _back(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """Return the model's output on the device of its first input."""
    device = next((value.device for value in (*inputs, *named.values()) if isinstance(value, Tensor)), None)
    return output if device is None else _moved(output, device)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device)


def _moved(value: Any, device: torch.device) -> Any:
    """Return a value with its tensors on a device: also those in sequences, mappings and transformers' outputs."""
    if isinstance(value, Tensor):
        return _to(value, device)
    if isinstance(value, Mapping):
        items = {name: _moved(one, device) for name, one in value.items()}
        return items if type(value) is dict else cast(Any, type(value))(**items)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(one, device) for one in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(one, device) for one in value)
    return value
