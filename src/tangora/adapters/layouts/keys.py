"""The names of the tensors in an adapter's file: a module, and the part of its update that a tensor is.

lora_down.weight, lora_A.weight, lora.down.weight, lora_linear_layer.down.weight    A; the adapter's name may follow
processor.to_q_lora.down.weight, to_q_lora.down.weight                              A of a module inside: ``to_q``
lora_mid.weight                                                                     the kernel between A and B
hada_w1_a, hada_w1_b, hada_t1, ...; lokr_w1, lokr_w1_a, lokr_t2, ...                LyCORIS' LoHa and LoKr
alpha; diff                                                                         a scalar; a change as it is
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tangora.errors import AdapterError

__all__ = ["REFUSED", "Keys", "part_of", "sort_keys", "sort_names"]

_FACTORS = {"A": "A", "down": "A", "B": "B", "up": "B", "mid": "mid"}
_SUFFIX = re.compile(
    r"(?P<module>.+?)(?:"
    r"\.lora_(?P<factor>A|B|down|up|mid)(?:\.(?!weight$)[^.]+)?\.weight"
    r"|\.(?:lora|lora_linear_layer)\.(?P<older>down|up)\.weight"
    r"|(?:\.processor)?\.(?P<inner>to_q|to_k|to_v|to_out)_lora\.(?P<inside>down|up)\.weight"
    r"|\.(?P<plain>alpha|diff|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)"
    r"|\.(?P<refused>dora_scale|lora_magnitude_vector|diff_b|w_norm|b_norm|set_weight|reshape_weight|oft_blocks|oft_diag"
    r"|on_input|[ab][12]\.weight|lora_(?:B|up)\.bias|lora_embedding_[AB])(?:\.[^.]+)?(?:\.weight)?"
    r")"
)
_IN_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_DORA = "DoRA: the change depends on the base's weights, and is not in the file"
_NO_MATRIX = "a change of a bias or a norm, which no LoRA of this file can hold"

REFUSED: Mapping[str, str] = {
    "dora_scale": _DORA,
    "lora_magnitude_vector": _DORA,
    **dict.fromkeys(("diff_b", "w_norm", "b_norm", "lora_B.bias", "lora_up.bias"), _NO_MATRIX),
    **dict.fromkeys(("set_weight", "reshape_weight"), "a new weight instead of a change"),
    **dict.fromkeys(("oft_blocks", "oft_diag"), "OFT: the change depends on the base's weights"),
    "on_input": "IA³: the change depends on the base's weights",
    **dict.fromkeys(
        (f"{x}{i}.weight" for x in "ab" for i in (1, 2)), "GLoRA: the change depends on the base's weights"
    ),
    **dict.fromkeys(("lora_embedding_A", "lora_embedding_B"), "the factors of an embedding"),
}
"""Part -> the reason why a file with it is refused."""


@dataclass(frozen=True)
class Keys:
    """The tensors of a file, or their headers, by module and part; ``others`` are none of an adapter."""

    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def part_of(key: str) -> tuple[str, str] | None:
    """Return the module and the part that a tensor's name stands for; None if it is none of an adapter.

    >>> part_of("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight")
    ('unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0', 'B')
    >>> part_of("transformer.x_embedder.lora_A.default.weight")
    ('transformer.x_embedder', 'A')
    """
    match = _SUFFIX.fullmatch(key)
    if match is None:
        return None
    module = match["module"]
    if match["inside"]:
        inner = match["inner"]
        if module.endswith("self_attn"):
            inner = _IN_TEXT[inner]
        return f"{module}.{inner}" + (".0" if inner == "to_out" else ""), _FACTORS[match["inside"]]
    if name := match["factor"] or match["older"]:
        return module, _FACTORS[name]
    return module, match["plain"] or match["refused"]


def sort_keys(keys: Iterable[str], path: Path) -> Keys:
    """Sort the names of a file's tensors.

    Raises:
        AdapterError: two of them are the same part of one module.
    """
    found = Keys()
    for key in keys:
        if (named := part_of(key)) is None:
            found.others.append(key)
            continue
        module, part = named
        parts = found.modules.setdefault(module, {})
        if part in parts:
            what = f"two tensors are {part} of one module: {parts[part]} and {key}"
            raise AdapterError(what, where=path, fix="copy it again, or remove one of them with its module")
        parts[part] = key
    return found


def sort_names(keys: Iterable[str]) -> tuple[set[str], bool]:
    """Return the modules in the names of a file's tensors, and whether a part is there that only adapters have.

    >>> sort_names(["lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in.alpha"])
    ({'lora_unet_conv_in'}, True)
    """
    named = [found for key in keys if (found := part_of(key)) is not None]
    return {module for module, _ in named}, any(part not in ("alpha", "diff") for _, part in named)
