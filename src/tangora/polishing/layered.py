"""The two parts of a polish that work layer by layer, from the adapter that is started from to changed weights.

The backbone has the weights of the base, and parameters that the start saved whole, while they work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.adapters.application import applied, find_slots
from tangora.config.polish import FORM_ROWS, PolishSettings
from tangora.errors import ModelError
from tangora.modes.preparation import as_before, frozen_statistics
from tangora.polishing.block_students import BlockStudent, Entries, Factors, entries_of
from tangora.polishing.closed_form import closed_form, cut_changes
from tangora.polishing.dual import Dual, dual_of, refuse_base
from tangora.polishing.progressive import Curve, trained_blocks
from tangora.polishing.student import Start, balanced, layer_updates
from tangora.support.files import atomic_file, read_safetensors, write_safetensors
from tangora.updates.task_vector import Dense, LowRank

if TYPE_CHECKING:
    from tangora.polishing.dual import Load
    from tangora.polishing.lessons import Lesson
    from tangora.progress import Progress
    from tangora.tasks import Base
    from tangora.updates.task_vector import Update

__all__ = ["ByLayers", "Layered"]

_BATCH = 32


@dataclass(frozen=True)
class Layered:
    """What was trained block by block.

    Attributes:
        updates: site -> factors; with ``full``, parameter -> change.
        curves: of the blocks.
        full: whether the updates are changes of parameters.
        error: relative error of the result's cut to the rank, of outputs; None if nothing was cut.
    """

    updates: Mapping[str, Update]
    curves: Sequence[Curve]
    full: bool = False
    error: float | None = None


@dataclass(frozen=True)
class ByLayers:
    """Works on the blocks of a base.

    Args:
        base: as before afterwards.
        start: the fused adapter, with the backbone's names.
        lessons: the rows that are trained on.
        experts: task -> loads its expert.
        settings: of the polish.
        seed: of everything that is drawn.
        folder: for what is done, to resume from; None for none.
        progress: is given blocks.
        on_step: is called after each step with (step, total steps, loss).
    """

    base: Base
    start: Adapter
    lessons: Sequence[Lesson]
    experts: Mapping[str, Load]
    settings: PolishSettings
    seed: int
    folder: Path | None
    progress: Progress
    on_step: Callable[[int, int, float], None]

    def in_closed_form(self, first: Start) -> Start:
        """Return the start with the factors of layers in blocks in closed form; see `closed_form`.

        Args:
            first: the start, cut to the rank: layers outside the blocks keep its factors.
        """
        path = None if self.folder is None else self.folder / "closed-form.safetensors"
        if path is not None and path.is_file():
            return _read(path, first)
        settings, (fused, _) = self.settings, layer_updates(self.start, self.base.backbone)
        with self._prepared():
            dual = self._dual(Adapter(dict(first.factors)), FORM_ROWS, _BATCH, order=False)
            self.progress.begin("layers in closed form", len(dual.blocks.names))
            made, error = closed_form(
                dual, fused, settings.rank, settings.ridge, lambda name: self.progress.advance(detail=name)
            )
            self.progress.end()
        if path is not None:
            _write(path, made, error)
        return replace(first, factors={**first.factors, **made}, error=error)

    def unchanged(self, first: Start) -> Layered:
        """Return what is trained from as if nothing had been trained.

        Args:
            first: its factors; they are not used if coefficients of entries give changes of full rank.
        """
        if self.settings.student == "entries" and self.settings.rank is None:
            return Layered(_changes(self.base.backbone, replace(self.start, whole={})), (), full=True)
        drawn = self.settings.initial == "random"
        return Layered({s: LowRank(f.b * 0, f.a) if drawn else f for s, f in first.factors.items()}, ())

    def trained(self, first: Start) -> Layered:
        """Train the blocks in order.

        Args:
            first: factors to start from. Coefficients of entries are trained from the start itself.
        """
        with self._prepared():
            if self.settings.student == "entries":
                return self._entries()
            merged = Adapter({} if self.settings.initial == "random" else dict(first.factors))
            return self._factors(self._for_steps(merged), first)

    def _factors(self, dual: Dual, first: Start) -> Layered:
        made: dict[str, LowRank] = dict(first.factors)
        rank, random = self.settings.rank or first.rank, self.settings.initial == "random"

        def student(index: int, _: Sequence[Mapping[str, Tensor]]) -> Factors:
            inside = _inside(first.factors, dual.blocks.names[index])
            linear = {s: f for s, f in inside.items() if not isinstance(_module(self.base, s), nn.Embedding)}
            return Factors(dual.blocks, index, linear, rank, self.seed, random)

        def settled(index: int, trained: BlockStudent) -> Mapping[str, Tensor]:
            made.update(cast(Factors, trained).updates())
            return trained.weights()

        if random:  # layers that nothing trains are left as in the base
            made = {s: LowRank(f.b * 0, f.a) for s, f in made.items()}
        return Layered(made, self._curves(dual, student, settled))

    def _entries(self) -> Layered:
        rank, start, backbone = self.settings.rank, self.start, self.base.backbone
        outside = start if rank is None else None
        if outside is None:
            updates, _ = layer_updates(start, backbone)
            start = Adapter(dict(updates))
        elif start.whole:
            what, fix = "changes of parameters cannot be saved beside parameters that were saved whole", "set a rank"
            raise ModelError(what, got=next(iter(start.whole)), where="polish.rank", fix=fix)
        dual = self._for_steps(start)
        made: dict[str, Update] = {}
        lost = total = 0.0

        def student(index: int, experts: Sequence[Mapping[str, Tensor]]) -> Entries:
            return entries_of(dual.blocks, index, start, experts, matrices=rank is not None)

        def settled(index: int, trained: BlockStudent) -> Mapping[str, Tensor]:
            nonlocal lost, total
            changes, weights = cast(Entries, trained).changes(), trained.weights()
            if rank is None:
                made.update({f"{dual.blocks.names[index]}.{n}": Dense(x) for n, x in changes.items() if bool(x.any())})
                return weights
            cuts = cut_changes(dual, index, changes, weights, rank)
            lost, total = lost + sum(c.lost for c in cuts.values()), total + sum(c.total for c in cuts.values())
            kept = {site: balanced(site, cut.update) for site, cut in cuts.items()}
            made.update(kept)
            return dual.blocks.weights(index, Adapter(dict(kept)))

        curves = self._curves(dual, student, settled)
        rest = _outside(start, dual.blocks.names)
        if rank is None:
            return Layered({**_changes(backbone, rest), **made}, curves, full=True)
        others = {site: balanced(site, update.compress(rank)[0]) for site, update in rest.updates.items()}
        return Layered({**others, **made}, curves, error=(lost / total) ** 0.5 if total > 0 else 0.0)

    def _curves(
        self,
        dual: Dual,
        student: Callable[[int, Sequence[Mapping[str, Tensor]]], BlockStudent],
        settled: Callable[[int, BlockStudent], Mapping[str, Tensor]],
    ) -> list[Curve]:
        self.progress.begin("polish", self.settings.steps * len(dual.blocks.names))
        where = (self.settings, self.seed, self.folder, self.on_step)
        curves = list(trained_blocks(dual, student, *where, settled))
        self.progress.end()
        return curves

    def _for_steps(self, merged: Adapter) -> Dual:
        settings = self.settings
        return self._dual(merged, settings.steps * settings.batch_size, settings.batch_size, order=True)

    def _dual(self, merged: Adapter, most: int, batch: int, *, order: bool) -> Dual:
        few = [one.part(range(min(most, len(one.rows)))) for one in self.lessons]
        return dual_of(self.base, few, self.experts, merged, batch, order=order)

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        refuse_base(self.base)
        backbone = self.base.backbone
        with as_before(backbone, values=False), frozen_statistics(backbone):
            backbone.requires_grad_(False)
            with applied(backbone, Adapter({}, whole=self.start.whole)):
                yield


def _module(base: Base, site: str) -> nn.Module:
    return base.backbone.get_submodule(site)


def _inside(factors: Mapping[str, LowRank], block: str) -> dict[str, LowRank]:
    return {site: update for site, update in factors.items() if site.startswith(f"{block}.")}


def _outside(adapter: Adapter, blocks: Sequence[str]) -> Adapter:
    """Return the part of an adapter that changes no block."""
    prefixes = tuple(f"{name}." for name in blocks)
    return replace(adapter, updates={s: u for s, u in adapter.updates.items() if not s.startswith(prefixes)}, whole={})


def _changes(backbone: nn.Module, adapter: Adapter) -> dict[str, Update]:
    """Return parameter -> its change by an adapter."""
    parameters = dict(backbone.named_parameters(remove_duplicate=False))
    names = {slot.name for slot in find_slots(backbone, adapter).values()}
    before = {name: parameters[name].detach().clone() for name in names}
    with applied(backbone, adapter):
        return {name: Dense((parameters[name].detach() - before[name]).cpu()) for name in sorted(names)}


def _write(path: Path, factors: Mapping[str, LowRank], error: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{site}.{name}": getattr(update, name) for site, update in factors.items() for name in ("a", "b")}
    with atomic_file(path) as scratch:
        write_safetensors(scratch, {**tensors, "error": torch.tensor(error, dtype=torch.float64)})


def _read(path: Path, first: Start) -> Start:
    tensors = read_safetensors(path)
    sites = {name.removesuffix(".a") for name in tensors if name.endswith(".a")}
    made = {s: LowRank(tensors[f"{s}.b"], tensors[f"{s}.a"]) for s in first.factors if s in sites}
    return replace(first, factors={**first.factors, **made}, error=float(tensors["error"]))
