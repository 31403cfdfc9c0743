"""What a server needs of an adapter: a `Target`, which every module of `tangora.serving.targets` has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.support.shown import one_line

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.serving.base import ServedBase

__all__ = ["MERGE", "Exported", "Order", "Target", "Written"]

MERGE = "merge it into its base, which every server loads: tangora merge ADAPTER --base BASE --out FOLDER"
"""The way out if a server cannot read an adapter."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is written, and where.

    Attributes:
        adapter: plain low-rank updates of one rank and one scaling, with the names of the served class.
        exact: the same adapter before factors were filled up, scalings multiplied into B and numbers rounded.
        base: the base model; None if the target needs none.
        out: a file or a folder.
        name: of the adapter in requests to the server.
        model: the base as the server has it; None if nothing is known of it.
        overwrite: whether an earlier output is replaced.
        rounding: site -> relative error (Frobenius) of its dtype.
    """

    adapter: Adapter
    exact: Adapter
    base: ServedBase | None
    out: Path
    name: str
    model: str | None
    overwrite: bool
    rounding: Mapping[str, float]


@dataclass(frozen=True)
class Written:
    """What a target wrote.

    Attributes:
        start: commands that start the server with it.
        difference: the largest relative difference (Frobenius) between a site's update as it is read from the files
            and as it should be.
        checked: what read the files.
    """

    start: Sequence[str]
    difference: float
    checked: str


@dataclass(frozen=True)
class Target:
    """A server.

    Attributes:
        name: of the target.
        is_file: whether the output is one file; else it is a folder.
        needs_base: whether the base's configuration is needed.
        prepare: returns an adapter as the server needs it, and notes. It raises an `AdapterError` with the reason and
            the way out if the server would not compute what the adapter is.
        write: writes the files, completely or not at all.
    """

    name: str
    is_file: bool
    needs_base: bool
    prepare: Callable[[Adapter, Any], tuple[Adapter, list[str]]]
    write: Callable[[Order], Written]


@dataclass(frozen=True)
class Exported:
    """The result of `tangora.export`.

    Attributes:
        to: the target.
        out: the file or folder.
        name: of the adapter in requests.
        sites: the number of adapted layers.
        rank: at all of them.
        scaling: of ``B A``, at all of them.
        size: of all files, in bytes.
        rounding: the largest relative error (Frobenius) of the dtype over all sites; 0 in float32.
        difference: as in `Written`.
        checked: what read the files again.
        start: commands that start the server.
        notes: worth knowing.
    """

    to: str
    out: Path
    name: str
    sites: int
    rank: int
    scaling: float
    size: int
    rounding: float
    difference: float
    checked: str
    start: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return one_line("Exported", self.to, f"{self.sites} sites", f"rank {self.rank}", str(self.out))
