"""The contract of a space, the coordinates in which adapters are fused.

A space is one object, found by its name: a built-in one by file (`tangora.fusion.spaces`), another package's by an
entry point of the group ``tangora.spaces``. Everything that depends on the space of a fusion is part of this contract.
`tangora.testing.check_space` checks the promises below on tiny adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from tangora.support.seams import SPACES
from tangora.updates.task_vector import TaskVector, Update

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["Coordinates", "Space", "space_of"]


def _itself(name: str) -> str:
    return name


@dataclass(frozen=True)
class Coordinates:
    """Adapters as vectors that a method fuses.

    Attributes:
        vectors: one per adapter, over named coordinate tensors; a missing tensor is zero. Tensors may stay in their
            files: a method gets one name of all vectors at a time.
        back: fused coordinates of some or all sites -> these sites' absolute updates, including φ₀.
        site_of: name of a coordinate tensor -> its site, for weights by site.
        separate: whether each vector depends only on its own adapter, so that a subset's vectors are a subset of these.
    """

    vectors: Sequence[TaskVector]
    back: Callable[[TaskVector], Mapping[str, Update]]
    site_of: Callable[[str], str] = _itself
    separate: bool = True

    def subset(self, indices: Sequence[int]) -> Coordinates:
        """Return the coordinates of some of the adapters, if they are ``separate``."""
        assert self.separate
        return replace(self, vectors=[self.vectors[i] for i in indices])


@runtime_checkable
class Space(Protocol):
    """The coordinates in which adapters are fused.

    Attributes:
        summary: one line for ``--help`` and the documentation.
        needs_factors: whether it fuses only low-rank updates, so that it refuses adapters of kind ``full``.
        needs_start: whether φ₀ of every adapter must be known.
        plain: whether a coordinate tensor is a site's change of weight. Then statistics of weights apply, a site can be
            truncated as soon as it is fused, and a checkpoint can be fused a block at a time.
        intrinsic: whether the result depends only on the changes of weights, and not on how they are factored.

    A space promises:

    1. `check` refuses adapters that it cannot fuse, with a `FusionError` that names them; all others are fused.
    2. `Coordinates.back` of one adapter's own coordinates returns that adapter's updates.
    3. If `is_linear`, a linear combination of coordinates gives the same linear combination of changes of weights.
    4. No adapter is changed, and the same adapters give the same coordinates.
    """

    summary: str
    needs_factors: bool
    needs_start: bool
    plain: bool
    intrinsic: bool

    def check(self, adapters: Sequence[Adapter], names: Sequence[str]) -> None:
        """Refuse adapters that cannot be fused in this space; they have the same base, kind and start.

        Args:
            adapters: at least one.
            names: their names, for the message.

        Raises:
            FusionError: an adapter cannot be fused; the message names it and the site.
        """
        ...

    def coordinates(self, adapters: Sequence[Adapter]) -> Coordinates:
        """Return the coordinates of adapters that passed `check`."""
        ...

    def is_linear(self, adapters: Sequence[Adapter]) -> bool:
        """Return whether a linear combination of coordinates is that of the adapters' changes of weights."""
        ...


def space_of(name: str) -> Space:
    """Return the space of that name.

    Raises:
        PluginError: no such space is installed; the message contains the nearest name.

    >>> space_of("delta").plain
    True
    """
    return cast(Space, SPACES.get(name))
