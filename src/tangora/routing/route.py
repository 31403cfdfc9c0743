"""`route`: adapters and a router become one routed adapter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.adapters.adapter import Adapter
from tangora.errors import ArgumentError
from tangora.fusion.fusion import Fusion
from tangora.fusion.routed import route_settings, routed
from tangora.modes.belonging import refuse_another_base
from tangora.routing.contract import RoutingBench

if TYPE_CHECKING:
    from tangora.fusion.heads import Heads
    from tangora.routing.contract import OnStep
    from tangora.tasks import Base, Task

__all__ = ["route"]


def route(
    adapters: Sequence[Adapter | str | os.PathLike[str]],
    method: str = "smile",
    *,
    base: Base | None = None,
    tasks: Sequence[Task] = (),
    seed: int = 0,
    names: Sequence[str] | None = None,
    same_base: bool = False,
    heads: Heads | None = None,
    scratch: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Adapter:
    """Put experts and a router between them into one adapter, in which every token or sample chooses its experts.

    .. math:: y = W x + \\sum_t g_t(x) \\Delta W_t x

    Choose it if a fusion loses too much and the tasks' inputs differ. The result is as large as all experts together,
    and it is no plain peft adapter: use `tangora.load_model`, `tangora.predictor`, `tangora.evaluate` or the commands.

    Args:
        adapters: LoRA or L-LoRA adapters of one base, or their folders; ranks and sites may differ.
        method: a router: ``smile``, ``arrow``, or another package's.
        base: the model, for a router that learns from rows.
        tasks: those of the experts, in their order, for such a router.
        seed: of a router that draws.
        names: of the experts; the task's or the folder's if None.
        same_base: treat the bases as the same weights although their names or fingerprints differ.
        heads: ``keep`` heads in ``modules_to_save``, one file per task; they are refused if it is None and they differ.
        scratch: folder for checkpoints of a router that trains.
        cache: folder for what a router that trains can use again.
        on_step: called after each step of a router that trains, with (step, total steps, loss).
        settings: the router's own, such as ``top_k=2``.

    Raises:
        PluginError: an unknown router; the message contains the nearest name.
        ArgumentError: a setting is unknown or invalid, or the router learns from rows and there are none.
        FusionError: the adapters' bases or widths differ; one is of another kind, tangent or DoRA, or changes something
            else than linear layers; heads differ.
        ModelError: an adapter was made for another base than the given one.
        AdapterError: a folder does not contain a readable adapter.

    >>> import torch
    >>> from tangora.updates.task_vector import LowRank
    >>> one = Adapter({"layer": LowRank(torch.ones(2, 1), torch.ones(1, 3))})
    >>> two = Adapter({"layer": LowRank(torch.ones(2, 2), torch.eye(2, 3))})
    >>> made = route([one, two], "smile", top_k=1)
    >>> made.metadata.modules["sites"]["layer"]["ranks"], made.metadata.fused.method
    ([1, 2], 'smile')
    """
    chosen = route_settings(method, settings, where="route")
    fusion = Fusion(adapters, same_base=same_base, names=names, heads=heads, seed=seed)
    if tasks and base is None:
        raise ArgumentError("rows need their base", where="route.base", fix="give what tangora.load_base returns")
    bench = None
    if base is not None:
        for adapter in fusion.adapters:
            refuse_another_base(adapter, base, same_base=same_base)
        bench = RoutingBench(base, tuple(tasks), seed, _path(scratch), _path(cache), on_step)
    return routed(fusion, chosen, bench, where="route")


def _path(folder: str | os.PathLike[str] | None) -> Path | None:
    return None if folder is None else Path(folder)
