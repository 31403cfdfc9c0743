"""A LoRA adapter as peft stores it, read and written without peft.

    adapter_config.json        r, lora_alpha, use_rslora, rank_pattern, alpha_pattern -> one scaling per site
    adapter_model.safetensors  base_model.model.<site>.lora_A.weight [r, in], .lora_B.weight [out, r];
                               embeddings: .lora_embedding_A [r, vocabulary], .lora_embedding_B [dim, r]

Only what is ``W + scaling * B @ A`` is read; everything else that a LoRA configuration can ask for is refused.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tangora._io import read_json, read_safetensors
from tangora.errors import AdapterError
from tangora.task_vector import LowRank

__all__ = ["CONFIG", "WEIGHTS", "finite", "read_peft", "write_config", "write_tensors"]

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<site>.+)\.(?P<kind>lora|lora_embedding)_(?P<factor>[AB])(?P<weight>\.weight)?$")
_MERGE_FIX = "merge it into its base and compare the two models, or train it again as plain LoRA"

# Settings with which the adapter is more, or something else, than one low-rank update per weight matrix.
_REFUSED = {
    "use_dora": "DoRA also rescales every row of the weight, so it is not a low-rank update",
    "lora_bias": "the biases of B are trained too",
    "modules_to_save": "whole modules are trained beside the low-rank update",
    "trainable_token_indices": "rows of the embedding are trained beside the low-rank update",
    "target_parameters": "parameters without a layer of their own are adapted",
    "layer_replication": "layers are copied, so the sites are not those of the base model",
    "use_qalora": "QA-LoRA averages the input before A, so it is not a low-rank update of the weight",
    "alora_invocation_tokens": "activated LoRA only acts after certain tokens",
    "arrow_config": "Arrow routes every token through its own mixture of adapters",
    "use_bdlora": "the factors of BD-LoRA are block-diagonal and stored as blocks",
    "kasa_config": "KaSA changes the base weight and puts a diagonal between the factors",
    "monteclora_config": "MonteCLoRA samples its weights",
    "ensure_weight_tying": "layers that share a weight are adapted together",
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_BENIGN = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config"),
    *("megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision"),
    *("runtime_config", "target_modules", "task_type", "use_rslora", "velora_config"),
}
_INIT_ONLY = ("eva_config", "corda_config", "lora_ga_config", "loftq_config")
_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def read_peft(folder: Path) -> tuple[dict[str, LowRank], dict[str, Any], frozenset[str]]:
    """The updates of a PEFT directory in float32, its configuration, and which sites are embeddings.

    Raises:
        AdapterError: a file is missing, corrupt, or not finite, or the adapter is not ``W + scaling * B @ A``.
    """
    path = folder / CONFIG
    config = read_json(path)
    _check_config(config, path)
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        fix = "load it with peft where you trust it, and save it again as safetensors"
        raise AdapterError(
            "the weights are a pickle, which can run code, and is refused", where=folder / PICKLE, fix=fix
        )
    factors = _factors(read_safetensors(folder / WEIGHTS), folder / WEIGHTS)
    updates: dict[str, LowRank] = {}
    for (site, kind), pair in sorted(factors.items()):
        if site in updates:
            raise AdapterError("two updates of one site", where=f"{site} in {folder / WEIGHTS}")
        updates[site] = _pair(site, kind, pair, config, folder / WEIGHTS)
    if not updates:
        raise AdapterError("the file holds no LoRA weights", where=folder / WEIGHTS, fix="check the path")
    return updates, config, frozenset(site for site, kind in factors if kind == "lora_embedding")


def finite(name: str, tensor: Tensor, path: Path) -> Tensor:
    """``tensor`` in float32 (float64 stays), refused when any entry is NaN or infinite."""
    if not tensor.is_floating_point():
        raise AdapterError("weights must be floating-point", got=str(tensor.dtype), where=f"{name} in {path}")
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        bad = "NaN" if bool(tensor.isnan().any()) else "infinity"
        fix = "the training diverged or the file is damaged: train or copy it again"
        raise AdapterError(f"a weight is {bad}", where=f"{name} in {path}", fix=fix)
    return tensor


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError("only LoRA adapters can be read", got=kind, where=f"peft_type in {path}", fix=_MERGE_FIX)
    for key, reason in _REFUSED.items():
        if config.get(key) not in (None, False, [], {}):
            raise AdapterError(f"{key}: {reason}", got=config[key], where=path, fix=_MERGE_FIX)
    if (bias := config.get("bias", "none")) not in ("none", None):
        raise AdapterError("bias: biases are trained beside the update", got=bias, where=path, fix=_MERGE_FIX)
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        fix = "save it with peft's path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        raise AdapterError("init_lora_weights: this start changes the base weights", got=init, where=path, fix=fix)
    for key, value in config.items():
        if key not in _BENIGN and key not in _REFUSED and value not in (None, False, [], {}):
            fix = "unset it if it does not change what is computed; else update tangora"
            raise AdapterError(f"unknown setting {key!r}, which may change the update", got=value, where=path, fix=fix)
    for key in ("r", "lora_alpha"):
        _number(config.get(key, 8), key, path)
    for pattern in ("rank_pattern", "alpha_pattern"):
        for key, value in (config.get(pattern) or {}).items():
            _number(value, f"{pattern}.{key}", path)
            _compiles(key, f"{pattern} in {path}")


def _compiles(pattern: str, where: str) -> None:
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except re.error as cause:
        raise AdapterError(f"not a regular expression ({cause})", got=pattern, where=where, fix="mend it") from cause


def _number(value: Any, key: str, path: Path) -> None:
    whole = key == "r" or key.startswith("rank_pattern")
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not right or (whole and value < 1):
        rule = "must be a whole number of at least 1" if whole else "must be a finite number"
        raise AdapterError(f"{key} {rule}", got=value, where=path, fix="correct the file")


def _factors(tensors: Mapping[str, Tensor], path: Path) -> dict[tuple[str, str], dict[str, Tensor]]:
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    extra = []
    for name, tensor in tensors.items():
        match = _FACTOR.match(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
        if match is None or (match["weight"] is None) != (match["kind"] == "lora_embedding"):
            extra.append(name)
            continue
        pair = found.setdefault((match["site"], match["kind"]), {})
        pair[match["factor"]] = finite(name, tensor, path)
    # peft saves the frozen base weight of an adapted embedding along with the factors
    harmless = {f"{_PREFIX}{site}.base_layer.weight" for site, kind in found if kind == "lora_embedding"}
    for name in extra:
        if name not in harmless:
            raise AdapterError("a tensor that is not a LoRA factor", got=name, where=path, fix=_MERGE_FIX)
    return found


def _pair(site: str, kind: str, pair: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> LowRank:
    for here, missing in (("A", "B"), ("B", "A")):
        if missing not in pair:
            raise AdapterError(
                f"{kind}_{here} without {kind}_{missing}", where=f"{site} in {path}", fix="copy it again"
            )
    a, b = pair["A"], pair["B"]
    if a.ndim != 2 or b.ndim != 2:
        got = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise AdapterError("the factors of a convolution are not supported", got=got, where=f"{site} in {path}")
    rank, scaling = rank_and_scaling(config, site)
    if a.shape[0] != b.shape[1] or a.shape[0] != rank:
        got = f"A {tuple(a.shape)}, B {tuple(b.shape)}, rank {rank} in {CONFIG}"
        raise AdapterError("the ranks disagree", got=got, where=f"{site} in {path}", fix="save the adapter again")
    return LowRank(b, a, scaling)


def rank_and_scaling(config: Mapping[str, Any], site: str) -> tuple[int, float]:
    """Rank and scaling of one site as peft 0.21 resolves them: the first pattern that matches, else the default."""
    rank = _lookup(config.get("rank_pattern") or {}, site, config.get("r", 8))
    alpha = _lookup(config.get("alpha_pattern") or {}, site, config.get("lora_alpha", 8))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _lookup(pattern: Mapping[str, Any], site: str, default: Any) -> Any:
    return next((v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", site)), default)


def write_config(
    updates: Mapping[str, LowRank], template: Mapping[str, Any] | None, base: str | None
) -> dict[str, Any]:
    """A configuration with which peft computes exactly ``updates``: the template's wherever it says the same."""
    config = dict(template or {"peft_type": "LORA", "base_model_name_or_path": base, "task_type": None, "bias": "none"})
    config |= {"inference_mode": True, "init_lora_weights": True}
    config = {key: value for key, value in config.items() if key not in _INIT_ONLY}
    if not _selects(config, updates):
        config |= dict.fromkeys(_SELECTION[1:]) | {"target_modules": sorted(updates)}
    if all(rank_and_scaling(config, site) == (u.rank, u.scaling) for site, u in updates.items()):
        return config
    ranks = {site: u.rank for site, u in updates.items()}
    alphas = {site: _alpha(u) for site, u in updates.items()}
    ((rank, _),) = Counter(ranks.values()).most_common(1)
    ((alpha, _),) = Counter(alphas.values()).most_common(1)
    config |= {"r": rank, "lora_alpha": alpha, "use_rslora": False}
    return config | {"rank_pattern": _exceptions(ranks, rank), "alpha_pattern": _exceptions(alphas, alpha)}


def _alpha(update: LowRank) -> float:
    """The alpha whose quotient by the rank is the scaling, to the last bit where there is one."""
    near = update.scaling * update.rank
    options = (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    exact = next((x for x in options if x / update.rank == update.scaling), near)
    return int(exact) if exact == int(exact) else exact


def _exceptions(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Anchored, because peft would also match a pattern to any longer path that ends in it."""
    return {f"^{re.escape(site)}": value for site, value in sorted(values.items()) if value != default}


def _selects(config: Mapping[str, Any], sites: Iterable[str]) -> bool:
    """Whether peft would adapt every one of ``sites``; the layer filters are those the sites were made with."""
    targets = config.get("target_modules")
    if isinstance(targets, str):
        return all(re.fullmatch(targets, site) for site in sites)
    return all(any(site == t or site.endswith(f".{t}") for t in targets or ()) for site in sites)


def write_tensors(updates: Mapping[str, LowRank], embeddings: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of ``adapter_model.safetensors``, float32."""
    tensors: dict[str, Tensor] = {}
    for site, update in updates.items():
        names = ("lora_embedding_A", "lora_embedding_B") if site in embeddings else ("lora_A.weight", "lora_B.weight")
        for name, factor in zip(names, (update.a, update.b), strict=True):
            tensors[f"{_PREFIX}{site}.{name}"] = factor.detach().float().cpu().clone()
    return tensors
