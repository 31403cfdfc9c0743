"""What a fusion does if neither a method nor weights are given.

A weighted sum needs weights, and the usual 0.3 loses more than it has to (docs/quality.md has what each method keeps
with one setting). So adapters without weights are fused by what keeps most of them without data, and given weights are
those of a sum. The default of full checkpoints is that of the literature, a sum at 0.3.
"""

from __future__ import annotations

from tangora.fusion.weights import Weights

__all__ = ["RECOMMENDED", "SUM", "choice"]

SUM = "task_arithmetic"
RECOMMENDED = "mean_norm", 1.3
"""The method, and its λ for two adapters or more."""


def choice(
    method: str | None, weights: Weights | None, adapters: int, space: str = "delta"
) -> tuple[str, Weights | None]:
    """Return the method, and the weights; None stands for the method's default.

    Args:
        method: as it is given; None for none.
        weights: as they are given; None for none.
        adapters: the number of adapters; 0 for full checkpoints.
        space: in which they are fused. Norms are those of the changes of weights.

    >>> choice(None, None, 3), choice(None, 0.5, 3), choice("ties", None, 3), choice(None, None, 1)
    (('mean_norm', 1.3), ('task_arithmetic', 0.5), ('ties', None), ('task_arithmetic', 1.0))
    """
    if method is not None:
        return method, weights
    if weights is not None or space != "delta" or adapters == 0:
        return SUM, weights
    return RECOMMENDED if adapters > 1 else (SUM, 1.0)
