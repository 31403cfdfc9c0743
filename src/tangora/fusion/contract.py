"""What a space is: the coordinates in which adapters are fused, and the way back to updates.

A space is one object, found by its name: ours by file (`tangora.fusion.spaces`), another package's by an entry point of
the group ``tangora.spaces``. Everything that depends on the space of a fusion asks it. `tangora.testing.check_space`
checks the promises below on tiny adapters.
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
        vectors: one per adapter, over named coordinate tensors; one that a vector does not have is zero there. A tensor
            may be as lazy as the adapter's own: a method sees one name of all vectors at a time.
        back: fused coordinates, of some or all sites -> these sites' absolute updates, φ₀ included.
        site_of: coordinate tensor -> its site, by which weights are given.
        separate: whether each vector depends on its own adapter alone, so that those of a subset are some of these.
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
        needs_factors: whether it fuses low-rank updates only, so that adapters of kind ``full`` cannot enter.
        needs_start: whether φ₀ of every adapter must be known.
        plain: whether a coordinate tensor is the change of a site's weight, as it is. Then statistics of weights apply,
            a site can be cut to a rank as soon as it is fused, and a checkpoint can be fused a block at a time.
        intrinsic: whether the result depends on the changes of weights alone, and not on how they are factored.

    A space promises:

    1. `check` refuses adapters that it cannot fuse, with a `FusionError` that names them; what it lets pass, it fuses.
    2. Coordinates go back: those of one adapter, unchanged, are that adapter's updates.
    3. Where `is_linear`, the sum of coordinates, each times a coefficient, is the sum of the changes of weights.
    4. Nothing is changed, and the same adapters give the same coordinates.
    """

    summary: str
    needs_factors: bool
    needs_start: bool
    plain: bool
    intrinsic: bool

    def check(self, adapters: Sequence[Adapter], names: Sequence[str]) -> None:
        """Refuse adapters that cannot be fused here. They are of one base, kind, and start already.

        Args:
            adapters: at least one.
            names: theirs, for the message.

        Raises:
            FusionError: says which adapter, and at which site.
        """
        ...

    def coordinates(self, adapters: Sequence[Adapter]) -> Coordinates:
        """Return the adapters' coordinates; they were checked."""
        ...

    def is_linear(self, adapters: Sequence[Adapter]) -> bool:
        """Whether a sum of these adapters' coordinates is the same sum of their changes of weights."""
        ...


def space_of(name: str) -> Space:
    """Return the space of that name.

    Raises:
        PluginError: it is no space that is installed; the nearest name is in the message.

    >>> space_of("delta").plain
    True
    """
    return cast(Space, SPACES.get(name))
