"""What `sweep.py` sweeps: a random encoder, tasks of random ids, random experts; and the two ways to score a fusion."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from step_models import BERT_TINY, MINILM
from torch import Tensor, nn

from tangora.adapters import initial
from tangora.adapters.adapter import Adapter, Metadata
from tangora.config.recipe import BaseConfig, SubsetConfig
from tangora.runs.subsets import choose_subsets
from tangora.tangent import Columns, TangentTaskModel, direction_of
from tangora.tasks import Base, Task
from tangora.tasks.values import Split, evaluating
from tangora.tasks.zero_shot import ZeroShotTask
from tangora.updates.task_vector import LowRank, TaskVector

__all__ = [
    "WORKS",
    "Work",
    "accuracies",
    "candidates",
    "forward_logits",
    "make_base",
    "make_experts",
    "make_task",
    "random_updates",
]

TARGETS = ("query", "key", "value", "dense")
CHUNK = 2**24
"""Bytes of logits at once, which a processor's cache holds."""


@dataclass(frozen=True)
class Work:
    """Sizes of a sweep.

    Args:
        sizes: arguments of the encoder's configuration.
        classes: of each task.
        rows: of each task.
        lengths: fewest and most tokens of a row; all between are equally likely.
        rank: of the experts.
        grid: values of λ from 0 to 1.
    """

    sizes: dict[str, int]
    classes: tuple[int, ...]
    rows: int
    lengths: tuple[int, int]
    rank: int
    grid: int


WORKS = {
    "text7": Work(MINILM, (2, 6, 4, 4, 7, 77, 2), 300, (8, 62), 32, 21),
    "tiny": Work(BERT_TINY, (2, 3, 5), 9, (2, 7), 2, 4),
}


def make_base(work: Work, seed: int = 0) -> Base:
    """An encoder with random weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    backbone = BertModel(BertConfig(**work.sizes), add_pooling_layer=False).requires_grad_(False).eval()
    config = BaseConfig(family="text-zero-shot", model="random")
    return Base(config, backbone, None, fingerprint=f"random {seed}")


def make_task(work: Work, index: int, seed: int = 0) -> Task:
    """Rows of random ids and labels, and a head of random unit vectors."""
    draw, classes, (low, high) = _generator("task", index, seed), work.classes[index], work.lengths
    lengths = torch.randint(low, high + 1, (work.rows,), generator=draw).tolist()
    ids = [torch.randint(1, work.sizes["vocab_size"], (length,), generator=draw) for length in lengths]
    targets = torch.randint(classes, (work.rows,), generator=draw).tolist()
    head = F.normalize(torch.randn(classes, work.sizes["hidden_size"], generator=draw), dim=-1)
    names, splits = [str(c) for c in range(classes)], {"test": Split({"input_ids": ids}, targets)}
    name, fingerprint = f"task{index}", f"random {index} {seed}"
    return ZeroShotTask(name, "text-zero-shot", "accuracy", names, splits, fingerprint, head=head, scale=20.0)


def make_experts(work: Work, base: Base, seed: int = 0) -> dict[str, Adapter]:
    """One for each task; all share A, as experts that started at B₀ = 0 do."""
    metadata = Metadata(linearize="model")
    return {
        f"task{index}": Adapter(random_updates(base.backbone, TARGETS, work.rank, index, seed), metadata)
        for index in range(len(work.classes))
    }


def random_updates(
    backbone: nn.Module, targets: Collection[str], rank: int, index: int, seed: int = 0
) -> dict[str, LowRank]:
    """Of every linear layer with one of these names; A depends on the site alone."""
    updates = {}
    for site, module in backbone.named_modules():
        if site.rpartition(".")[2] not in targets:
            continue
        a = torch.randn(rank, module.in_features, generator=_generator("a", site, seed))
        b = torch.randn(module.out_features, rank, generator=_generator("b", site, index, seed))
        updates[site] = LowRank(0.02 * b / rank**0.5, a / module.in_features**0.5, 2.0)
    return updates


def candidates(work: Work) -> Tensor:
    """Coefficients of every subset of two tasks and more at every λ, ``[subsets · grid, tasks]``."""
    names = [f"task{i}" for i in range(len(work.classes))]
    chosen = choose_subsets(names, SubsetConfig(), seed=0)
    members = torch.tensor([[float(name in subset) for name in names] for subset in chosen])
    return (members[:, None] * torch.linspace(0, 1, work.grid)[:, None]).flatten(0, 1)


def accuracies(columns: Columns, coefficients: Tensor) -> Tensor:
    """The accuracy of every candidate on the columns' rows, without a forward pass."""
    at_once = max(1, CHUNK // (4 * columns.origin.numel()))
    found = [(columns.logits(c).argmax(-1) == columns.labels).float().mean(-1) for c in coefficients.split(at_once)]
    return torch.cat(found)


def forward_logits(
    base: Base, task: Task, experts: dict[str, Adapter], coefficients: Sequence[float], batch_size: int
) -> Tensor:
    """Logits of one candidate by a forward pass of its tangent model, rows in order."""
    fused = TaskVector.combination([e.task_vector for e in experts.values()], coefficients)
    model = TangentTaskModel(base.backbone, task, base, direction_of(Adapter(dict(fused)), base.backbone))
    device = next(base.backbone.parameters()).device
    found = torch.empty(len(task.splits["test"]), model.readout.width)
    with evaluating(model), torch.no_grad():
        for rows, batch in task.splits["test"].batches(batch_size, model.collator):
            placed = {name: value.to(device) for name, value in batch.items() if name != "labels"}
            found[rows] = model.logits(placed).cpu()
    return found


def _generator(*names: object) -> torch.Generator:
    return torch.Generator().manual_seed(initial.seed_of(*names))
