"""A folder that stock peft loads: one rank, one alpha, no patterns. Servers that read peft's folders read it too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.serving.contract import Order, Target, Written

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tangora.adapters.adapter import Adapter
    from tangora.serving.base import ServedBase

__all__ = ["TARGET", "write_folder"]


def _prepare(adapter: Adapter, base: ServedBase | None) -> tuple[Adapter, list[str]]:
    return adapter, []


def write_folder(order: Order) -> float:
    """Write a folder of peft; return the largest difference between what stock peft computes and what it should be.

    Raises:
        AdapterError: stock peft computes something else.
        OutputError: something is in the way.
    """
    from tangora.adapters.in_peft.comparison import InPeft  # deferred: peft takes seconds to import
    from tangora.adapters.in_peft.verification import Verification, compare

    found: list[Verification] = []

    def check(adapter: Adapter, folder: Path) -> Mapping[str, Any]:
        expected = order.exact.updates
        read = InPeft(adapter, folder)
        found.append(compare(adapter, read, lambda site: [(expected[site], 1.0)], order.rounding))
        return found[0].to_dict()

    order.adapter.save(order.out, overwrite=order.overwrite, check=check)
    return found[0].error


def _write(order: Order) -> Written:
    difference = write_folder(order)
    return Written((), difference, "stock peft")


TARGET = Target("peft", is_file=False, needs_base=False, prepare=_prepare, write=_write)
