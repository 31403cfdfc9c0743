"""The objective of ProDistill, block by block: outputs of the merged block nearest to those of every expert's.

For the blocks l = 1 .. L in order (arXiv:2502.12706),

    min Σ_t E ‖ block_l(merged; z_m) − block_l(expert t; z_t) ‖²

over what is trained in block l, with z_t from the expert's own blocks and z_m from the merged model's, which are done.
The mean is over positions that count and over entries of a vector, so that tasks with longer rows weigh no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangora.adapters.initial import seed_of
from tangora.errors import ModelError
from tangora.support.files import atomic_file, read_safetensors, write_safetensors
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from tangora.config.polish import PolishSettings
    from tangora.polishing.block_students import BlockStudent
    from tangora.polishing.blocks import Passing
    from tangora.polishing.dual import Dual

__all__ = ["Curve", "distance", "trained_blocks"]

MakeStudent = Callable[[int, Sequence[Mapping[str, Tensor]]], "BlockStudent"]


@dataclass(frozen=True)
class Curve:
    """The training of a block.

    Attributes:
        block: its name.
        losses: of every step.
        before: mean distance of all batches before the first step.
        after: behind the last one.
        trainable: number of trained entries.
    """

    block: str
    losses: list[float]
    before: float
    after: float
    trainable: int


def distance(passing: Passing, output: Tensor, target: Tensor) -> Tensor:
    """Return the mean square of the differences over the positions that count, and over entries."""
    return (passing.counted(output).float() - passing.counted(target).float()).square().mean()


def trained_blocks(
    dual: Dual,
    student: MakeStudent,
    settings: PolishSettings,
    seed: int,
    folder: Path | None,
    on_step: Callable[[int, int, float], None],
    settled: Callable[[int, BlockStudent], Mapping[str, Tensor]],
) -> Iterator[Curve]:
    """Train the blocks in order, and yield the curve of each before the next one begins.

    Args:
        dual: at the first block; its batches are those of the training. At the end it is behind the last block.
        student: the index of a block, and for each task the parameters that its expert changes there -> what is
            trained. The parameters are empty unless coefficients of entries are trained.
        settings: steps of every block, and the optimizer.
        seed: of the order of batches.
        folder: of blocks that are done, to resume from; None for none.
        on_step: is called after each step with (step, total steps, loss).
        settled: the index of a block, and what was trained -> its parameters in the merged model from now on.

    Raises:
        ModelError: a loss is not finite.
    """
    total = settings.steps * len(dual.blocks.names)
    with evaluating(dual.base.backbone):
        for index, name in enumerate(dual.blocks.names):
            experts = []
            for stream in dual.streams:
                weights = dual.expert_weights(index, stream)
                dual.advance_expert(index, stream, weights)  # z_t is now the target
                experts.append(weights if settings.student == "entries" else {})
            made = student(index, experts)
            shifted = _shifted(on_step, index * settings.steps, total)
            curve = _trained(dual, index, made, settings, seed, folder, shifted)
            with torch.no_grad():
                dual.advance_merged(index, settled(index, made))
            yield Curve(name, *curve, sum(p.numel() for p in made.parameters().values()))


def _shifted(on_step: Callable[[int, int, float], None], done: int, total: int) -> Callable[[int, float], None]:
    return lambda step, loss: on_step(done + step, total, loss)


def _trained(
    dual: Dual,
    index: int,
    student: BlockStudent,
    settings: PolishSettings,
    seed: int,
    folder: Path | None,
    on_step: Callable[[int, float], None],
) -> tuple[list[float], float, float]:
    """Train a block, or read it if it is done; return the losses, and the distance before and after."""
    path = None if folder is None else folder / f"block-{index}.safetensors"
    if path is not None and path.is_file():
        return _read(path, student)
    before = _distance(dual, index, student)
    losses = _steps(dual, index, student, settings, seed, on_step) if student.parameters() else []
    after = _distance(dual, index, student)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: p.detach().cpu() for name, p in student.parameters().items()}
        curve = torch.tensor([before, after, *losses], dtype=torch.float64)
        with atomic_file(path) as scratch:
            write_safetensors(scratch, {**tensors, "curve": curve})
    return losses, before, after


@torch.no_grad()
def _read(path: Path, student: BlockStudent) -> tuple[list[float], float, float]:
    tensors = read_safetensors(path)
    for name, parameter in student.parameters().items():
        parameter.copy_(tensors[name])
    before, after, *losses = tensors["curve"].tolist()
    return losses, before, after


@torch.no_grad()
def _distance(dual: Dual, index: int, student: BlockStudent) -> float:
    """Return the mean distance over the batches of each task, and over tasks."""
    weights, means = student.weights(), []
    for stream in dual.streams:
        each = [distance(m, dual.blocks.run(index, m, weights), e.hidden) for e, m in stream.batches()]
        means.append(sum(map(float, each)) / len(each))
    return sum(means) / len(means)


def _steps(
    dual: Dual,
    index: int,
    student: BlockStudent,
    settings: PolishSettings,
    seed: int,
    on_step: Callable[[int, float], None],
) -> list[float]:
    name, losses = dual.blocks.names[index], []
    parameters = list(student.parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(settings.steps, settings.warmup))
    drawn = [_drawn(len(stream.merged), seed_of("polish", seed, f"{name}:{stream.task}")) for stream in dual.streams]
    for step in range(1, settings.steps + 1):
        optimizer.zero_grad()
        weights = student.weights()
        total: Any = 0.0
        for stream, numbers in zip(dual.streams, drawn, strict=True):
            number = next(numbers)
            merged, target = stream.merged[number], stream.expert[number].hidden
            total = total + distance(merged, dual.blocks.run(index, merged, weights), target)
        loss = float(total.detach()) / len(dual.streams)
        if not math.isfinite(loss):
            fix = f"lower learning_rate (now {settings.learning_rate:g})"
            raise ModelError("the loss is not finite", got=loss, where=f"{name}, step {step}", fix=fix)
        total.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss)
        on_step(step, loss)
    return losses


def _drawn(count: int, seed: int) -> Iterator[int]:
    """Yield the numbers of batches: every one once, in an order that is drawn, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _rate(steps: int, warmup: float) -> Callable[[int], float]:
    """Return the share of the learning rate at a step: a rising line, and then a cosine to zero."""
    rising = math.ceil(warmup * steps)

    def share(step: int) -> float:
        if step < rising:
            return step / rising if step else 1 / (2 * rising)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return share
