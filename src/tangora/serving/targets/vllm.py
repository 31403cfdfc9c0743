"""vLLM: a folder of peft, checked by the rules of vLLM's reader of LoRA checkpoints, and the command that serves it.

vLLM reserves ``--max-lora-rank`` rows for every layer, one of a few numbers. It packs layers (q, k and v; gate and up),
but its files have them apart, under the names of transformers. Older versions read no patterns of ranks and alphas: the
folder has one rank and one alpha, so that every version computes the same.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from tangora.errors import AdapterError
from tangora.serving.contract import MERGE, Order, Target, Written
from tangora.serving.plain import refuse_whole
from tangora.serving.targets.peft import write_folder
from tangora.serving.vllm_classes import CLASSES, VERSION, WITH_EMBEDDINGS

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.serving.base import ServedBase

__all__ = ["RANKS", "TARGET", "max_lora_rank"]

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of ``--max-lora-rank``."""

_HEAD = re.compile(r"(?:score|classifier)\.(?:weight|bias)")
_EMBEDDINGS = ("embed_tokens", "lm_head")


def max_lora_rank(rank: int) -> int:
    """Return the least ``--max-lora-rank`` for a rank.

    Raises:
        AdapterError: the rank is larger than all of them.

    >>> max_lora_rank(24)
    32
    """
    found = next((most for most in RANKS if rank <= most), None)
    if found is None:
        fix = f"truncate it: tangora fuse ADAPTER --weights 1 --rank {RANKS[-1]} --out FOLDER; or {MERGE}"
        raise AdapterError(f"vLLM serves ranks up to {RANKS[-1]}", got=rank, where="export", fix=fix)
    return found


def _prepare(adapter: Adapter, base: ServedBase) -> tuple[Adapter, list[str]]:
    known = _plain_class(base.class_name)
    if known not in CLASSES:
        what = f"vLLM {VERSION} serves no LoRA with this class of models"
        raise AdapterError(what, got=base.class_name, where=base.name, fix=MERGE)
    for site in adapter.updates:
        leaf = site.rpartition(".")[2]
        if (leaf in _EMBEDDINGS or site in adapter.embeddings) and known not in WITH_EMBEDDINGS:
            what = f"in {base.class_name}, vLLM {VERSION} changes linear layers of the network only"
            raise AdapterError(what, where=site, fix=MERGE)
        if site in adapter.embeddings and leaf not in _EMBEDDINGS:
            raise AdapterError("vLLM changes no embedding but that of the tokens", where=site, fix=MERGE)
        if "experts" in site.split("."):
            raise AdapterError("factors of experts have a layout of their own in vLLM", where=site, fix=MERGE)
    max_lora_rank(max(factors.rank for u in adapter.updates.values() if (factors := u.factors()) is not None))
    return adapter, _head_notes(adapter)


def _plain_class(name: str) -> str:
    """Return the class behind a classifier, which vLLM makes of a language model by itself."""
    causal = name.replace("ForSequenceClassification", "ForCausalLM").replace("ForTokenClassification", "ForCausalLM")
    return causal if name not in CLASSES and causal in CLASSES else name


def _head_notes(adapter: Adapter) -> list[str]:
    """Refuse parameters that are saved whole, except one classifier of a single layer."""
    if not adapter.whole:
        return []
    if len({name.partition(".")[0] for name in adapter.whole}) != 1 or not all(map(_HEAD.fullmatch, adapter.whole)):
        refuse_whole(adapter, "vLLM")
    return ["its classifier is served by a pooling model: add --runner pooling to the command"]


def _write(order: Order) -> Written:
    assert order.base is not None
    difference = write_folder(order)
    factors = next(iter(order.adapter.updates.values())).factors()
    assert factors is not None
    rank = max_lora_rank(factors.rank)
    module = f"{order.name}={order.out.resolve()}"
    words = ["vllm", "serve", order.model or order.base.place, "--enable-lora", "--max-lora-rank", str(rank)]
    return Written((shlex.join([*words, "--lora-modules", module]),), difference, "stock peft")


TARGET = Target("vllm", is_file=False, needs_base=True, prepare=_prepare, write=_write)
