"""Train up-vectors and routers on several tasks at once (MoDE)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tangora.errors import ModelError
from tangora.modes.modular import adding, modules_adapter, modules_footprint
from tangora.modes.targets import check_targets
from tangora.modular.dyadic import DyadicNetwork, DyadicShape, draw_
from tangora.tasks.model import TaskModel

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.config.dyadic import DyadicSettings
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task

__all__ = ["footprint", "shape_of", "train"]


def shape_of(base: Base, settings: DyadicSettings) -> DyadicShape:
    """Return which layers of a base have up-vectors, and how many.

    Raises:
        ModelError: a target matches nothing, or an embedding.
    """
    lora = settings.lora
    return DyadicShape(
        r=lora.r,
        ups=settings.ups,
        decisions=settings.decisions,
        router=settings.router,
        scaling=lora.alpha / (math.sqrt(lora.r) if lora.rslora else lora.r),
        sites=_sites(base.backbone, lora.target_modules),
    )


def _sites(backbone: nn.Module, targets: Sequence[str] | str) -> dict[str, list[int]]:
    """Return layer -> its widths, ``[out, in]``, of those that peft would adapt."""
    check_targets(backbone, targets)
    head = getattr(backbone, "get_output_embeddings", lambda: None)()
    sites: dict[str, list[int]] = {}
    for name, module in backbone.named_modules():
        if targets == "all-linear":
            chosen = module is not head and _widths(module) is not None
        else:
            chosen = any(name == target or name.endswith(f".{target}") for target in targets)
        if not chosen:
            continue
        if (widths := _widths(module)) is None:
            fix = "target Linear and Conv1D layers"
            raise ModelError(
                "up-vectors are chosen by the input of a layer", got=type(module).__name__, where=name, fix=fix
            )
        sites[name] = widths
    return sites


def _widths(module: Any) -> list[int] | None:
    """Return ``[out, in]`` of a Linear layer, or of transformers' Conv1D."""
    if isinstance(module, nn.Linear):
        return [module.out_features, module.in_features]
    return [module.nf, module.nx] if type(module).__name__ == "Conv1D" else None


def footprint(base: Base, config: FinetuneConfig) -> Footprint:
    """Count A, the up-vectors and the routers."""
    shape = shape_of(base, config.settings)
    with torch.device("meta"):
        network = DyadicNetwork(shape)
    return modules_footprint(network, len(shape.sites), sum(math.prod(widths) for widths in shape.sites.values()))


def train(bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
    """Train on the rows of all tasks, and return one adapter for all of them; see `Mode.train`."""
    base, settings = bench.base, config.settings
    shape = shape_of(base, settings)
    network = draw_(DyadicNetwork(shape, settings.lora.dropout), config.seed)
    with adding(bench, tasks, config, network) as session:
        session.fit(lambda task: TaskModel(base.backbone, task, base))
        adapter = modules_adapter(base, tasks, config, network.state_dict(), shape.model_dump(mode="json"))
    return {task.name: adapter for task in tasks}
