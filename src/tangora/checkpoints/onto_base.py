"""Pair adapters with a base's weights: a site's update is read in rows, in the orientation of the stored weight.

A site is a module's path, and its weight the base's tensor ``<site>.weight``. A prefix that only one of the two names
has (``model.``, ``bert.``) is the same for all sites. Embeddings and transformers' ``Conv1D`` store the transpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.adapters.adapter import Adapter
from tangora.adapters.formats.lora.layers import expert_of, is_attention, is_bias, layer_of, weight_of
from tangora.adapters.formats.lora.settings import parameters_of
from tangora.checkpoints.align import Target
from tangora.errors import FusionError
from tangora.storage.checkpoint import Checkpoint
from tangora.storage.header import Stored
from tangora.storage.names import Names, is_turned
from tangora.storage.tensors import read_rows
from tangora.storage.vocabulary import is_vocabulary
from tangora.updates.task_vector import Dense, LowRank, Update

__all__ = ["OrientedUpdate", "StackedExperts", "align_adapters", "replaced"]

_FIX = "give the base model that the adapters were made for"


@dataclass(frozen=True, eq=False)
class OrientedUpdate:
    """An update in the orientation of the stored weight; ``transposed`` if that is the transpose of the update."""

    update: Update
    transposed: bool

    @property
    def rank(self) -> int:
        """The number of products that are summed in an entry."""
        return _rank(self.update)

    def positive(self) -> OrientedUpdate:
        """Return the update with the factors' absolute values: its entries are the sums if nothing cancelled."""
        return replace(self, update=_positive(self.update))

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows width"]:
        """Return rows ``[start, stop)`` of the dense update; no others are formed."""
        return self.update.rows(start, stop, transposed=self.transposed)


@dataclass(frozen=True, eq=False)
class StackedExperts:
    """The updates of a parameter's experts in order; None for an expert without an update."""

    experts: Sequence[Update | None]
    transposed: bool
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The largest number of products that are summed in an entry."""
        return max(map(_rank, self.experts), default=1)

    def positive(self) -> StackedExperts:
        """Return the updates with the factors' absolute values; see `OrientedUpdate.positive`."""
        return replace(self, experts=[None if update is None else _positive(update) for update in self.experts])

    def rows(self, start: int, stop: int) -> Float[Tensor, "experts width"]:
        """Return the experts ``[start, stop)``, each as one row."""
        rows = []
        for update in self.experts[start:stop]:
            dense = torch.zeros(self.shape[1:]) if update is None else update.dense()
            rows.append((dense.T if self.transposed and update is not None else dense).reshape(-1))
        return torch.stack(rows)


def align_adapters(
    base: Checkpoint, vectors: Sequence[Mapping[str, Update]], adapters: Sequence[Adapter]
) -> list[Target]:
    """Return the base's tensors as targets, each with every adapter's change of it.

    Args:
        base: the model the adapters were made for.
        vectors: per adapter, site -> what its training changed.
        adapters: the same adapters; embeddings, transposed layers and the common start follow from them.

    Raises:
        FusionError: a site has no weight in the base, or its weight has another shape, or is tied to another layer.
    """
    full = adapters[0].metadata.of_kind.by_parameter
    if adapters[0].metadata.of_kind.adds_modules:
        what = "parameters of added modules are no change of the base's weights"
        raise FusionError(
            what, got=adapters[0].metadata.kind, where="merge", fix="use the adapter by tangora.load_model"
        )
    sites = sorted({site for vector in vectors for site in vector} | set(adapters[0].start))
    plain = [site for site in sites if full or expert_of(site) is None]
    if not full and (attention := next((site for site in plain if is_attention(site, sites)), None)):
        what = "LoRA on torch.nn.MultiheadAttention: peft 0.21 adds the update of its output projection twice"
        fix = "merge it with peft, which decides how often, or fuse such adapters into an adapter"
        raise FusionError(what, where=attention, fix=fix)
    layers = sorted({expert[0] for site in sites if not full and (expert := expert_of(site))})
    bias = {site for site in plain if any(site in v and is_bias(site, v[site]) for v in vectors)}
    tensors = {site: site if full or site in bias else weight_of(site, sites) for site in plain}
    shapes = {site: tuple(update.shape) for v in (adapters[0].start, *vectors) for site, update in v.items()}
    candidates = {layer: _candidates(layer, adapters) for layer in layers}
    wanted: dict[str, tuple[int, ...] | None] = {tensors[site]: shapes[site] for site in plain}
    wanted |= {name: None for names in candidates.values() for name in names[:1]}
    named = Names(base, wanted, adapters[0].config)
    targets: dict[str, Target] = {}
    for site in plain:
        target = _target(site, named(tensors[site]), base, vectors, adapters)
        _refuse_second(target.name, site, targets)
        targets[target.name] = target
    for layer in layers:
        stored, parts = _stack(layer, [named(n) for n in candidates[layer]], base, vectors)
        _refuse_second(stored.name, layer, targets)
        targets[stored.name] = Target(stored.name, stored, tuple(parts), None, layer)
    for target in targets.values():
        if not target.fused:
            raise FusionError("no update can be added to integers", got=target.base.dtype, where=target.name, fix=_FIX)
    unchanged = (None,) * len(vectors)
    return [
        targets.get(name) or Target(name, base.find(name) or stored, unchanged) for name, stored in base.tensors.items()
    ]


def replaced(
    targets: Sequence[Target],
    whole: Mapping[str, Tensor],
    base: Checkpoint,
    adapter: Mapping[str, Any] | None = None,
) -> list[Target]:
    """Return the targets, with parameters that adapters saved whole in place of the base's.

    Raises:
        FusionError: the base does not have one of them, or it has another shape.
    """
    if not whole:
        return list(targets)
    by_name = {target.name: target for target in targets}
    named = Names(base, dict.fromkeys(sorted(whole)), adapter)
    for site, value in whole.items():
        stored = base.find(named(site))
        if stored is None or stored.shape != tuple(value.shape):
            if stored is not None and is_vocabulary(site) and stored.shape[1:] == tuple(value.shape[1:]):
                what = f"the adapters have {len(value)} rows of tokens, the base {stored.shape[0]}"
                fix = (
                    "resize the base's vocabulary (resize_token_embeddings), save it with its tokenizer, and give that"
                )
                raise FusionError(what, where=site, fix=fix)
            got = "nothing" if stored is None else list(stored.shape)
            fix = "keep the heads, with --heads keep, or give a base that has them"
            raise FusionError(
                f"the base cannot hold a parameter of shape {list(value.shape)}", got=got, where=site, fix=fix
            )
        change = value.float() - read_rows(stored, 0, stored.shape[0]).reshape(stored.shape)
        old = by_name[stored.name]
        if bool(change.any()):
            start = _with_start(change, old.start)
            by_name[stored.name] = Target(old.name, old.base, old.parts, OrientedUpdate(Dense(start), False), old.site)
    return list(by_name.values())


def _with_start(change: Tensor, start: OrientedUpdate | None) -> Tensor:
    return change if start is None else change + start.rows(0, change.shape[0]).reshape(change.shape)


def _target(
    site: str, name: str, base: Checkpoint, vectors: Sequence[Mapping[str, Update]], adapters: Sequence[Adapter]
) -> Target:
    full = adapters[0].metadata.of_kind.by_parameter
    if not full and (name in base.tied or name in base.tied.values()):
        fix = "untie the base, or load the adapter with peft"
        raise FusionError("the weight is shared by the input embedding and the output head", where=name, fix=fix)
    stored = base.tensors[name]
    owner = next(a for a in adapters if site in a.updates or site in a.start)
    parts = [None if site not in v else _oriented(v[site], stored, site, owner, base) for v in vectors]
    common = adapters[0].start.get(site)
    start = None if common is None else _oriented(common, stored, site, owner, base)
    return Target(name, stored, tuple(parts), start, site)


def _refuse_second(name: str, site: str, targets: Mapping[str, Target]) -> None:
    if name in targets:
        what = f"two sites are one tensor of the base: {targets[name].site} and {site}"
        raise FusionError(what, where=name, fix="rename the sites of one adapter, as the base's class has them")


def _candidates(layer: str, adapters: Sequence[Adapter]) -> list[str]:
    config = next(a.config for a in adapters if any(site.startswith(f"{layer}[") for site in a.updates))
    return parameters_of(config, layer_of(layer))


def _stack(
    layer: str, names: Sequence[str], base: Checkpoint, vectors: Sequence[Mapping[str, Update]]
) -> tuple[Stored, list[StackedExperts | None]]:
    """Return the parameter of a layer's experts, and its parts; of a module's parameters, it is found by its shape."""
    experts = [{e[1]: u for s, u in v.items() if (e := expert_of(s)) and e[0] == layer} for v in vectors]
    count = 1 + max(index for updates in experts for index in updates)
    out, inside = next(update.shape for updates in experts for update in updates.values())
    fitting = []
    for name in names:
        stored = base.tensors.get(name)
        shape = () if stored is None else stored.shape if len(stored.shape) == 3 else (1, *stored.shape)
        if stored is not None and shape in ((count, out, inside), (count, inside, out)):
            fitting.append((stored, shape == (count, inside, out)))
    if len(fitting) != 1 or (out == inside and len(fitting[0][0].shape) == 3):
        fix = "merge it with peft, where the order of the parameters is known"
        what = f"{len(fitting)} parameters have the update's shape {[count, out, inside]} in exactly one orientation"
        raise FusionError(what, got=list(names), where=layer, fix=fix)
    stored, turned = fitting[0]
    shape = (count, *stored.shape[-2:])
    stacks = [[None if (u := updates.get(e)) is None else _float(u, base) for e in range(count)] for updates in experts]
    parts = [StackedExperts(stack, turned, shape) for stack in stacks]
    return stored, [part if updates else None for part, updates in zip(parts, experts, strict=True)]


def _oriented(update: Update, stored: Stored, site: str, adapter: Adapter, base: Checkpoint) -> OrientedUpdate:
    shape = tuple(update.shape)
    if adapter.metadata.of_kind.by_parameter and shape == stored.shape:
        return OrientedUpdate(_float(update, base), False)
    turned = is_turned(shape, stored, site, site in adapter.embeddings, adapter.config, base)
    return OrientedUpdate(_float(update, base), turned)


def _rank(update: Update | None) -> int:
    factors = None if update is None else update.factors()
    return 1 if factors is None else factors.rank


def _positive(update: Update) -> Update:
    factors = update.factors()
    return update if factors is None else LowRank(factors.b.abs(), factors.a.abs(), abs(factors.scaling))


def _float(update: Update, base: Checkpoint) -> Update:
    """Return the update in the dtype of the computation: a method in float64 would take float32's noise for rank."""
    wide = any(stored.dtype == "F64" for stored in base.tensors.values())
    return update.to(torch.float64 if wide else torch.float32)
