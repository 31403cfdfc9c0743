"""The space ``delta``: the changes of the weights themselves, ``ΔW − s·B₀A₀`` per site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tangora.adapters.adapter import Adapter
from tangora.fusion.contract import Coordinates
from tangora.updates.task_vector import TaskVector, Update

__all__ = ["SPACE", "with_start"]


class _DeltaSpace:
    summary = "changes of the weights, however they are factored"
    needs_factors = False
    needs_start = False
    plain = True
    intrinsic = True

    def check(self, adapters: Sequence[Adapter], names: Sequence[str]) -> None:
        """Accept all adapters."""

    def coordinates(self, adapters: Sequence[Adapter]) -> Coordinates:
        """Return the task vectors; their tensors stay in their files until a method needs them."""
        return Coordinates([a.task_vector for a in adapters], lambda fused: with_start(fused, adapters[0]))

    def is_linear(self, adapters: Sequence[Adapter]) -> bool:
        """Return True: the coordinates are the changes of weights."""
        return True


def with_start(fused: TaskVector, like: Adapter) -> Mapping[str, Update]:
    """Return absolute updates: the fused change plus ``s·B₀A₀``, which the adapters have in common."""
    if not like.start:
        return dict(fused)
    return dict(fused + TaskVector({site: u for site, u in like.start.items() if site in fused}))


SPACE = _DeltaSpace()
