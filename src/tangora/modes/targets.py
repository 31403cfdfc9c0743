"""Check, before anything is trained, which layers a configuration adapts: every name must match a layer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from torch import nn

from tangora.errors import ModelError
from tangora.support.patterns import check_pattern
from tangora.support.validation import did_you_mean

if TYPE_CHECKING:
    from tangora.config.recipe import LoraSettings

__all__ = ["check_patterns", "check_syntax", "check_targets"]


def check_targets(backbone: nn.Module, targets: Collection[str] | str) -> None:
    """Refuse a target name that matches no layer, even if another one does, or a layer of another kind.

    Raises:
        ModelError: a name matches nothing (the error suggests the nearest names), or something that is not a Linear,
            Conv1D or Embedding layer.
    """
    modules = dict(backbone.named_modules())
    layers = {name: module for name, module in modules.items() if _adaptable(module)}
    if targets == "all-linear":
        if not any(not isinstance(module, nn.Embedding) for module in layers.values()):
            raise ModelError("the model has no linear layer", got=targets, where="lora.target_modules")
        return
    for target in [targets] if isinstance(targets, str) else targets:
        matched = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not matched:
            fix = did_you_mean(target, sorted({name.rpartition(".")[2] for name in layers}))
            raise ModelError("a target module matches nothing", got=target, where="lora.target_modules", fix=fix)
        for name in matched:
            if name not in layers:
                fix = "target Linear, Conv1D or Embedding layers, or give a longer part of the path"
                kind = type(modules[name]).__name__
                raise ModelError(f"target {target!r} matches a {kind}, not a layer to adapt", where=name, fix=fix)


def check_syntax(lora: LoraSettings) -> None:
    """Refuse a key of ``rank_pattern`` or ``alpha_pattern`` that is not a regular expression.

    Raises:
        ModelError: naming the key.
    """
    for field, key in _keys(lora):
        try:
            check_pattern(key)
        except ValueError as cause:
            fix = "name layers by the end of their path"
            raise ModelError(f"not a regular expression ({cause})", got=key, where=f"lora.{field}", fix=fix) from cause


def check_patterns(sites: Iterable[str], lora: LoraSettings) -> None:
    """Refuse a key of ``rank_pattern`` or ``alpha_pattern`` that matches none of the adapted layers.

    Raises:
        ModelError: naming the key, and the nearest layers.
    """
    names = list(sites)
    for field, key in _keys(lora):
        if not any(re.match(rf"(.*\.)?({key})$", site) for site in names):
            fix = did_you_mean(key, sorted({site.rpartition(".")[2] for site in names}))
            raise ModelError("a pattern matches no adapted layer", got=key, where=f"lora.{field}", fix=fix)


def _keys(lora: LoraSettings) -> list[tuple[str, str]]:
    return [("rank_pattern", key) for key in lora.rank_pattern] + [("alpha_pattern", key) for key in lora.alpha_pattern]


def _adaptable(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D  # deferred: it takes seconds to import

    return isinstance(module, (nn.Linear, nn.Embedding, Conv1D))
