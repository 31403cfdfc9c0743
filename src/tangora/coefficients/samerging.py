"""Coefficients that follow the experts' answers on unlabelled rows, sharpness-aware (`samerging`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangora.coefficients.descend import Descent, OnStep
from tangora.coefficients.logits import Answers, Logits, own_coefficients
from tangora.coefficients.newton import Box
from tangora.coefficients.problem import silent
from tangora.coefficients.solve import box

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.coefficients.found import Found

__all__ = ["samerging"]


def samerging(
    logits: Logits,
    *,
    steps: int = 100,
    learning_rate: float = 0.02,
    sharpness: float = 0.05,
    rows: int = 16,
    nonnegative: bool = False,
    bound: float = 3.0,
    l2: float = 0.0,
    l1: float = 0.0,
    seed: int = 0,
    on_step: OnStep = silent,
) -> Found:
    r"""Find coefficients with which the fused model answers as the experts do, on unlabelled rows: SAMerging.

    .. math:: \min_c \max_{\|e\| \le \rho} \sum_t \mathbb{E}_x \,
        \mathrm{KL}\big(f(x; \tau_t) \,\|\, f(x; \sum_s (c_s + e_s) \tau_s)\big)

    (arXiv:2512.21288: divergence from the experts on few unlabelled rows, by sharpness-aware minimization,
    arXiv:2010.01412, one coefficient per layer.) The gradient of a step is taken at ``c + ρ g / ‖g‖``, with g the
    gradient at c, so a step costs two. Step size, ρ and number of steps are ours; the optimizer is Adam, as in
    `learned`. Choose it if some unlabelled rows are available, and the result must be a fusion of the experts; if it
    may be any adapter of a rank, `tangora.polish` follows the experts further.

    Args:
        logits: on the rows to use.
        sharpness: ρ; 0 minimizes the divergence at c itself.
        steps, learning_rate, rows, nonnegative, bound, l2, l1, seed, on_step: see `adamerging`.

    Raises:
        FusionError: as `adamerging`; or a task has no vector of its own.

    >>> import torch
    >>> from tangora.coefficients.linear import LinearLogits
    >>> from tangora.tangent.columns import Columns
    >>> slope = torch.tensor([[[2.0, 0.0], [-1.0, 0.0]]])  # the expert itself has the coefficient 1
    >>> rows = {"origin": torch.zeros(2, 2), "labels": torch.tensor([0, 0]), "examples": torch.arange(2)}
    >>> logits = LinearLogits([Columns("t", "validation", ("t",), (), columns=slope, fingerprint="", **rows)])
    >>> round(samerging(logits, steps=200, sharpness=0.0).weights[0], 2)
    1.0
    """
    descent = _Following(logits, sharpness, box(bound, nonnegative, l1), l2, rows, seed)
    return descent.run(steps, learning_rate, "samerging", on_step, average=True)


class _Following(Descent):
    """Descent on the divergence from each task's own expert, at the worst point nearby."""

    def __init__(self, logits: Logits, sharpness: float, limits: Box, l2: float, rows: int, seed: int) -> None:
        super().__init__(logits, None, limits, l2, rows, seed)
        self._sharpness = sharpness
        self._experts: dict[str, Tensor] = {}

    def _differentiate(self, picks: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """Return the divergences at the coefficients; leave the gradient at the worst point nearby in x."""
        losses = self._followed(picks)
        gradient = self.x.grad
        assert gradient is not None
        norm = float(gradient.norm())
        if self._sharpness and norm > 0 and picks is not self._everything:
            here = self.x.detach().clone()
            with torch.no_grad():
                self.x += self._sharpness * gradient / norm
            self._followed(picks)
            with torch.no_grad():
                self.x.copy_(here)
        return losses

    def _followed(self, picks: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """Return the divergence of every task, and leave the gradient of their mean and the penalty in x."""
        self._experts = {task: self._expert(task, chosen) for task, chosen in picks.items()}
        return super()._differentiate(picks)

    def _loss_of(self, task: str, answers: Answers) -> Float[Tensor, " lines"]:
        """Return the divergence of each line from the expert's, whose lines come in the same order."""
        count = len(answers.logits)
        expert, self._experts[task] = self._experts[task][:count], self._experts[task][count:]
        return (expert.exp() * (expert - answers.logits.log_softmax(-1))).sum(-1)

    @torch.no_grad()
    def _expert(self, task: str, rows: Sequence[int]) -> Tensor:
        """Return the logarithms of the expert's probabilities, line by line in the order of a pass over the same rows.

        A pass sorts rows by length, in the order in which they were picked if lengths are equal: so the lines of one
        task come in one order, whether other tasks' rows lie between them or not.
        """
        parts = self._logits(own_coefficients(self._logits, task), {task: rows})
        return torch.cat([part[task].logits.log_softmax(-1) for part in parts if task in part])
