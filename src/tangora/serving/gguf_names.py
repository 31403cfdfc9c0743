"""Where an adapter's layers are in a GGUF file: llama.cpp's architectures, tensor names, and the order of their rows.

For the kinds of models that llama.cpp calls ``llama``, its converter changes the order of the rows of q and k. A rotary
embedding rotates pairs of a head's entries: transformers the pair (i, i + d/2), llama.cpp the pair (2i, 2i + 1). So
the entry t·d/2 + i of a head becomes its entry 2i + t: W' = P W, with a permutation P of the rows. An update of the
weight goes along, ΔW' = P ΔW = s · (P B) A: the rows of B are permuted, and A stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from tangora.errors import AdapterError
from tangora.serving.contract import MERGE

if TYPE_CHECKING:
    from tangora.serving.base import ServedBase

__all__ = ["KINDS", "Layout", "layout_of"]

KINDS: Mapping[str, tuple[str, bool]] = {
    "cohere": ("command-r", False),
    "gemma": ("gemma", False),
    "gemma2": ("gemma2", False),
    "gemma3_text": ("gemma3", False),
    "gpt2": ("gpt2", False),
    "granite": ("granite", True),
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "olmo2": ("olmo2", False),
    "phi": ("phi2", False),
    "phi3": ("phi3", False),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "smollm3": ("smollm3", True),
    "starcoder2": ("starcoder2", False),
}
"""``model_type`` of transformers -> llama.cpp's architecture, and whether it permutes the rows of q and k."""


@dataclass(frozen=True)
class Layout:
    """A base model in llama.cpp.

    Attributes:
        architecture: llama.cpp's name for it.
        heads: the number of heads of q and of k if their rows are permuted; else None.
        names: gguf's map of tensor names.
    """

    architecture: str
    heads: tuple[int, int] | None
    names: Any

    def tensor(self, site: str) -> str:
        """Return the name of a layer's weight.

        Raises:
            AdapterError: llama.cpp has no tensor for it.
        """
        found = self.names.get_name(f"{site}.weight", try_suffixes=(".weight",))
        if found is None:
            what = f"llama.cpp has no tensor for this layer in the architecture {self.architecture}"
            raise AdapterError(what, where=site, fix=MERGE)
        return str(found)

    def rows(self, site: str, count: int) -> Int[Tensor, " rows"] | None:
        """Return, for every row of the weight in llama.cpp, the row in transformers; None if the order is the same.

        Raises:
            AdapterError: the number of rows is not that of the heads.

        >>> Layout("llama", (1, 1), None).rows("model.layers.0.self_attn.q_proj", 6).tolist()
        [0, 3, 1, 4, 2, 5]
        """
        which = {"q_proj": 0, "k_proj": 1}.get(site.rpartition(".")[2])
        if self.heads is None or which is None:
            return None
        heads = self.heads[which]
        if count % (2 * heads):
            what = f"{count} rows cannot be divided among {heads} heads"
            raise AdapterError(what, where=site, fix="give the base model that the adapter was made for")
        return torch.arange(count).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)


def layout_of(base: ServedBase) -> Layout:
    """Return the layout of a base model, from its configuration.

    Raises:
        AdapterError: its kind is not one of `KINDS`, or numbers are missing.
    """
    import gguf  # deferred: an extra

    config, kind = base.config, str(base.config.get("model_type"))
    if kind not in KINDS:
        what = f"no GGUF adapters for this kind of model (there are for {', '.join(sorted(KINDS))})"
        fix = f"{MERGE}; llama.cpp's convert_hf_to_gguf.py converts the result if it has the architecture"
        raise AdapterError(what, got=kind, where=base.name, fix=fix)
    architecture, permuted = KINDS[kind]
    blocks = config.get("num_hidden_layers", config.get("n_layer"))
    heads = config.get("num_attention_heads", config.get("n_head"))
    keys = config.get("num_key_value_heads") or heads
    numbers = (blocks, heads, keys) if permuted else (blocks,)
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        what = "the base's config.json lacks the number of layers or of heads"
        raise AdapterError(what, where=base.name, fix="give the base's folder as it was published")
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[architecture], blocks)
    return Layout(architecture, (heads, keys) if permuted else None, names)
