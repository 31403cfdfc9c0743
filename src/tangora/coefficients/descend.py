"""Coefficients by gradient descent: entropy without labels (`adamerging`), cross-entropy with them (`learned`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from tangora.adapters.initial import seed_of
from tangora.coefficients.found import Found, as_weights
from tangora.coefficients.logits import Answers, Logits, own_coefficients
from tangora.coefficients.newton import Box
from tangora.coefficients.problem import silent
from tangora.coefficients.solve import START, box
from tangora.errors import FusionError

__all__ = ["Descent", "adamerging", "learned"]

_TEMPERATURE = 0.1  # nats: how much worse a task must be to count e times as much
_MEMORY = 0.9  # of the running losses of tasks

Loss = Callable[[Answers], Float[Tensor, " lines"]]
OnStep = Callable[[int, int, str], None]


def adamerging(
    logits: Logits,
    *,
    steps: int | None = None,
    learning_rate: float | None = None,
    rows: int = 16,
    nonnegative: bool = True,
    bound: float = 1.0,
    l2: float = 0.0,
    l1: float = 0.0,
    seed: int = 0,
    on_step: OnStep = silent,
) -> Found:
    """Find the coefficients of least entropy of the fused model's predictions on unlabelled rows: AdaMerging.

    ``min_c sum_t mean_i H(softmax f(x_ti; c))``: the entropy of each row's prediction, then its mean (arXiv:2310.02575,
    eq. 4), by Adam from 0.3 with rate 1e-3, 16 rows per task and step, 500 steps, coefficients kept in [0, 1]. With one
    coefficient per task vector it is the paper's task-wise variant. With one per site it is the layer-wise variant (the
    paper has one per tensor). With trimmed task vectors and elected signs it is the paper's "++".

    Choose it if there are no labels. It has no guarantee: entropy is not convex, it is least if every row falls into
    one class with certainty, and larger coefficients alone lower it. So the few small steps from 0.3 and the bound are
    part of the method. If there are some labels, compare it with a search that uses them.

    Departures: rows come from the validation split; the paper uses test rows. On columns every step uses every row.
    Without the noise of samples, 50 steps of rate 1e-2 get as far as 500 of 1e-3.

    Args:
        logits: on the rows to use.
        steps, learning_rate, rows: of Adam (betas 0.9, 0.999), and the number of rows of each task in a step; by
            default those of the paper, on columns as above.
        nonnegative, bound: coefficients stay in ``[0 or -bound, bound]``.
        l2: pull of a task's coefficients towards their mean over the sites, or of all towards their common mean.
        l1: penalty on magnitudes; it shrinks coefficients, but sets none exactly to zero.
        seed: of the order of rows.
        on_step: called after each step, see `tangora.coefficients.problem.Problem`.

    Raises:
        FusionError: a setting is out of range, or the loss is not finite.

    >>> from tangora.coefficients.linear import LinearLogits
    >>> from tangora.tangent.columns import Columns
    >>> slope = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    >>> rows = {"origin": torch.zeros(3, 2), "labels": torch.tensor([0, 0, 1]), "examples": torch.arange(3)}
    >>> logits = LinearLogits([Columns("t", "validation", ("t",), (), columns=slope, fingerprint="", **rows)])
    >>> found = adamerging(logits)
    >>> 0.7 < found.weights[0] <= 1.0, found.gap is None
    (True, True)
    """
    steps = steps or (50 if logits.whole else 500)
    rate = learning_rate or (1e-2 if logits.whole else 1e-3)
    descent = Descent(logits, _entropy, box(bound, nonnegative, l1), l2, rows, seed)
    return descent.run(steps, rate, "adamerging", on_step)


def learned(
    logits: Logits,
    *,
    steps: int = 60,
    learning_rate: float = 0.05,
    rows: int = 16,
    nonnegative: bool = False,
    bound: float = 3.0,
    l2: float = 0.0,
    l1: float = 0.0,
    worst_task: bool = False,
    seed: int = 0,
    on_step: OnStep = silent,
) -> Found:
    """Find coefficients of low cross-entropy on labelled rows, by Adam: for models that are not linear in them.

    The objective is that of `tangora.coefficients.solve.convex`. For LoRA, L-LoRA and full fine-tuning it is not
    convex, and the distance from the best value is unknown; the norm of the last gradient is reported. With
    ``worst_task``, tasks are weighted by the softmax of their running excess over their own experts' loss, so that the
    objective is that of `minimax` with a temperature of 0.1 nats (compare arXiv:1911.08731).

    Choose it if some labelled rows are available (8 per task suffice) and the adapters are not tangent adapters.

    Args:
        logits: on the rows to use.
        steps, learning_rate, rows, nonnegative, bound, l2, l1, seed, on_step: see `adamerging`.
        worst_task: minimize the loss of the worst task; each task's own vector must be among the vectors.

    Raises:
        FusionError: as `adamerging`.

    >>> from tangora.coefficients.linear import LinearLogits
    >>> from tangora.tangent.columns import Columns
    >>> slope = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    >>> rows = {"origin": torch.zeros(3, 2), "labels": torch.tensor([0, 0, 1]), "examples": torch.arange(3)}
    >>> logits = LinearLogits([Columns("t", "validation", ("t",), (), columns=slope, fingerprint="", **rows)])
    >>> round(learned(logits, steps=300).weights[0], 2)  # convex: log 2
    0.69
    """
    descent = Descent(logits, _cross_entropy, box(bound, nonnegative, l1), l2, rows, seed, worst_task)
    return descent.run(steps, learning_rate, "minimax" if worst_task else "learned", on_step, average=True)


def _entropy(answers: Answers) -> Tensor:
    logs = answers.logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def _cross_entropy(answers: Answers) -> Tensor:
    return cross_entropy(answers.logits, answers.labels, reduction="none")


class Descent:
    """Adam on coefficients that stay in a box; a derived class may define another loss."""

    def __init__(
        self, logits: Logits, loss: Loss | None, limits: Box, l2: float, rows: int, seed: int, worst: bool = False
    ) -> None:
        self._logits, self._loss, self._limits = logits, loss, limits
        self._l2, self._rows = l2, rows
        self._picks = {task: _shuffled(count, rows, seed, task) for task, count in logits.rows.items()}
        self._everything = {task: range(count) for task, count in logits.rows.items()}
        self.x = torch.full(logits.shape, START).clamp(limits.lower, limits.upper).requires_grad_()
        self._own = {task: self._own_loss(task) for task in logits.tasks} if worst else None
        self._running = self._losses(self.x, logits.tasks) if worst else {}

    def run(self, steps: int, learning_rate: float, search: str, on_step: OnStep, average: bool = False) -> Found:
        """Step, and measure the end on all rows; with ``average`` the end is the mean of the last half of the steps."""
        began, total, counted = time.perf_counter(), torch.zeros_like(self.x), 0
        adam = _Adam(self.x, learning_rate)
        for step in range(steps):
            seen = self._differentiate({task: next(picks) for task, picks in self._picks.items()})
            on_step(step + 1, steps, f"loss {sum(seen.values()) / len(seen):.4g}")
            with torch.no_grad():
                adam.step()
                self.x.clamp_(self._limits.lower, self._limits.upper)
                # Steps on a few rows circle around the optimum; their mean is nearer to it than the last one.
                if step >= steps // 2 or not average:
                    total, counted = (total + self.x, counted + 1) if average else (self.x.clone(), 1)
        with torch.no_grad():
            self.x.copy_(total / counted)
        losses = self._differentiate(self._everything)
        if self._own is None:
            loss = sum(losses.values()) / len(losses)
        else:
            loss = max(losses[task] - own for task, own in self._own.items())
        settings: dict[str, Any] = {"search": search, "learning_rate": learning_rate, "l2": self._l2}
        if not self._logits.whole:
            settings["rows_per_step"] = self._rows
        settings |= {"l1": self._limits.l1, "bounds": [self._limits.lower, self._limits.upper]}
        weights, objective = as_weights(self.x.detach(), self._logits.sites), loss + float(self._penalty().detach())
        seconds = time.perf_counter() - began
        return Found(weights, loss, objective, self._norm(), None, steps, seconds, self._logits.rows, settings)

    def _differentiate(self, picks: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """Return the tasks' losses on the picked rows; leave the gradient of their mean and the penalty in x."""
        self.x.grad = None
        self._penalty().backward()
        # Each part has its own graph and gradients add up, so only one part's activations are in memory at a time.
        losses, weights = dict.fromkeys(picks, 0.0), self._weights()
        for part in self._logits(self.x, picks):
            each = {task: a.shares.to(a.logits) @ self._loss_of(task, a) for task, a in part.items()}
            torch.stack([weights[task] * loss for task, loss in each.items()]).sum().backward()
            for task, loss in each.items():
                losses[task] += float(loss.detach())
        assert self.x.grad is not None
        if not bool(self.x.grad.isfinite().all()):
            fix = "check the adapters for NaN, or lower the learning rate"
            raise FusionError("the loss of a fused model is not finite", where="coefficients", fix=fix)
        for task in self._running:
            self._running[task] = _MEMORY * self._running[task] + (1 - _MEMORY) * losses[task]
        return losses

    def _loss_of(self, task: str, answers: Answers) -> Float[Tensor, " lines"]:
        """Return the loss of each line of a task; called once for each part of a pass, in its order."""
        assert self._loss is not None, "a derived class without a loss of answers alone defines its own"
        return self._loss(answers)

    def _weights(self) -> dict[str, float]:
        """Return the weight of each task's loss: all equal, or larger the more it exceeds its own expert's loss.

        The softmax is the gradient of the smooth maximum, at the running excess: the excess on a few rows is too noisy.
        """
        if self._own is None:
            return dict.fromkeys(self._logits.tasks, 1.0 / len(self._logits.tasks))
        excess = torch.tensor([self._running[task] - own for task, own in self._own.items()])
        return dict(zip(self._own, (excess / _TEMPERATURE).softmax(0).tolist(), strict=True))

    def _penalty(self) -> Tensor:
        deviation = self.x - self.x.mean(-1, keepdim=True)
        return 0.5 * self._l2 * deviation.square().sum() + self._limits.l1 * self.x.abs().sum()

    @torch.no_grad()
    def _losses(self, x: Tensor, tasks: Sequence[str]) -> dict[str, float]:
        losses = dict.fromkeys(tasks, 0.0)
        for part in self._logits(x, {task: self._everything[task] for task in tasks}):
            for task in losses.keys() & part.keys():
                losses[task] += float(part[task].shares.to(part[task].logits) @ self._loss_of(task, part[task]))
        return losses

    def _own_loss(self, task: str) -> float:
        return self._losses(own_coefficients(self._logits, task), [task])[task]

    def _norm(self) -> float:
        """Return the norm of the gradient without entries that point out of the box."""
        assert self.x.grad is not None
        x, gradient = self.x.detach(), self.x.grad
        held = ((x <= self._limits.lower) & (gradient > 0)) | ((x >= self._limits.upper) & (gradient < 0))
        return float(torch.where(held, 0.0, gradient).norm())


class _Adam:
    """``x -= rate * m / (sqrt(v) + eps)`` with bias correction (arXiv:1412.6980), on one small tensor.

    Importing torch.optim takes seconds, longer than most searches.
    """

    def __init__(self, x: Tensor, rate: float) -> None:
        self.x, self._rate, self._step = x, rate, 0
        self._mean, self._square = torch.zeros_like(x), torch.zeros_like(x)

    def step(self) -> None:
        """Take one step along ``x.grad``, outside any graph."""
        assert self.x.grad is not None
        self._step += 1
        self._mean.lerp_(self.x.grad, 0.1)
        self._square.lerp_(self.x.grad.square(), 0.001)
        mean, square = self._mean / (1 - 0.9**self._step), self._square / (1 - 0.999**self._step)
        self.x -= self._rate * mean / (square.sqrt() + 1e-8)


def _shuffled(count: int, rows: int, seed: int, task: str) -> Iterator[list[int]]:
    """Yield ``rows`` of ``count`` at a time, all of them if there are no more; each row once before any comes again."""
    generator = torch.Generator().manual_seed(seed_of("order of rows", seed, task))
    order: list[int] = []
    while True:
        if rows >= count:
            yield list(range(count))
            continue
        while len(order) < rows:
            order += torch.randperm(count, generator=generator).tolist()
        yield order[:rows]
        order = order[rows:]
