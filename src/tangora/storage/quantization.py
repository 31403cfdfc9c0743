"""Recognize quantized checkpoints, by ``config.json`` and by the names and dtypes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tangora.errors import FileError
from tangora.storage.header import Stored

__all__ = ["quantization_of", "refused_quantized", "twin_of"]

_KEYS = ("quantization_config", "compression_config", "quantization")
_BITS = {"load_in_4bit": "4 bits", "_load_in_4bit": "4 bits", "load_in_8bit": "8 bits", "_load_in_8bit": "8 bits"}
_TENSORS = {  # the end of a tensor's name -> what writes it
    r"\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)|\.SCB": "bitsandbytes",
    r"\.(qweight|qzeros|g_idx)": "gptq or awq",
    r"\.(weight_packed|weight_shape|weight_zero_point|weight_global_scale)": "compressed-tensors",
    r"\.?(weight_scale_inv|weight_scale|input_scale|activation_scale)": "fp8",
    r"_(blocks|scales)": "mxfp4",
    r"\.(W_q|_data)": "hqq or quanto",
    r"\.(codebooks|codes)": "aqlm",
}
_NAMED = re.compile(
    r"(?i)[-_.](unsloth-)?(bnb[-_.])?([48]bit|gptq|awq|gguf|fp8|int[48]|nf4|hqq|exl2|w[48]a\d+)([-_.].*)?$"
)
_INTEGERS = ("U8", "I8", "I16", "U16", "I32", "U32")


def quantization_of(config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> str | None:
    """Return how a checkpoint is quantized; None if nothing says that it is.

    >>> quantization_of({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {})
    'gptq, 4 bits'
    """
    for home in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        for key in _KEYS:
            if isinstance(stated := home.get(key), Mapping) and stated:
                return _described(stated, key)
    if odd := sorted({stored.dtype for stored in tensors.values() if stored.dtype.startswith(("F8_", "F6_", "F4"))}):
        return f"weights of dtype {odd[0]}"
    for pattern, method in _TENSORS.items():
        named = re.compile(rf".*({pattern})")
        found = next((name for name in tensors if named.fullmatch(name)), None)
        if found is not None and any(_is_packed(stored) for stored in tensors.values()):
            return f"{method}, by its tensor {found}"
    return None


def twin_of(name: str) -> str | None:
    """Return the name of a quantized model's original, from the name of the quantized one; None if it is no such name.

    >>> twin_of("unsloth/llama-3-8b-bnb-4bit"), twin_of("org/Llama-2-7B-GPTQ"), twin_of("gpt2")
    ('unsloth/llama-3-8b', 'org/Llama-2-7B', None)
    """
    return _NAMED.sub("", name) if _NAMED.search(name) else None


def refused_quantized(how: str, folder: Path) -> FileError:
    """Return the error for a quantized checkpoint where exact weights are needed."""
    what = "the checkpoint is quantized, and its weights cannot be changed exactly"
    fix = (
        "give the same model in full precision (bfloat16, float16 or float32), with --same-base if its name differs; "
        "or merge into what the layers compute with, by tangora merge --dequantize; "
        "if these weights are in full precision, remove quantization_config from its config.json"
    )
    return FileError(what, got=how, where=folder, fix=fix)


def _described(stated: Mapping[str, Any], key: str) -> str:
    method = stated.get("quant_method") or stated.get("quant_algo")
    bits = next((text for name, text in _BITS.items() if stated.get(name) is True), None)
    if bits is None and isinstance(stated.get("bits"), int):
        bits = f"{stated['bits']} bits"
    parts = [str(method)] if method else []
    return ", ".join([*parts, *([bits] if bits else [])]) or f"{key} in config.json"


def _is_packed(stored: Stored) -> bool:
    return len(stored.shape) >= 2 and stored.dtype in _INTEGERS
