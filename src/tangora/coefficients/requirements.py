"""What a search requires of a fusion method, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tangora.errors import FusionError
from tangora.methods import get, methods
from tangora.support.seams import SEARCHES

if TYPE_CHECKING:
    from tangora.config.fusion import FusionEntry
    from tangora.methods import Method

__all__ = ["is_plain_sum", "refuse_unless_searchable"]


def refuse_unless_searchable(entry: FusionEntry, linear: Sequence[str]) -> None:
    """Refuse a method whose result is not a sum over the tasks, each times its weight, if the search relies on that.

    Args:
        entry: of a recipe.
        linear: the modes of the entry whose logits are linear in the coefficients. Their columns are those of the
            adapters themselves, so that the method must be their plain sum.

    Raises:
        FusionError: the method does not fit the search.
    """
    if entry.search is None or SEARCHES.get(entry.search.name).needs == "loss":
        return
    method, where = get(entry.method), f"fusion.methods.{entry.label}"
    if linear and not is_plain_sum(method):
        fix = "use task_arithmetic, or give modes that are not linearized as a whole"
        what = f"in mode {linear[0]} coefficients are of the adapters"
        raise FusionError(what, got=entry.method, where=where, fix=fix)
    if not method.additive:
        known = ", ".join(name for name, method in methods().items() if method.additive)
        what = f"search {entry.search.name} needs a method that is linear in its weights"
        raise FusionError(what, got=entry.method, where=where, fix=f"such as {known}")


def is_plain_sum(method: Method) -> bool:
    """Return whether a method fuses task vectors into their sum, each times its weight.

    >>> is_plain_sum(get("task_arithmetic")), is_plain_sum(get("average")), is_plain_sum(get("ties_sum"))
    (True, False, False)
    """
    if not (method.linear and method.additive):
        return False
    weights = [0.5 + t for t in range(method.tasks or 2)]  # no two alike, and not of sum 1: a mean would differ
    return method.coefficients(weights, {}) == weights
