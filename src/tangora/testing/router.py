"""`check_router`: the promises of `tangora.routing.contract.Router`, with random experts of a tiny model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter, BaseInfo, Metadata, load
from tangora.config.routing import RouteSettings
from tangora.methods import methods
from tangora.modes.contract import mode_of
from tangora.routing.contract import Router, RoutingBench, summary_of
from tangora.tasks.model import TaskModel
from tangora.testing._tiny import tiny_base, tiny_tasks
from tangora.testing.mode import unchanged
from tangora.updates.task_vector import LowRank

if TYPE_CHECKING:
    from tangora.tasks import Base, Task

__all__ = ["check_router"]

_CLOSE = 1e-4


def check_router(router: Router, **settings: Any) -> None:
    """Check the promises of a router, on random experts of a model of two layers. This takes seconds.

    Args:
        router: the one to check.
        **settings: its settings; necessary for those without a default, useful to let one that learns stop early.

    Raises:
        AssertionError: says which promise is broken.
    """
    chosen = _declared(router, settings)
    base, tasks = tiny_base(), tiny_tasks(2)
    ranks = (2, 2) if getattr(router, "linearized", False) else (2, 3)  # L-LoRA experts have one A₀, and so one rank
    experts = {task.name: _expert(base, task, rank, i) for i, (task, rank) in enumerate(zip(tasks, ranks, strict=True))}
    before = {name: adapter.fingerprint for name, adapter in experts.items()}
    bench = RoutingBench(base, tuple(tasks), seed=3) if router.needs == "rows" else None
    with unchanged(base, router.name):
        made, again = (router(experts, chosen, bench) for _ in range(2))
    assert made.fingerprint == again.fingerprint, f"{router.name}: the same experts and seed give another adapter"
    after = {name: adapter.fingerprint for name, adapter in experts.items()}
    assert before == after, f"{router.name} changes an expert"
    _check_metadata(router, made, chosen, before)
    _check_answers(router, base, tasks[0], made)


def _declared(router: Router, settings: Mapping[str, Any]) -> RouteSettings:
    """Check the declarations, and return the settings."""
    assert isinstance(router, Router), f"{router!r} lacks a name of tangora.routing.contract.Router"
    name = router.name
    assert issubclass(router.settings, RouteSettings), f"{name}: settings must be a subclass of RouteSettings"
    default = router.settings.model_fields["name"].default
    assert default == name, f"{name}: the default of the setting name must be {name!r}, got {default!r}"
    assert router.needs in ("nothing", "rows"), f"{name}: needs must be nothing or rows, got {router.needs!r}"
    assert isinstance(router.reference, str), f"{name}: reference must be a text"
    assert summary_of(router), f"{name}: its docstring says what it does"
    assert name not in methods(), f"{name}: a fusion method has this name"
    return router.settings.model_validate(dict(settings))


def _expert(base: Base, task: Task, rank: int, number: int) -> Adapter:
    """Return an adapter of random numbers at every linear layer; those of one rank have one A."""
    shared, draw = torch.Generator().manual_seed(rank), torch.Generator().manual_seed(100 + number)
    updates = {}
    for name, layer in base.backbone.named_modules():
        if isinstance(layer, nn.Linear):
            b = torch.randn(layer.out_features, rank, generator=draw)
            updates[name] = LowRank(b, torch.randn(rank, layer.in_features, generator=shared), 0.5 / rank)
    about = BaseInfo(model=base.config.model, fingerprint=base.fingerprint, family=base.config.family)
    return Adapter(updates, Metadata(task=task.name, base=about))


def _check_metadata(router: Router, made: Adapter, settings: RouteSettings, prints: Mapping[str, str]) -> None:
    about, name = made.metadata, router.name
    assert about.kind == "routed", f"{name}: the adapter is of kind {about.kind}"
    assert mode_of(made).kind == "routed", f"{name}: its mode {about.train} does not answer with routed adapters"
    assert about.fused is not None, f"{name}: metadata.fused does not say how it was made"
    assert about.fused.method == name, f"{name}: metadata.fused names {about.fused.method}"
    found = {parent.name: parent.fingerprint for parent in about.fused.parents}
    assert found == prints, f"{name}: metadata.fused does not name the experts"
    stated = settings.model_dump(mode="json", exclude={"name"})
    assert about.fused.parameters == stated, f"{name}: metadata.fused does not have its settings"


def _check_answers(router: Router, base: Base, task: Task, made: Adapter) -> None:
    name, rows = router.name, list(range(len(task.splits["test"])))
    together = _answers(base, task, made, [rows])
    bare = _answers(base, task, None, [rows])
    assert not torch.allclose(together, bare, atol=1e-6), f"{name}: the adapter answers as the base does"
    turned = _answers(base, task, made, [rows[::-1]]).flip(0)
    alone = _answers(base, task, made, [[row] for row in rows])
    for other in (turned, alone):
        error = float((together - other).abs().max()) / max(1.0, float(together.abs().max()))
        assert error <= _CLOSE, f"{name}: answers depend on the rest of the batch, by {error:.2g}"
    with tempfile.TemporaryDirectory() as scratch:
        made.save(Path(scratch) / "routed")
        read = _answers(base, task, load(Path(scratch) / "routed"), [rows])
    assert torch.equal(read, together), f"{name}: an adapter that was saved and loaded answers otherwise"


@torch.no_grad()
def _answers(base: Base, task: Task, adapter: Adapter | None, batches: list[list[int]]) -> Tensor:
    """Return the logits of rows of the test split, batch by batch."""
    data = task.splits["test"].dataset()

    def of(model: TaskModel) -> Tensor:
        found = []
        for rows in batches:
            batch = model.eval().collator([data[row] for row in rows])
            found.append(model.logits({n: value for n, value in batch.items() if n != "labels"}))
        return torch.cat(found)

    if adapter is None:
        return of(TaskModel(base.backbone, task, base))
    with mode_of(adapter).answering(base, adapter, {}) as model_of:
        return of(model_of(task))
