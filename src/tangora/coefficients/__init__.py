"""Searches for fusion coefficients.

Without gradients, through one interface::

    objective(weights: Sequence[float]) -> float      # a loss on validation data, lower is better

- `tangora.coefficients.grid`: all combinations that a recipe lists, and the best of them.
- `tangora.coefficients.lorahub`: one weight per task by a gradient-free search.

With gradients, from logits as a function of one coefficient per task vector, or per vector and site: `LinearLogits` for
tangent adapters (`tangora.coefficients.linear`), `ForwardLogits` for others (`tangora.coefficients.forward`).

- `tangora.coefficients.solve`: `convex` and `minimax`, solved on linear logits, with a certificate.
- `tangora.coefficients.descend`: `adamerging` without labels, `learned` with them, on logits of either kind.
- `tangora.coefficients.samerging`: `samerging`, which follows the experts without labels.

The caller of a search defines the objective: how to fuse, apply to the base model, and score. The caller also keeps
splits apart: scores on the rows of the search are not test scores. A search sees no data, only values of the objective,
so its result can be saved, and a fused adapter rebuilt from it, without data.

>>> from tangora.coefficients.grid import candidates, select
>>> listed = candidates([0.2, 0.5, 0.8])
>>> select(listed, [-((point.weight - 0.6) ** 2) for point in listed]).weight  # scores: the best is at 0.6
0.5
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

__all__ = ["Objective"]

Objective: TypeAlias = Callable[[Sequence[float]], float]
"""A function from weights, one per task, to a loss."""
