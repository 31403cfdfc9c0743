"""The requirements of a search on a fusion method, checked before anything is trained."""

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
    """Refuse a method that is not a weighted sum over the tasks, if the search relies on that.

    Args:
        entry: of a recipe.
        linear: the entry's modes with logits that are linear in the coefficients. Their columns are those of the
            adapters themselves, so the method must be their plain weighted sum.

    Raises:
        FusionError: the method does not fit the search.
    """
    if entry.search is None or SEARCHES.get(entry.search.name).needs == "loss":
        return
    method, where = get(entry.method), f"fusion.methods.{entry.label}"
    if linear and not is_plain_sum(method):
        fix = "use task_arithmetic, or other modes than tangent ones"
        what = f"in mode {linear[0]}, coefficients multiply the adapters themselves"
        raise FusionError(what, got=entry.method, where=where, fix=fix)
    if not method.additive:
        additive = ", ".join(name for name, method in methods().items() if method.additive)
        what = f"search {entry.search.name} needs a method that is linear in its weights"
        raise FusionError(what, got=entry.method, where=where, fix=f"such as {additive}")


def is_plain_sum(method: Method) -> bool:
    """Return whether a method fuses task vectors into their weighted sum.

    >>> is_plain_sum(get("task_arithmetic")), is_plain_sum(get("average")), is_plain_sum(get("ties_sum"))
    (True, False, False)
    """
    if not (method.linear and method.additive):
        return False
    weights = [0.5 + t for t in range(method.tasks or 2)]  # all different, and their sum is not 1: a mean would differ
    return method.coefficients(weights, {}) == weights
