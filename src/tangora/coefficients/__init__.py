"""How fusion coefficients are found, without knowing what they are for.

Without gradients, by one interface::

    objective(weights: Sequence[float]) -> float      # a loss on validation data, lower is better

- `tangora.coefficients.grid`: every combination that a recipe lists, and the best of them.
- `tangora.coefficients.lorahub`: one weight per task by a gradient-free search.

With gradients, from logits as a function of one coefficient a task vector, or a vector and site: `LinearLogits` of
tangent adapters (`tangora.coefficients.linear`), `ForwardLogits` of others (`tangora.coefficients.forward`).

- `tangora.coefficients.solve`: `convex` and `minimax`, solved on linear logits, with a certificate.
- `tangora.coefficients.descend`: `adamerging` without labels, `learned` with them, on logits of either kind.

What an objective does (fuse, put into the base model, score) belongs to its caller, and so does the honesty of
it: coefficients found on a split may not be reported on that split. Data never gets past an objective, so what
is found can be saved, and a fused adapter rebuilt from it, without data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

__all__ = ["Objective"]

Objective: TypeAlias = Callable[[Sequence[float]], float]
"""Weights, one per task, to a loss."""
