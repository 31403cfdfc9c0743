"""The settings of an ``adapter_config.json``: which can be read, which need the base, which are refused and why."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tangora.errors import AdapterError
from tangora.storage.vocabulary import is_vocabulary
from tangora.support.patterns import check_pattern

__all__ = ["HEADS", "check_config", "is_bias_alone", "is_in_saved_module", "parameters_of", "rank_and_scaling"]

_MERGE_FIX = "merge it into its base and compare the two models, or train it again as plain LoRA"
_BASE_FIX = "give the base's folder, with --base or base=, from which it is converted exactly"

HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""Task type -> the modules that peft adds to ``modules_to_save`` for it."""

# Settings that make the adapter more than, or different from, a change of the base's weights.
_REFUSED = {
    "trainable_token_indices": "rows of the embedding are trained beside the low-rank update",
    "layer_replication": "layers are copied, so the sites are not those of the base model",
    "use_qalora": "QA-LoRA averages the input before A, so it is not a low-rank update of the weight",
    "alora_invocation_tokens": "activated LoRA only acts after certain tokens",
    "arrow_config": "Arrow routes every token through its own mixture of adapters",
    "use_bdlora": "the factors of BD-LoRA are block-diagonal and stored as blocks",
    "kasa_config": "KaSA changes the base weight and puts a diagonal between the factors",
    "monteclora_config": "MonteCLoRA samples its weights",
}
_WITH_BASE = {"use_dora": "DoRA also rescales every row of the weight, so its update depends on the base weight"}
_STARTS_FROM_BASE = ("pissa", "olora")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_BENIGN = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying"),
    *("eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config"),
    *("megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size"),
    *("r", "rank_pattern", "revision", "runtime_config", "target_modules", "target_parameters", "task_type"),
    *("use_dora", "use_rslora", "velora_config"),
}
_NOTHING: tuple[Any, ...] = (None, False, [], {})


def check_config(config: Mapping[str, Any], path: Path, with_base: bool) -> None:
    """Refuse an adapter that is no change of the base's weights, or needs the base if that is not given.

    Raises:
        AdapterError: a setting is refused; the message names it and the reason.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError("only LoRA adapters can be read", got=kind, where=f"peft_type in {path}", fix=_MERGE_FIX)
    for key, reason in _REFUSED.items():
        if config.get(key) not in _NOTHING:
            raise AdapterError(f"{key}: {reason}", got=config[key], where=path, fix=_MERGE_FIX)
    for key, reason in _WITH_BASE.items():
        if config.get(key) not in _NOTHING and not with_base:
            raise AdapterError(f"{key}: {reason}", got=config[key], where=path, fix=_BASE_FIX)
    if (bias := config.get("bias", "none")) not in ("none", "all", "lora_only", None):
        raise AdapterError("bias must be none, all or lora_only", got=bias, where=path, fix="correct the file")
    _check_init(config.get("init_lora_weights", True), path, with_base, bool(config.get("fan_in_fan_out")))
    for key, value in config.items():
        if key not in _BENIGN and key not in _REFUSED and value not in _NOTHING:
            fix = "unset it if it does not change what is computed; else update tangora"
            raise AdapterError(f"unknown setting {key!r}, which may change the update", got=value, where=path, fix=fix)
    _check_shapes(config, path)


def _check_init(init: Any, path: Path, with_base: bool, fan_in_fan_out: bool) -> None:
    if not isinstance(init, str) or not init.lower().startswith(_CHANGES_BASE):
        return
    convertible = init.lower() in _STARTS_FROM_BASE and not (init.lower() == "olora" and fan_in_fan_out)
    if convertible and with_base:
        return
    fix = "save it with peft's path_initial_model_for_weight_conversion, which makes it a plain LoRA"
    fix = f"{_BASE_FIX}; or {fix}" if convertible else fix
    raise AdapterError("init_lora_weights: this start changes the base weights", got=init, where=path, fix=fix)


def _check_shapes(config: Mapping[str, Any], path: Path) -> None:
    for key in ("r", "lora_alpha"):
        _number(config.get(key, 8), key, path)
    for pattern in ("rank_pattern", "alpha_pattern"):
        table = config.get(pattern) or {}
        if not isinstance(table, Mapping):
            raise AdapterError(f"{pattern} must be a table", got=table, where=path, fix="correct the file")
        for key, value in table.items():
            _number(value, f"{pattern}.{key}", path)
            _compiles(key, f"{pattern} in {path}")
    for key in ("modules_to_save", "target_parameters", "target_modules"):
        value = config.get(key)
        listed = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if value is not None and not listed and not (key == "target_modules" and isinstance(value, str)):
            raise AdapterError(f"{key} must be a list of names", got=value, where=path, fix="correct the file")
    for key in ("base_model_name_or_path", "revision", "task_type"):
        if not isinstance(config.get(key), (str, type(None))):
            raise AdapterError(f"{key} must be a string", got=config[key], where=path, fix="correct the file")
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        value = config.get(key)
        for expression in value if isinstance(value, list) and key == "layers_pattern" else [value]:
            if isinstance(expression, str):
                _compiles(expression, f"{key} in {path}")


def _compiles(pattern: str, where: str) -> None:
    try:
        check_pattern(pattern)
    except ValueError as cause:
        raise AdapterError(f"not a regular expression ({cause})", got=pattern, where=where, fix="mend it") from cause


def _number(value: Any, key: str, path: Path) -> None:
    is_rank = key == "r" or key.startswith("rank_pattern")
    valid = isinstance(value, int if is_rank else (int, float)) and not isinstance(value, bool)
    valid = valid and abs(value) < 2**53 and math.isfinite(value)
    if not valid or (is_rank and value < 1):
        rule = "must be a whole number of at least 1" if is_rank else "must be a finite number"
        raise AdapterError(f"{key} {rule}", got=value, where=path, fix="correct the file")


def rank_and_scaling(config: Mapping[str, Any], site: str) -> tuple[int, float]:
    """Return rank and scaling of a site as peft 0.21 resolves them: by the first pattern that matches, else default."""
    rank = _lookup(config.get("rank_pattern") or {}, site, config.get("r", 8))
    alpha = _lookup(config.get("alpha_pattern") or {}, site, config.get("lora_alpha", 8))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _lookup(pattern: Mapping[str, Any], site: str, default: Any) -> Any:
    return next((v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", site)), default)


def is_in_saved_module(name: str, modules: Iterable[str]) -> bool:
    """Return whether a parameter lies in a module that peft saves whole for these ``modules_to_save``.

    peft compares the ends of names, not whole parts of them: ``classifier`` also names ``pre_classifier``.

    >>> is_in_saved_module("pre_classifier.weight", ["classifier"])
    True
    """
    parts = name.split(".")
    paths = [".".join(parts[:end]) for end in range(1, len(parts))]
    return any(path.endswith(module) for path in paths for module in modules)


def is_bias_alone(name: str, config: Mapping[str, Any] | None) -> bool:
    """Return whether a parameter that is saved whole is a bias of ``bias="all"``, and no part of a saved module."""
    modules = (config or {}).get("modules_to_save") or ()
    return name.endswith(".bias") and not is_in_saved_module(name, modules) and not is_vocabulary(name)


def parameters_of(config: Mapping[str, Any] | None, module: str) -> list[str]:
    """Return the parameters of a module that ``target_parameters`` names, by their full paths, sorted."""
    paths = set()
    for target in (config or {}).get("target_parameters") or ():
        home, _, name = target.rpartition(".")
        if not home or module == home or module.endswith(f".{home}"):
            paths.add(f"{module}.{name}")
    return sorted(paths)
