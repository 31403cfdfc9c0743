"""Adapters onto a base's weights: a site's update, read a few rows at a time in the orientation of the stored weight.

A site is a module's path, its weight the tensor ``<site>.weight`` of the base; a prefix that only the one or the other
has (``model.``, ``bert.``) is found once for all sites. Embeddings and transformers' ``Conv1D`` store the transpose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.adapter import Adapter
from tangora.checkpoints.align import Target
from tangora.checkpoints.reader import Checkpoint
from tangora.errors import FusionError
from tangora.task_vector import LowRank, Update

__all__ = ["Added", "align_adapters"]

_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_FIX = "give the base model that the adapters were made for"


@dataclass(frozen=True, eq=False)
class Added:
    """An update in the orientation of the stored weight, ``transposed`` where that is the other one."""

    update: Update
    transposed: bool

    @property
    def numbers(self) -> int:
        """How many numbers of memory it takes."""
        update = self.update
        return update.a.numel() + update.b.numel() if isinstance(update, LowRank) else update.weight.numel()

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows width"]:
        """Rows ``[start, stop)`` of the dense update; the rest of it is never formed."""
        update, part = self.update, slice(start, stop)
        if not isinstance(update, LowRank):
            return update.weight.T[part] if self.transposed else update.weight[part]
        if self.transposed:
            return (update.a.T[part] @ update.b.T) * update.scaling
        return (update.b[part] @ update.a) * update.scaling


def align_adapters(
    base: Checkpoint, vectors: Sequence[Mapping[str, Update]], adapters: Sequence[Adapter]
) -> list[Target]:
    """The base's tensors, each with what every adapter changes of it.

    Args:
        base: the model the adapters were made for.
        vectors: per adapter, site -> what its training changed.
        adapters: the same ones; they tell embeddings, transposed layers, and the common start.

    Raises:
        FusionError: a site has no weight in the base, one of another shape, or one that is tied to another layer.
    """
    sites = sorted({site for vector in vectors for site in vector} | set(adapters[0].start))
    named = _Names(base, sites)
    full = adapters[0].metadata.kind == "full"
    targets: dict[str, Target] = {}
    for site in sites:
        name = named(site) + ("" if full else ".weight")
        stored = base.tensors[name]
        if not full and (name in base.tied or name in base.tied.values()):
            fix = "untie the base, or load the adapter with peft"
            raise FusionError("the weight is shared by the input embedding and the output head", where=name, fix=fix)
        owner = next(a for a in adapters if site in a.updates or site in a.start)
        parts = [None if site not in v else _added(v[site], stored.shape, site, owner, base) for v in vectors]
        begin = adapters[0].start.get(site)
        start = None if begin is None else _added(begin, stored.shape, site, owner, base)
        targets[name] = Target(name, stored, tuple(parts), start, site)
        if not targets[name].fused:
            raise FusionError("no update can be added to integers", got=stored.dtype, where=name, fix=_FIX)
    nothing = (None,) * len(vectors)
    return [
        targets.get(name) or Target(name, base.find(name) or stored, nothing) for name, stored in base.tensors.items()
    ]


class _Names:
    def __init__(self, base: Checkpoint, sites: Sequence[str]) -> None:
        """Try the names as they are, then with a prefix of the base's names, then without one of their own."""
        self.base, self.sites = base, sites
        full = any(site in base.tensors for site in sites)
        end = "" if full else ".weight"
        first = sites[0] if sites else ""
        longer = sorted({n.removesuffix(first + end) for n in base.tensors if n.endswith("." + first + end)})
        shorter = [first[: i + 1] for i, letter in enumerate(first) if letter == "."]
        for add, drop in [("", ""), *((add, "") for add in longer), *(("", drop) for drop in shorter)]:
            named = [add + site.removeprefix(drop) + end for site in sites]
            if all(name in base.tensors for name in named):
                self.add, self.drop = add, drop
                return
        missing = next((site for site in sites if site + end not in base.tensors), first)
        raise FusionError("the base has no weight for a site", got=missing, where=base.folder, fix=_FIX)

    def __call__(self, site: str) -> str:
        """The base's name."""
        return self.add + site.removeprefix(self.drop)


def _added(update: Update, stored: tuple[int, ...], site: str, adapter: Adapter, base: Checkpoint) -> Added:
    shape = tuple(update.shape)
    straight = shape == stored or (len(shape) == 2 and len(stored) > 2 and shape == (stored[0], math.prod(stored[1:])))
    turned = len(shape) == 2 and shape[::-1] == stored
    if not straight and not turned:
        what = f"the base's weight is {list(stored)}, the adapter's update {list(shape)}"
        raise FusionError(what, where=site, fix=_FIX)
    if straight and turned and adapter.metadata.kind != "full":  # square: only the kind of layer tells
        conv = base.config.get("model_type") in _CONV1D and not site.endswith(("lm_head", "score"))
        turned = site in adapter.embeddings or bool((adapter.config or {}).get("fan_in_fan_out")) or conv
    else:
        turned = turned and not straight
    return Added(_float(update), turned)


def _float(update: Update) -> Update:
    if isinstance(update, LowRank):
        return LowRank(update.b.float().contiguous(), update.a.float().contiguous(), update.scaling)
    return type(update)(update.weight.to(torch.promote_types(update.weight.dtype, torch.float32)))
