"""`check_mode`: the promises of `tangora.modes.contract.Mode`, by training on a tiny model that it makes itself."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter, load
from tangora.adapters.kinds import KINDS
from tangora.config.settings import FinetuneConfig, Frozen
from tangora.errors import ModelError
from tangora.modes.contract import Bench, Mode
from tangora.support.seams import MODES
from tangora.tangent import make_columns
from tangora.tasks.model import TaskModel
from tangora.testing._tiny import tiny_base, tiny_tasks
from tangora.testing._tiny_towers import tiny_questions, tiny_towers

if TYPE_CHECKING:
    from tangora.tasks import Base, Task

__all__ = ["check_mode", "unchanged"]

_CLOSE = 1e-4


def check_mode(mode: Mode, *, made: Callable[[Base], Adapter] | None = None, **settings: Any) -> None:
    """Check the promises of a mode, by training a model of two layers a few times. This takes seconds.

    Of a mode that only answers (``trains = False``), it is checked that it refuses to train.

    Args:
        mode: the one to check.
        made: for a mode that only answers: makes an adapter of a tiny model, to check its answers too.
        **settings: the mode's keys in a recipe; necessary for those without a default.

    Raises:
        AssertionError: says which promise is broken.
    """
    _check_declarations(mode)
    with _registered(mode), tempfile.TemporaryDirectory() as folder:
        base, tasks = _base(mode, Path(folder)), _tasks(mode, 2 if mode.joint else 1)
        config = _config(mode, settings)
        if not getattr(mode, "trains", True):
            _check_refusal(mode, base, tasks, config)
            if made is not None:
                _check_answers(mode, base, tasks[0], made(base))
            return
        with unchanged(base, f"{mode.name}: check or footprint"):
            mode.check(base, config)
            size = mode.footprint(base, config)
        assert min(size.sites, size.trainable, size.size) > 0, f"{mode.name}: footprint counts nothing, got {size}"
        adapters = _check_training(mode, base, tasks, config)
        _check_divergence(mode, base, tasks, config)
        for task in tasks:
            _check_answers(mode, base, task, adapters[task.name])
        if mode.linear_in_coefficients:
            _check_linear(mode, base, tasks[0], adapters[tasks[0].name])


_TINY: Mapping[str, tuple[Callable[[Path | None], Base], Callable[[int], Sequence[Task]]]] = {
    "": (tiny_base, tiny_tasks),
    "vision-language": (tiny_towers, tiny_questions),
}
"""The attribute ``tiny`` of a mode, which names a base that fits it -> functions for that base and its tasks."""


def _base(mode: Mode, folder: Path | None = None) -> Base:
    return _TINY[getattr(mode, "tiny", "")][0](folder)


def _tasks(mode: Mode, count: int) -> Sequence[Task]:
    return _TINY[getattr(mode, "tiny", "")][1](count)


def _check_declarations(mode: Mode) -> None:
    assert isinstance(mode, Mode), f"{mode!r} lacks a name of tangora.modes.contract.Mode"
    name = mode.name
    assert isinstance(mode.settings, type), f"{name}: settings must be a class"
    assert issubclass(mode.settings, Frozen), f"{name}: settings must be a subclass of tangora.config.settings.Frozen"
    assert math.isfinite(mode.default_rate), f"{name}: default_rate must be a number"
    assert mode.default_rate > 0, f"{name}: default_rate must be above 0, got {mode.default_rate}"
    assert mode.passes >= 1, f"{name}: a training step takes a forward pass at least, got passes {mode.passes}"
    assert mode.kind in KINDS, f"{name}: kind must be one of {', '.join(KINDS)}, got {mode.kind!r}"
    valid = ("none", "module", "model")
    assert mode.linearize in valid, f"{name}: linearize must be one of {', '.join(valid)}, got {mode.linearize!r}"
    for flag in ("joint", "linear_in_coefficients", "can_be_student"):
        assert isinstance(getattr(mode, flag), bool), f"{name}: {flag} must be True or False"
    assert isinstance(mode.answers, str), f"{name}: answers must be a text"


@contextlib.contextmanager
def _registered(mode: Mode) -> Iterator[None]:
    """Register the mode by its name for a while, so that configurations can refer to it."""
    if mode.name in MODES:
        assert MODES.get(mode.name) is mode, f"{mode.name}: another mode is registered by that name"
        yield
        return
    MODES.register(mode.name, mode)
    try:
        yield
    finally:
        MODES.unregister(mode.name)


def _config(mode: Mode, settings: dict[str, Any]) -> FinetuneConfig:
    rate = 1e-3 if mode.kind == "full" else 2e-2
    training = {"steps": 3, "batch_size": 4, "learning_rate": rate, "checkpoint_every": None}
    common: dict[str, Any] = {"lora": {"r": 2, "target_modules": ["query", "value"]}, "training": training}
    taken = {key: value for key, value in common.items() if key in mode.settings.model_fields}
    return FinetuneConfig(**{"mode": "checked", "train": mode.name, **taken, **settings}).resolved()


@contextlib.contextmanager
def unchanged(base: Base, who: str) -> Iterator[None]:
    """Assert that the block leaves a base as it was: weights, layers and gradients."""
    before = {name: value.clone() for name, value in base.backbone.state_dict().items()}
    flags = {name: p.requires_grad for name, p in base.backbone.named_parameters()}
    modules = {name: id(module) for name, module in base.backbone.named_modules()}
    yield
    after = base.backbone.state_dict()
    assert before.keys() == after.keys(), f"{who} changes which weights the base has"
    odd = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert not odd, f"{who} changes the base's weight {odd[0]}"
    assert modules == {n: id(m) for n, m in base.backbone.named_modules()}, f"{who} changes the base's layers"
    assert flags == {n: p.requires_grad for n, p in base.backbone.named_parameters()}, f"{who} leaves gradients on"


def _check_training(mode: Mode, base: Base, tasks: Sequence[Task], config: FinetuneConfig) -> dict[str, Adapter]:
    with unchanged(base, f"{mode.name}: train"):
        made, again = (dict(mode.train(Bench(base), tasks, config)) for _ in range(2))
    wanted = [task.name for task in tasks]
    assert sorted(made) == sorted(wanted), f"{mode.name}: train returns {sorted(made)} for the tasks {wanted}"
    for name, adapter in made.items():
        metadata = adapter.metadata
        assert adapter.fingerprint == again[name].fingerprint, f"{mode.name}: the same seed gives another adapter"
        assert adapter.updates, f"{mode.name}: the adapter of {name} changes nothing"
        assert (metadata.kind, metadata.train) == (mode.kind, mode.name), (
            f"{mode.name}: metadata says {metadata.kind}, {metadata.train}"
        )
        assert metadata.linearize == mode.linearize, f"{mode.name}: metadata says linearize: {metadata.linearize}"
        assert metadata.base.fingerprint == base.fingerprint, f"{mode.name}: metadata does not name the base"
    return made


def _check_refusal(mode: Mode, base: Base, tasks: Sequence[Task], config: FinetuneConfig) -> None:
    attempts: dict[str, Callable[[], Any]] = {
        "check": lambda: mode.check(base, config),
        "footprint": lambda: mode.footprint(base, config),
        "train": lambda: mode.train(Bench(base), tasks, config),
    }
    for name, attempt in attempts.items():
        with unchanged(base, f"{mode.name}: {name}"):
            try:
                attempt()
            except ModelError:
                continue
        raise AssertionError(f"{mode.name}: it does not train, but {name} raises no ModelError")


def _check_divergence(mode: Mode, base: Base, tasks: Sequence[Task], config: FinetuneConfig) -> None:
    if "training" not in mode.settings.model_fields:
        return
    hot = config.training.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 1e30, "steps": 20})
    with unchanged(base, f"{mode.name}: a training that fails"):
        try:
            made = mode.train(Bench(base), tasks, config.model_copy(update={"training": hot}))
        except ModelError:
            return
    finite = all(math.isfinite(u.norm()) for adapter in made.values() for u in adapter.updates.values())
    assert finite, f"{mode.name}: train returns weights that are not finite, instead of raising ModelError"


def _check_answers(mode: Mode, base: Base, task: Task, adapter: Adapter) -> None:
    bare = _logits(TaskModel(base.backbone, task, base), task)
    saved: dict[str, Tensor] = {}
    with unchanged(base, f"{mode.name}: answering"):
        logits, again = (_answered(mode, base, task, adapter, saved) for _ in range(2))
    assert torch.equal(logits, again), f"{mode.name}: answering gives other logits the second time"
    assert not torch.allclose(logits, bare, atol=1e-6), f"{mode.name}: the adapter answers as the base does"
    with tempfile.TemporaryDirectory() as scratch:
        adapter.save(Path(scratch) / "adapter")
        read = load(Path(scratch) / "adapter")
        after = _answered(mode, base, task, read, {})
        _same(after, logits, f"{mode.name}: an adapter that was saved and loaded answers otherwise")
        model = mode.load_model(Path(scratch) / "adapter", _base(mode).backbone)
    assert not model.training, f"{mode.name}: load_model returns a network in training mode"
    _same(_of_loaded(model, base, task), logits, f"{mode.name}: load_model gives other logits than answering")


def _check_linear(mode: Mode, base: Base, task: Task, adapter: Adapter) -> None:
    columns = make_columns(base, task, "test", {"one": adapter})
    for coefficient in (0.5, 2.0):
        scaled = replace(adapter, updates={site: u * coefficient for site, u in adapter.updates.items()})
        expected = columns.origin + coefficient * columns.columns[0]
        logits = _answered(mode, base, task, scaled, {})
        _same(logits, expected, f"{mode.name}: logits are not linear in the coefficient {coefficient}")


def _same(actual: Tensor, expected: Tensor, what: str) -> None:
    error = float((actual - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    assert error <= _CLOSE, f"{what}, by {error:.2g}"


def _answered(mode: Mode, base: Base, task: Task, adapter: Adapter, saved: dict[str, Tensor]) -> Tensor:
    with mode.answering(base, adapter, saved) as model_of:
        return _logits(model_of(task), task)


@torch.no_grad()
def _logits(model: TaskModel, task: Task) -> Tensor:
    by_row: dict[int, Tensor] = {}
    for rows, batch in task.splits["test"].batches(8, model.eval().collator):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        labels = batch["labels"] if task.form.logits_over == "tokens" else None
        by_row.update(zip(rows, model.logits(inputs, labels), strict=True))
    return torch.stack([by_row[row] for row in sorted(by_row)])


class _FixedOutput(nn.Module):
    """A backbone that returns a fixed output."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output, self.weight = output, nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, **_: Any) -> Any:
        return self.output


@torch.no_grad()
def _of_loaded(model: nn.Module, base: Base, task: Task) -> Tensor:
    """Return the logits of a network from `Mode.load_model`, with the task's readout applied inside its expansion."""
    if task.form.logits_over == "tokens" and not hasattr(model, "then"):  # the readout chooses what the network reads
        return _logits(TaskModel(model, task, base), task)
    collate = TaskModel(base.backbone, task, base).collator
    by_row: dict[int, Tensor] = {}
    for rows, batch in task.splits["test"].batches(8, collate):
        inputs = {name: value for name, value in batch.items() if name != "labels"}

        def last(output: Any, inputs: dict[str, Tensor] = inputs) -> Tensor:
            return TaskModel(_FixedOutput(output), task, base).logits(inputs)

        then = getattr(model, "then", None)
        logits = then(last)(**inputs) if then is not None else last(model(**inputs))
        by_row.update(zip(rows, logits, strict=True))
    return torch.stack([by_row[row] for row in sorted(by_row)])
