"""The names of the tensors in an ``adapter_model.safetensors``, and what they stand for.

<site>.lora_A.weight, .lora_B.weight            factors of a linear layer, a convolution, or a parameter
<site>.lora_B.bias                              lora_bias
<site>.lora_embedding_A, .lora_embedding_B      factors of an embedding
<site>.lora_magnitude_vector                    DoRA's norms
<module>.<parameter>                            saved whole: modules_to_save, and the biases of bias="all"
<embedding>.weight, <embedding>.base_layer.weight
                                                saved whole: the base's own, which peft adds if the vocabulary was
                                                resized, or if the embedding is adapted: its factors come on top
<module>.modules_to_save.<parameter>            the same tensor again, as peft writes it for a resized vocabulary
<module>.original_module.<parameter>            what it replaced, which the model does not use

A model that was wrapped when its adapter was saved (by torch.compile, FSDP, DDP, or by peft twice) has the wrapper in
these names. No base has it, so it is removed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tangora.adapters.formats.lora.settings import is_in_saved_module
from tangora.errors import AdapterError
from tangora.storage.vocabulary import is_vocabulary

__all__ = ["PREFIX", "PeftTensors", "T", "sort_tensors", "unwrapped"]

PREFIX = "base_model.model."
_BASE = ".base_layer"
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)(?:\.|$)"
)
_OUTER = ("module.", PREFIX)
# A state dict that peft has not saved has the adapter's name in it; other names may be those of a module.
_NAME = re.compile(
    r"(?<=\.)(?P<part>lora_[AB]|lora_magnitude_vector)\.[^.]+(?=\.(?:weight|bias)$)"
    r"|(?<=\.)(?P<other>lora_embedding_[AB]|lora_magnitude_vector)\.[^.]+$"
    r"|\.modules_to_save\.default(?=\.)"
)
_AGAIN = re.compile(r"\.(modules_to_save|original_module)\.(?=[^.]+$)")
_PART = re.compile(
    r"^(?P<site>.+)\.(?:(?P<kind>lora|lora_embedding)_(?P<factor>[AB])(?P<end>\.weight|\.bias)?"
    r"|(?P<norm>lora_magnitude_vector)(?:\.weight)?)$"
)


class _Shaped(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...


T = TypeVar("T", bound=_Shaped)


@dataclass(frozen=True)
class PeftTensors(Generic[T]):
    """The tensors of a file, sorted by their meaning.

    Attributes:
        factors: (site, ``lora`` or ``lora_embedding``) -> ``A``, ``B`` and, if present, ``bias`` and ``norm``.
        whole: parameter of the base -> its new value.
    """

    factors: dict[tuple[str, str], dict[str, T]] = field(default_factory=dict)
    whole: dict[str, T] = field(default_factory=dict)


def unwrapped(name: str) -> str:
    """Return the name of a tensor without wrappers of its model and its adapter's name, and with peft's prefix once.

    >>> unwrapped("base_model.model._orig_mod.module.layers.0.lora_A.weight")
    'base_model.model.layers.0.lora_A.weight'
    >>> unwrapped("base_model.model.layers.0.lora_A.default.weight")
    'base_model.model.layers.0.lora_A.weight'
    """
    bare, outer = _NAME.sub(lambda match: match["part"] or match["other"] or "", _WRAPPERS.sub("", name)), False
    while prefix := next((p for p in _OUTER if bare.startswith(p)), None):
        bare, outer = bare.removeprefix(prefix), outer or prefix == PREFIX
    return PREFIX + bare if outer else bare


def sort_tensors(tensors: Mapping[str, T], config: Mapping[str, Any], path: Path) -> PeftTensors[T]:
    """Sort the tensors of a file, or their headers, by site.

    Raises:
        AdapterError: the configuration does not account for a tensor, a tensor is empty, or two are the same without
            their wrappers.
    """
    plain: dict[str, T] = {}
    for given, tensor in tensors.items():
        name = unwrapped(given)
        if name in plain:
            what = "two tensors have one name, without the wrappers of the model and the names of adapters"
            raise AdapterError(what, got=given, where=path, fix="save one adapter, with peft's save_pretrained")
        plain[name] = tensor
    return _sort(plain, config, path)


def _sort(tensors: Mapping[str, T], config: Mapping[str, Any], path: Path) -> PeftTensors[T]:
    by_site: PeftTensors[T] = PeftTensors()
    rest: dict[str, T] = {}
    norms: dict[str, T] = {}
    for name, tensor in tensors.items():
        if 0 in tensor.shape:
            what = "the tensor is empty: DeepSpeed ZeRO-3 or FSDP saved it without gathering its parts"
            fix = "gather the parameters before saving; under ZeRO-3, with stage3_gather_16bit_weights_on_model_save"
            raise AdapterError(what, got=list(tensor.shape), where=f"{name} in {path}", fix=fix)
        match = _PART.match(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        part = _part(match, config) if match is not None else None
        if match is None or part is None:
            rest[name] = tensor
        elif part == "norm":
            norms[match["site"]] = tensor
        else:
            by_site.factors.setdefault((match["site"], match["kind"]), {})[part] = tensor
    for site, tensor in norms.items():
        owner = next((key for key in by_site.factors if key[0] == site), None)
        if owner is None:
            raise _unexpected(f"{PREFIX}{site}.lora_magnitude_vector", path)
        by_site.factors[owner]["norm"] = tensor
    again = {name for name in rest if _AGAIN.sub(".", name) in rest.keys() - {name}}
    for name, tensor in rest.items():
        if name in again:
            continue
        plain = name.removeprefix(PREFIX).replace(f"{_BASE}.", ".")
        if not name.startswith(PREFIX) or not _saved(plain, config):
            raise _unexpected(name, path)
        by_site.whole[plain] = tensor
    return by_site


def _part(match: re.Match[str], config: Mapping[str, Any]) -> str | None:
    if match["norm"]:
        return "norm" if config.get("use_dora") else None
    if match["kind"] == "lora_embedding":
        return match["factor"] if match["end"] is None else None
    if match["end"] == ".bias":
        return "bias" if match["factor"] == "B" and config.get("lora_bias") else None
    return match["factor"] if match["end"] else None


def _saved(name: str, config: Mapping[str, Any]) -> bool:
    if name.endswith(".bias") and config.get("bias") in ("all", "lora_only"):
        return True
    vocabulary = is_vocabulary(name) and name.endswith((".weight", ".bias"))
    return vocabulary or is_in_saved_module(name, config.get("modules_to_save") or ())


def _unexpected(name: str, path: Path) -> AdapterError:
    fix = "merge it into its base and compare the two models, or train it again as plain LoRA"
    what = "unexpected tensor: adapter_config.json does not account for it"
    return AdapterError(what, got=name, where=path, fix=fix)
