"""`collect_statistics`: statistics of an expert's data, for methods such as RegMean and Fisher merging.

Rows of one length share a batch, so padding is never counted. A linear layer's gradient for one row is the product of
its outputs' gradients and its inputs, so a batch costs one backward pass per class. If other layers than linear ones
were trained, rows are processed one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.adapters.application import applied, find_slots
from tangora.adapters.initial import seed_of
from tangora.adapters.metadata import BaseInfo
from tangora.errors import ArgumentError, DataError, FusionError, ModelError
from tangora.evaluation.likelihoods import is_exact, likelihoods_of
from tangora.fusion.statistics import About, Statistics
from tangora.methods import Statistic
from tangora.progress import Progress, shown
from tangora.storage.held import HALVES
from tangora.support.validation import did_you_mean
from tangora.tasks import TaskModel, make_readout
from tangora.tasks.fitting import of_backbone, own_names
from tangora.tasks.splits import sample
from tangora.tasks.values import Batch, Split, Task, evaluating

if TYPE_CHECKING:
    from tangora.tasks import Base

__all__ = ["collect_statistics"]


@dataclass(frozen=True)
class _Layer:
    """One site in the model: its parameter, whether it is stored transposed, and its module if it is a linear layer."""

    parameter: nn.Parameter
    transposed: bool
    linear: nn.Module | None


def collect_statistics(
    base: Base,
    task: Task,
    adapter: Adapter,
    *,
    kinds: Sequence[Statistic] = ("gram", "fisher"),
    split: str = "train",
    rows: int = 1000,
    seed: int = 0,
    batch_size: int = 16,
    also: Sequence[Adapter] = (),
    progress: Progress | bool | None = None,
) -> Statistics:
    """Collect statistics of an expert's data for fusion: second moments of inputs, and Fisher information.

    ``gram``: ``G = E[x xᵀ]`` over the inputs x of a linear layer of the expert (arXiv:2212.09849). ``fisher``:
    ``F = E_x E_{y∼p(y|x)} (∇ log p(y|x))²`` for the entries of the layer's full weight, at the expert and by its own
    predictions, not the data's labels (arXiv:2111.09832). Up to 16 classes, or 16 labels of which a row can have any,
    the expectation over y is exact. With more, and for tags and text, one outcome is drawn for each row, word or token;
    each token of a text is drawn given the reference's preceding tokens. A number is normal with variance 1.

    Args:
        base: the adapter's base model; its weights are restored afterwards.
        task: provides the rows and the head.
        adapter: the expert.
        kinds: which statistics.
        split: source of the rows; ``train`` leaves the others unseen.
        rows: the largest number of rows, a sample by ``seed``.
        seed: of the sample and of the drawn labels.
        batch_size: rows per forward pass; changes results by rounding at most.
        also: other adapters; statistics are collected at their sites too, for fusions with them.
        progress: shows every batch; by default in a terminal or a notebook. False is silent.

    Raises:
        ArgumentError: an unknown kind, or ``rows`` or ``batch_size`` is smaller than 1.
        ModelError: the adapter is for another base, or a layer does not get one row of inputs per row of data.
        DataError: no such split.

    >>> import tangora
    >>> base = tangora.load_base("encoder", family="text-zero-shot")
    >>> files = {"train": "colors/train.parquet", "test": "colors/test.parquet"}
    >>> task = tangora.load_task("one", base, files, labels=["red", "green", "blue"])
    >>> expert = tangora.finetune(base, task, tangora.FinetuneConfig(training={"steps": 2}))
    >>> tangora.collect_statistics(base, task, expert, kinds=["gram"], rows=8)
    Statistics(gram, 8 train rows of 'one', 4 tensors)
    """
    _check(base, task, adapter, kinds, split, {"rows": rows, "batch_size": batch_size})
    fitted = [of_backbone(one, base) for one in (adapter, *also)]
    names = {name: site for one in (adapter, *also) for name, site in own_names(one, base).items()}
    picks = sample(len(task.splits[split]), rows, seed)
    tensors: dict[str, Tensor] = {}
    with shown(progress) as listener, applied(base.backbone, fitted[0]):
        layers = _layers(base.backbone, fitted)
        model = TaskModel(base.backbone, task, base, make_readout(task, base, adapter))
        jobs: dict[Statistic, Callable[[Sequence[Batch]], dict[str, Tensor]]] = {
            "gram": lambda batches: _gram(model, batches, layers, listener),
            "fisher": lambda batches: _fisher(
                model, task, batches, layers, seed_of("fisher", seed, task.name), listener
            ),
        }
        with evaluating(model):
            for kind in kinds:
                single = kind == "fisher" and any(layer.linear is None for layer in layers.values())
                batches = list(_batches(task.splits[split], picks, 1 if single else batch_size, model))
                listener.begin(f"{kind} · {task.name}", len(batches))
                tensors |= {f"{names.get(site, site)}.{kind}": t for site, t in jobs[kind](batches).items()}
                listener.end()
    exact = is_exact(task, model.readout.width)
    about = About(
        kinds=list(kinds),
        adapter=adapter.fingerprint,
        base=BaseInfo(model=base.config.model, revision=base.config.revision, fingerprint=base.fingerprint),
        task=task.name,
        task_fingerprint=task.fingerprint,
        split=split,
        rows=len(picks),
        seed=seed,
        labels=None if "fisher" not in kinds else "every" if exact else "drawn",
        averaged=sorted(names.get(site, site) for site, layer in layers.items() if layer.linear is None),
    )
    return Statistics(about, tensors)


def _check(
    base: Base, task: Task, adapter: Adapter, kinds: Sequence[str], split: str, counts: Mapping[str, int]
) -> None:
    valid = list(get_args(Statistic))
    for kind in kinds or [""]:
        if kind not in valid:
            raise ArgumentError("no such statistics", got=kind, where="statistics.kinds", fix=did_you_mean(kind, valid))
    if split not in task.splits:
        fix = did_you_mean(split, list(task.splits))
        raise DataError("the split is missing", got=split, where=f"task {task.name}", fix=fix)
    if "fisher" in kinds and task.form.logits_over is None and task.form.kind != "number":
        fix = "choose a method without Fisher information"
        raise FusionError("logits of this family are not a distribution", got=task.family, where="statistics", fix=fix)
    for name, count in counts.items():
        if count < 1:
            raise ArgumentError(f"{name} must be at least 1", got=count, where=f"statistics.{name}", fix="give more")
    expected = adapter.metadata.base.fingerprint
    if expected is not None and expected != base.fingerprint:
        what = f"the adapter is for a base with fingerprint {expected[:12]}, this one has {base.fingerprint[:12]}"
        raise ModelError(what, where=base.config.model, fix="give the recipe that the adapter was trained by")


def _layers(model: nn.Module, adapters: Sequence[Adapter]) -> dict[str, _Layer]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    layers = {}
    for adapter in adapters:
        for site, slot in find_slots(model, adapter).items():
            name = slot.name
            if slot.expert is not None or site in adapter.kernels:
                fix = "fuse by a method without statistics"
                raise ModelError("no statistics are collected of convolutions and experts", where=site, fix=fix)
            module = model.get_submodule(name.rpartition(".")[0])
            linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
            if not parameters[name].is_floating_point():
                fix = "collect them on the base without base.quantization, or choose a method without statistics"
                raise ModelError("no statistics are collected on quantized weights", where=site, fix=fix)
            is_matrix = linear and parameters[name].ndim == 2
            if not is_matrix and parameters[name].dtype in HALVES:
                fix = "set base.weights_dtype: float32, or choose a method without Fisher information"
                raise ModelError("gradients of held weights are rounded", where=site, fix=fix)
            layers[site] = _Layer(parameters[name], slot.transposed, module if is_matrix else None)
    return layers


def _batches(split: Split, picks: Sequence[int], size: int, model: TaskModel) -> Iterator[Batch]:
    """Yield the rows in batches of one length each."""
    rows, device = split.dataset(), next(model.parameters()).device
    groups: dict[tuple[int, ...], list[Mapping[str, Any]]] = {}
    for pick in picks:
        row = rows[pick]
        lengths = tuple(len(value) for value in row.values() if isinstance(value, Tensor) and value.ndim == 1)
        groups.setdefault(lengths, []).append(row)
    for group in groups.values():
        for start in range(0, len(group), size):
            batch = model.collator(group[start : start + size])
            yield {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def _gram(
    model: TaskModel, batches: Sequence[Batch], layers: Mapping[str, _Layer], progress: Progress
) -> dict[str, Tensor]:
    totals = {
        s: x.parameter.new_zeros(_width(x), _width(x), dtype=torch.float64) for s, x in layers.items() if x.linear
    }
    counts = dict.fromkeys(totals, 0)

    def keep(site: str, inputs: Tensor, output: Tensor) -> None:
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        totals[site] += flat.T @ flat
        counts[site] += len(flat)

    with _tapped(layers, keep):
        for batch in batches:
            model(**batch)
            progress.advance()
    return {site: (total / max(1, counts[site])).float().cpu() for site, total in totals.items()}


def _fisher(
    model: TaskModel,
    task: Task,
    batches: Sequence[Batch],
    layers: Mapping[str, _Layer],
    seed: int,
    progress: Progress,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    by_layer = all(layer.linear is not None for layer in layers.values())
    totals: dict[str, Tensor] = {}
    rows = 0
    with _requiring_gradients([layer.parameter for layer in layers.values()]):
        for batch in batches:
            calls: dict[str, list[tuple[Tensor, Tensor]]] = {site: [] for site in layers}
            with torch.enable_grad(), _tapped(layers, lambda site, x, y: calls[site].append((x.detach(), y))):  # noqa: B023
                logits = model(**batch)["logits"]
                likelihoods = list(likelihoods_of(task, logits, batch["labels"], generator))
            for likelihood in likelihoods:
                squares = _by_layer(likelihood, calls, len(logits)) if by_layer else _by_row(likelihood, layers)
                for site, square in squares.items():
                    totals[site] = totals[site] + square if site in totals else square
            rows += len(logits)
            progress.advance()
    zeros = {s: torch.zeros(_oriented(x.parameter.data, x).shape) for s, x in layers.items() if s not in totals}
    return {site: (total / rows).float().cpu() for site, total in totals.items()} | zeros


def _by_layer(likelihood: Tensor, calls: Mapping[str, Sequence[tuple[Tensor, Tensor]]], rows: int) -> dict[str, Tensor]:
    """Return the squared gradients summed over rows, from the inputs and outputs of each layer."""
    listed = [(site, x, y) for site, pairs in calls.items() for x, y in pairs]
    gradients = torch.autograd.grad(likelihood, [y for *_, y in listed], retain_graph=True, allow_unused=True)
    each: dict[str, Tensor] = {}
    for (site, x, _), gradient in zip(listed, gradients, strict=True):
        if gradient is None:
            continue
        if len(x) != rows:
            fix = "use batch_size 1"
            raise ModelError(f"the layer gets {len(x)} rows of inputs for {rows} rows of data", where=site, fix=fix)
        product = gradient.reshape(rows, -1, gradient.shape[-1]).mT @ x.reshape(rows, -1, x.shape[-1])
        each[site] = each[site] + product if site in each else product
    return {site: product.square().sum(0).double() for site, product in each.items()}


def _by_row(likelihood: Tensor, layers: Mapping[str, _Layer]) -> dict[str, Tensor]:
    """Return the squared gradients of a single row, for any parameters."""
    parameters = [layer.parameter for layer in layers.values()]
    gradients = torch.autograd.grad(likelihood, parameters, retain_graph=True, allow_unused=True)
    squares = {}
    for (site, layer), gradient in zip(layers.items(), gradients, strict=True):
        if gradient is not None:
            squares[site] = _oriented(gradient, layer).square().double()
    return squares


@contextlib.contextmanager
def _tapped(layers: Mapping[str, _Layer], keep: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call ``keep(site, inputs, outputs)`` after every call of a linear layer."""

    def tap(site: str) -> Callable[..., None]:
        return lambda module, inputs, output: keep(site, inputs[0], output)

    handles = [x.linear.register_forward_hook(tap(site)) for site, x in layers.items() if x.linear is not None]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _requiring_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)


def _oriented(tensor: Tensor, layer: _Layer) -> Tensor:
    return tensor.T if layer.transposed else tensor


def _width(layer: _Layer) -> int:
    return _oriented(layer.parameter.data, layer).shape[-1]
