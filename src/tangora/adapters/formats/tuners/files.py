"""The configuration and the tensors of a PEFT directory of any kind, without peft.

<site>.<stem>...                    the kind's own: ``layers.0.q_proj.hada_w1_a``; shared ones without a site
<module>.<parameter>                saved whole: ``modules_to_save``, and the vocabulary's rows if these were resized
<site>.bias, .base_layer.bias       saved whole: the biases of ``bias="all"`` or ``"<kind>_only"``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from tangora.adapters.formats.lora.names import PREFIX, T, unwrapped
from tangora.adapters.formats.lora.reading import CONFIG
from tangora.adapters.formats.lora.settings import is_in_saved_module
from tangora.adapters.formats.tuners.known import REFUSED, Tuner, tuner_of
from tangora.errors import AdapterError, FileError
from tangora.storage.vocabulary import is_vocabulary
from tangora.support.files import inside, read_json
from tangora.support.patterns import check_pattern

__all__ = ["Tensors", "config_of", "kind_of", "lora_config", "sort_tensors"]

_PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern")
_LISTS = (*_PATTERNS, "modules_to_save")


@dataclass(frozen=True)
class Tensors(Generic[T]):
    """The tensors of a file, or their headers, by what they stand for.

    Attributes:
        own: the kind's own tensors, by peft's names for them.
        whole: parameter of the base -> the value that replaces it.
        biases: the same of biases that were trained beside the adapter.
    """

    own: dict[str, T]
    whole: dict[str, T]
    biases: dict[str, T]

    def sites(self, tuner: Tuner) -> list[str]:
        """Return the adapted layers, as far as tensors are named after them."""
        found = set()
        for name in self.own:
            parts = name.removeprefix(PREFIX).split(".")
            at = next(i for i, part in enumerate(parts) if part.startswith(tuner.stem))
            found.add(".".join(parts[:at]))
        return sorted(found - {"", "base_model"})


def kind_of(path: Path) -> str | None:
    """Return the ``peft_type`` of a folder's configuration; None if there is none, or it cannot be read."""
    try:
        kind = read_json(inside(path, CONFIG)).get("peft_type")
    except FileError:
        return None
    return kind.upper() if isinstance(kind, str) else None


def config_of(folder: Path) -> tuple[dict[str, Any], Tuner]:
    """Return the configuration of a kind that changes weights.

    Raises:
        AdapterError: the kind changes no weights, or the configuration is malformed.
    """
    path = folder / CONFIG
    config = read_json(inside(folder, CONFIG))
    kind = str(config.get("peft_type")).upper()
    if kind in REFUSED:
        title, reason = REFUSED[kind]
        fix = "use it with peft; only changes of weights can be fused"
        raise AdapterError(f"{title} {reason}", got=f"peft_type {kind}", where=path, fix=fix)
    for key in ("base_model_name_or_path", "revision", "task_type"):
        if not isinstance(config.get(key), str | None):
            raise AdapterError(f"{key} must be a string", got=config[key], where=path, fix="correct the file")
    for key in _LISTS:
        value = config.get(key)
        names = [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
        listed = isinstance(value, list) and len(names) == len(value)
        if value is not None and not listed and not (isinstance(value, str) and key != "modules_to_save"):
            raise AdapterError(f"{key} must be a list of names", got=value, where=path, fix="correct the file")
        for pattern in [value] if isinstance(value, str) else names if key == "layers_pattern" else []:
            try:
                check_pattern(pattern)
            except ValueError as cause:
                what = f"not a regular expression ({cause})"
                raise AdapterError(what, got=pattern, where=f"{key} in {path}", fix="mend it") from cause
    return config, tuner_of(kind)


def sort_tensors(tensors: Mapping[str, T], config: Mapping[str, Any], tuner: Tuner, path: Path) -> Tensors[T]:
    """Sort the tensors of a file, or their headers.

    Raises:
        AdapterError: the configuration does not account for a tensor, it is empty, or two have one name.
    """
    sorted_: Tensors[T] = Tensors({}, {}, {})
    for given, tensor in tensors.items():
        name = unwrapped(given)
        plain = name.removeprefix(PREFIX).replace(".base_layer.", ".")
        if 0 in tensor.shape:
            fix = "gather the parameters of DeepSpeed ZeRO-3 or FSDP before saving"
            raise AdapterError("the tensor is empty", got=list(tensor.shape), where=f"{name} in {path}", fix=fix)
        if any(part.startswith(tuner.stem) for part in name.split(".")):
            group, key = sorted_.own, name
        elif is_in_saved_module(plain, config.get("modules_to_save") or ()) or is_vocabulary(plain):
            group, key = sorted_.whole, plain
        elif plain.endswith(".bias") and config.get("bias", "none") not in ("none", None):
            group, key = sorted_.biases, plain
        else:
            what = "unexpected tensor: adapter_config.json does not account for it"
            raise AdapterError(what, got=name, where=path, fix="save the adapter again with peft")
        if key in group:
            raise AdapterError("two tensors have one name", got=given, where=path, fix="save the adapter again")
        group[key] = tensor
    if not sorted_.own:
        raise AdapterError(f"the file holds no weights of {tuner.title}", where=path, fix="check the path")
    return sorted_


def lora_config(config: Mapping[str, Any], norms: list[str], turned: bool) -> dict[str, Any]:
    """Return what an ``adapter_config.json`` of plain LoRA has in common with that of another kind.

    Args:
        config: of the other kind.
        norms: modules that the kind saved whole.
        turned: whether an adapted layer stores its weight as transformers' ``Conv1D`` does.
    """
    kept = ("base_model_name_or_path", "revision", "task_type", "auto_mapping")
    saved = sorted({*(config.get("modules_to_save") or ()), *norms})
    return {
        "peft_type": "LORA",
        **{key: config[key] for key in kept if config.get(key) is not None},
        "bias": "none",
        "fan_in_fan_out": turned,
        "modules_to_save": saved or None,
    }
