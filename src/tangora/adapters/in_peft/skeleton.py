"""A model that consists of an adapter's sites only, for stock peft to load the adapter into: shapes without weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.adapters.formats.lora.layers import expert_of, experts_of, is_attention, layer_of
from tangora.adapters.formats.lora.names import PREFIX
from tangora.adapters.formats.lora.settings import HEADS, parameters_of
from tangora.errors import AdapterError

if TYPE_CHECKING:
    from tangora.adapters.formats.lora.writing import Content

__all__ = ["load_in_peft", "peft_layers", "peft_state"]

_CONVOLUTIONS: dict[int, Any] = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}


def load_in_peft(content: Content, config: Mapping[str, Any], folder: Path) -> nn.Module:
    """Load an adapter's folder with stock peft, into a skeleton of the sites that it should have.

    Raises:
        AdapterError: peft refuses it, or reports missing weights.
    """
    import peft  # deferred: it takes seconds to import

    peft_config = peft.PeftConfig.from_pretrained(str(folder))
    if peft_config.task_type not in HEADS:  # the methods that peft adds for other tasks need a whole model
        peft_config.task_type = None
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = peft.PeftModel.from_pretrained(
                _skeleton(content, config), str(folder), config=peft_config, low_cpu_mem_usage=True
            )
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as cause:
        fix = "report it, with the adapters' configurations"
        raise AdapterError(f"stock peft does not load it ({str(cause)[:200]})", where=folder, fix=fix) from cause
    missing = [str(w.message)[:300] for w in caught if "missing adapter keys" in str(w.message)]
    if missing:
        raise AdapterError(f"stock peft misses weights ({missing[0]})", where=folder, fix="report it")
    return model


def peft_layers(model: nn.Module) -> dict[str, Any]:
    """Return path in the base -> LoRA layer; among wrappers of one module, the inner ones end in ``.base_layer``."""
    from peft.tuners.lora.layer import LoraLayer  # deferred: it takes seconds to import

    inner: Any = model
    return {name: m for name, m in inner.get_base_model().named_modules() if isinstance(m, LoraLayer)}


def peft_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that peft holds for its adapter, and those of the base, by the base's names."""
    import peft  # deferred: it takes seconds to import

    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name.removeprefix(PREFIX): tensor for name, tensor in {**model.state_dict(), **state}.items()}


def _skeleton(content: Content, config: Mapping[str, Any]) -> nn.Module:
    root = nn.Module()
    for site, update in sorted(content.updates.items()):
        outer = site.removesuffix(".base_layer.out_proj")
        if expert_of(site) is None and (outer == site or outer not in content.updates):
            _put(root, site, _layer(site, update.shape, content))
    by_module: dict[str, list[tuple[int, list[int]]]] = {}
    for layer, experts in experts_of(content.updates).items():
        shape = [len(experts), *experts[0].shape] if len(experts) > 1 else list(experts[0].shape)
        by_module.setdefault(layer_of(layer), []).append((layer.count(".base_layer"), shape))
    for module, shapes in by_module.items():
        _put(root, module, nn.Module())
        for name, (_, shape) in zip(parameters_of(config, module), sorted(shapes, reverse=True), strict=False):
            _put_parameter(root, name, _zeros(shape))
    for name, tensor in content.whole.items():
        if name.rpartition(".")[0] in content.updates:  # its layer is there
            continue
        _put_parameter(root, name, nn.Parameter(torch.empty(tensor.shape, device="meta"), requires_grad=False))
    return root


def _layer(site: str, shape: tuple[int, ...], content: Content) -> nn.Module:
    out, inside = shape
    layer: nn.Module
    if site in content.embeddings:
        layer = nn.Embedding(inside, out, device="meta")
    elif kernel := content.kernels.get(site):
        layer = _CONVOLUTIONS[len(kernel)](kernel[0], out, kernel[1:], device="meta")
    elif is_attention(site, content.updates):
        layer = nn.MultiheadAttention(inside, 1, device="meta")  # the number of heads has no effect on the weights
    else:
        layer = nn.Linear(inside, out, device="meta")
    for name, parameter in list(layer.named_parameters()):
        home, _, leaf = name.rpartition(".")
        layer.get_submodule(home).register_parameter(leaf, _zeros(parameter.shape))
    return layer


def _zeros(shape: Sequence[int]) -> nn.Parameter:
    """Return a view of one zero: peft moves what it loads to the device of the layer's weight, so meta will not do."""
    return nn.Parameter(torch.zeros(()).expand(*shape), requires_grad=False)


def _home(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    home = root
    for part in parent.split(".") if parent else ():
        if part not in home._modules:
            home.add_module(part, nn.Module())
        home = home.get_submodule(part)
    return home, name


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    home, name = _home(root, path)
    if name in home._modules:  # a layer inside it was added first
        for child, inner in home.get_submodule(name).named_children():
            module.add_module(child, inner)
    home.add_module(name, module)


def _put_parameter(root: nn.Module, path: str, parameter: nn.Parameter) -> None:
    home, name = _home(root, path)
    home.register_parameter(name, parameter)
