"""The space ``unit``: every adapter's change of the weights, scaled to the mean of their norms.

``νₜ' = νₜ · mean(‖ν‖) / ‖νₜ‖``. Choose it if adapters were trained for very different lengths, and the one that moved
furthest must not drown the others: ``tangora fuse a b --space unit --out fused``, or ``spaces: [unit]`` in a recipe.
"""

from __future__ import annotations

from collections.abc import Sequence

from tangora.adapters.adapter import Adapter
from tangora.errors import FusionError
from tangora.fusion.contract import Coordinates
from tangora.fusion.spaces.delta import with_start


class UnitSpace:
    """See the module."""

    summary = "changes of the weights, of one norm"
    needs_factors = False
    needs_start = False
    plain = False  # they are scaled
    intrinsic = True

    def check(self, adapters: Sequence[Adapter], names: Sequence[str]) -> None:
        """Refuse an adapter without any change, which has no direction."""
        for name, adapter in zip(names, adapters, strict=True):
            if adapter.task_vector.norm() == 0:
                what = f"space 'unit' needs changes of the weights, {name} has none"
                raise FusionError(what, where="fuse.space", fix="leave it out, or use space='delta'")

    def coordinates(self, adapters: Sequence[Adapter]) -> Coordinates:
        """Return the scaled changes; the scale depends on the company, so they are not ``separate``."""
        vectors = [adapter.task_vector for adapter in adapters]
        mean = sum(vector.norm() for vector in vectors) / len(vectors)
        scaled = [vector * (mean / vector.norm()) for vector in vectors]
        return Coordinates(scaled, lambda fused: with_start(fused, adapters[0]), separate=False)

    def is_linear(self, adapters: Sequence[Adapter]) -> bool:
        """Return false: a coefficient here is another one of the change itself."""
        return False


SPACE = UnitSpace()
