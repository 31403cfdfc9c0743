"""The promises of a readout: shapes, batches, gradients, parameters saved with adapters, the tangent expansion."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.adapters.application import applied
from tangora.adapters.heads import HeadRecord
from tangora.errors import AdapterError
from tangora.tangent import TangentTaskModel, direction_of
from tangora.tasks.base import Base
from tangora.tasks.contract import MAPS, Family
from tangora.tasks.lines import lines_of
from tangora.tasks.maps import counted
from tangora.tasks.model import TaskModel, make_readout, predict
from tangora.tasks.values import Batch, Task, evaluating
from tangora.updates.task_vector import LowRank

__all__ = ["check_followed", "check_readout", "check_value"]

_ROWS = 4
_STEP = 1e-2  # step of the finite difference


def check_readout(family: Family[Any, Any], base: Base, task: Task) -> None:
    """Check the readout of a task.

    Raises:
        AssertionError: says which promise is broken.
    """
    _check_start(family, base, task)
    head = _some_head(base, task)
    _check_shapes(family, base, task, head)
    _check_answers(family, base, task, head)
    _check_gradients(base, task, head)
    if task.form.logits_over is not None or task.form.kind in ("number", *MAPS):
        _check_expansion(base, task, head)


def check_followed(family: Family[Any, Any], base: Base, task: Task) -> None:
    """Check the task whose logits are features, if the family has one.

    Raises:
        AssertionError: says which promise is broken.
    """
    followed = family.followed(task)
    if followed is None:
        return
    model = TaskModel(base.backbone, followed, base)
    assert not cast(nn.Module, model.readout).state_dict(), "the readout of a followed task has parameters"
    inputs, labels = _batch(model, followed)
    with evaluating(model), torch.no_grad():
        lengths = model.logits(inputs, labels).norm(dim=-1)
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4), (
        f"features to follow are unit vectors: {lengths}"
    )


def _check_start(family: Family[Any, Any], base: Base, task: Task) -> None:
    one, other = (cast(nn.Module, family.readout(task, base)) for _ in range(2))
    assert isinstance(one, nn.Module), f"a readout is a torch.nn.Module, got {type(one).__name__}"
    assert one is not other, "readout returns a new one every time"
    for (name, value), again in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, again), f"the parameter {name} of a readout starts at other values every time"
        assert value.is_floating_point(), f"{name} is in state_dict() and is no floating-point tensor"
    hash(family.readout(task, base).features_key)


def _some_head(base: Base, task: Task) -> Adapter:
    """Return an adapter with random values for the readout's parameters, if it has any."""
    state = cast(nn.Module, make_readout(task, base)).state_dict()
    draw = torch.Generator().manual_seed(0)
    values = {name: 0.3 * torch.randn(tensor.shape, generator=draw) for name, tensor in state.items()}
    record = HeadRecord(**task.record)
    return Adapter({}, heads={task.name: values} if values else {}, records={task.name: record})


def _batch(model: TaskModel, task: Task, rows: range = range(_ROWS)) -> tuple[Batch, Tensor]:
    data = next(iter(task.splits.values())).dataset()
    batch = dict(model.collator([data[i] for i in rows]))
    device = next(model.backbone.parameters()).device
    placed = {name: value.to(device) for name, value in batch.items()}
    return placed, placed.pop("labels")


def _check_shapes(family: Family[Any, Any], base: Base, task: Task, head: Adapter) -> None:
    model = TaskModel(base.backbone, task, base, make_readout(task, base, head))
    readout, (inputs, labels) = model.readout, _batch(model, task)
    with evaluating(model), torch.no_grad():
        features = readout.features(base.backbone, inputs, labels)
        logits = readout.logits(features)
        losses = readout.losses(logits, labels)
    assert len(features) == _ROWS, f"features has {len(features)} entries for {_ROWS} rows"
    assert logits.dtype == torch.float32, f"logits are float32, got {logits.dtype}"
    assert logits.shape[-1] == readout.width, f"width is {readout.width}, and there are {logits.shape[-1]} logits"
    placed = task.form.logits_over in ("tokens", "tags") or task.form.kind in MAPS
    tokens = labels.shape[1:] if placed else ()
    assert logits.shape[:-1] == (_ROWS, *tokens), (
        f"logits are of rows (and tokens, or pixels), got {tuple(logits.shape)}"
    )
    assert losses.shape == (_ROWS,), f"losses has one entry per row, got {tuple(losses.shape)}"
    for row in range(_ROWS):
        alone, label = _batch(model, task, range(row, row + 1))
        with evaluating(model), torch.no_grad():
            loss = readout.losses(model.logits(alone, label), label)[0]
        what = f"row {row} has the loss {float(losses[row]):g} in a batch and {float(loss):g} alone"
        assert math.isclose(float(loss), float(losses[row]), rel_tol=1e-3, abs_tol=1e-4), what


def _check_answers(family: Family[Any, Any], base: Base, task: Task, head: Adapter) -> None:
    model = TaskModel(base.backbone, task, base, make_readout(task, base, head))
    split = next(iter(task.splits.values()))
    predicted = predict(model, split, 5)
    for value in predicted.plain:
        check_value(value, task, "answer")
    assert np.isfinite(predicted.losses).all(), "a loss is not finite"
    other = replace(task, labels=[*task.labels[1:], *task.labels[:1]])
    if head.heads and other.labels != task.labels:
        _refused(other, base, head)


def check_value(value: Any, task: Task, what: str) -> None:
    """Check that an answer or a target is a Python value of the task's kind.

    Raises:
        AssertionError: it is another value.
    """
    kind = task.form.kind
    if kind in MAPS:
        return _check_map(value, task, what)
    types: dict[str, type | tuple[type, ...]] = {"classes": int, "text": str, "number": float}
    if what == "target":
        types |= {"text": (str, tuple), "likelihood": int}
    plain = isinstance(value, types.get(kind, list))
    assert plain, f"{what} {value!r} is not of kind {kind}"
    numbers: Any = [value] if kind == "classes" else value if kind == "labels" else []
    known = range(len(task.labels))
    assert all(number in known for number in numbers), f"{what} {value!r} has a number of no class"
    tags: Any = value if kind == "tags" else []
    assert all(name in task.labels for name in tags), f"{what} {value!r} has a name of no tag"
    if isinstance(value, tuple):
        texts = sum(isinstance(text, str) for text in value)
        assert len(value) == texts > 0, f"{what} {value!r} is not one or more texts"
    if kind == "likelihood" and what == "answer":
        assert [type(part) for part in value] == [float, int], f"{what} {value!r} is not a sum and a number of tokens"


def _check_map(value: Any, task: Task, what: str) -> None:
    kind = task.form.kind
    dtype = np.float32 if kind == "number_map" else np.uint8
    shaped = isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype == dtype
    assert shaped, f"{what} {value!r} is not an array of {np.dtype(dtype)} with two dimensions"
    most = {"class_map": len(task.labels) - 1, "binary_map": 1 if what == "target" else 255}.get(kind)
    known = value[counted(value)] if what == "target" else value
    assert most is None or not known.size or int(known.max()) <= most, f"{what} {value!r} has a number of no class"


def _refused(task: Task, base: Base, head: Adapter) -> None:
    try:
        make_readout(task, base, head)
    except AdapterError:
        return
    raise AssertionError("a head for the same classes in another order is accepted")


def _check_gradients(base: Base, task: Task, head: Adapter) -> None:
    """Check that the mean loss has gradients for a weight of the backbone and for every parameter of the readout."""
    model = TaskModel(base.backbone, task, base, make_readout(task, base, head))
    inputs, labels = _batch(model, task)
    weights = [p for p in base.backbone.parameters() if p.is_floating_point() and p.ndim > 1]
    flags = [p.requires_grad for p in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            loss = model(labels=labels, **inputs)["loss"]
            own = list(model.readout.parameters())
            gradients = torch.autograd.grad(loss, [*weights, *own], allow_unused=True)
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)
    assert any(g is not None and bool(g.any()) for g in gradients[: len(weights)]), "no gradient reaches the backbone"
    for gradient in gradients[len(weights) :]:
        assert gradient is not None, "no gradient reaches a parameter of the readout"


def _check_expansion(base: Base, task: Task, head: Adapter) -> None:
    """Compare the tangent of the logits, and the answers of the expansion, with finite differences of the network."""
    uses = Counter(id(p) for _, p in base.backbone.named_parameters(remove_duplicate=False))
    modules = ((n, m) for n, m in base.backbone.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
    layers = {n: m for n, m in modules if uses[id(m.weight)] == 1}  # a tied weight belongs to no single layer
    linear = {n: m.weight for n, m in layers.items() if isinstance(m, nn.Linear)}
    if not linear:
        linear = {n: m.weight.flatten(1) for n, m in layers.items() if getattr(m, "groups", 1) == 1}
    draw = torch.Generator().manual_seed(1)
    pairs = {n: [torch.randn(s, generator=draw) for s in ((len(w), 1), (1, w.shape[1]))] for n, w in linear.items()}
    size = {n: 1.0 / float(b.norm() * a.norm()) for n, (b, a) in pairs.items()}

    def moved(share: float) -> Adapter:
        return Adapter({n: LowRank(b, a, share * size[n]) for n, (b, a) in pairs.items()})

    direction = direction_of(moved(1.0), base.backbone)
    readout = make_readout(task, base, head)
    model = TangentTaskModel(base.backbone, task, base, direction, readout)
    inputs, labels = _batch(model, task)
    with evaluating(model), torch.no_grad():
        primal, tangent = model.expansion(inputs, labels)
        ends = []
        for sign in (1.0, -1.0):
            with applied(base.backbone, moved(sign * _STEP)):
                ends.append(TaskModel(base.backbone, task, base, readout).logits(inputs, labels))
        answers, _ = model.predict_batch({**inputs, "labels": labels})
    expected = (ends[0] - ends[1]) / (2 * _STEP)
    scale = float(expected.abs().max()) + 1e-3
    error = float((tangent - expected).abs().max())
    assert error < 0.1 * scale, f"the expansion is not the derivative of the logits: off by {error:g} of {scale:g}"
    what = "answers of an expanded model are not those of its logits: apply `settle` to logits"
    assert _follow(answers, primal + tangent, labels, task), what


def _follow(answers: list[Any], logits: Tensor, labels: Tensor, task: Task) -> bool:
    """Return whether answers are those of logits, as far as their kind determines it."""
    match task.form.kind, task.form.logits_over:
        case "classes", "classes":
            return bool(answers == logits.argmax(-1).tolist())
        case "number_map", None:
            return torch.allclose(torch.from_numpy(np.stack(answers)), logits[..., 0].cpu(), rtol=1e-4, atol=1e-6)
        case "class_map", _:
            return np.array_equal(np.stack(answers), logits.argmax(-1).cpu().numpy())
        case "number", None if logits.shape[1:] == (1,):
            return torch.allclose(torch.tensor(answers), logits.squeeze(1).cpu(), rtol=1e-4, atol=1e-6)
        case "labels", "labels":  # whatever the threshold, those in the answer have the largest logits
            largest = [row.topk(len(answer)).indices for answer, row in zip(answers, logits, strict=True)]
            return all(answer == sorted(row.tolist()) for answer, row in zip(answers, largest, strict=True))
        case "tags", "tags":  # words that were cut off have no logits, and come last
            lines = lines_of("tags", labels, len(task.labels))
            best, rows = lines.of(logits).argmax(-1).tolist(), lines.rows.tolist()
            named = [
                [task.labels[i] for i, row in zip(best, rows, strict=True) if row == n] for n in range(len(answers))
            ]
            return all(answer[: len(row)] == row for answer, row in zip(answers, named, strict=True))
    return True
