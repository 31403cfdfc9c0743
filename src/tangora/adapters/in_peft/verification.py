"""Verify an adapter's files by reading them through stock peft: the part that needs no parents."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.adapters.comparison import Loaded
from tangora.adapters.formats.lora.names import unwrapped
from tangora.adapters.formats.lora.reading import CONFIG, WEIGHTS
from tangora.adapters.in_peft.comparison import InPeft
from tangora.errors import AdapterError
from tangora.storage.header import read_header
from tangora.support.files import digest
from tangora.support.shown import one_line
from tangora.updates.task_vector import Update

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["TOLERANCE", "Verification", "check_readable", "compare", "layout_digest", "verify"]

TOLERANCE = 1e-5
_NAMES = ("base_model_name_or_path", "revision", "peft_version", "inference_mode", "auto_mapping")


@dataclass(frozen=True)
class Verification:
    """What was compared, and the largest relative differences (Frobenius).

    Attributes:
        sites: the number of sites that were compared.
        probed: the number of these that were compared on random vectors instead of entry by entry.
        error: the largest difference after reloading, at ``site``.
        site: the site with that difference.
        reference: ``parents`` (summed anew) or ``result`` (the adapter in memory).
        again: the number of sites where the method was evaluated again in float64; 0 if the parents were summed anew,
            or if it cannot be.
        again_error: the largest difference there; for a truncated result, from the recorded truncation error.
        identity: the largest difference in the parents' own files; None if none was read.
        gauge: the largest difference with other factors of the same updates; None if the method depends on more than
            the updates.
        seconds: how long it took.
        reader: what read the files.
    """

    sites: int
    probed: int
    error: float
    site: str
    reference: str
    again: int
    again_error: float | None
    identity: float | None
    gauge: float | None
    seconds: float
    reader: str = "stock peft"

    def __repr__(self) -> str:
        return one_line("Verification", f"{self.sites} sites", f"largest relative difference {self.error:.1e}")

    def to_dict(self) -> dict[str, Any]:
        """Return what ``tangora.json`` keeps: everything that is the same in a second run."""
        return {key: value for key, value in vars(self).items() if key != "seconds"}

    def summary(self) -> str:
        """Return one line for a person."""
        loaded = f"stock peft loads {self.sites} sites, into a model of these alone"
        if self.reader != "stock peft":
            loaded = f"the file, read again, has {self.sites} sites"
        parts = [f"{loaded}, largest relative difference {self.error:.1e}"]
        if self.again_error is not None:
            parts.append(f"re-evaluated at {self.again} of them {self.again_error:.1e}")
        if self.identity is not None:
            parts.append(f"in the inputs {self.identity:.1e}")
        if self.gauge is not None:
            parts.append(f"with other factors {self.gauge:.1e}")
        return ", ".join(parts)


def verify(adapter: Adapter, folder: Path) -> Verification:
    """Read an adapter's folder through stock peft and compare it with the adapter in memory, site by site.

    Raises:
        AdapterError: peft loads something else.
    """
    return compare(adapter, InPeft(adapter, folder))


def compare(
    adapter: Adapter,
    read: Loaded,
    expected: Callable[[str], Sequence[tuple[Update, float]]] | None = None,
    rounding: Mapping[str, float] | None = None,
) -> Verification:
    """Compare what peft, or another reader, reads with what it should be, in float64.

    Args:
        adapter: the adapter that was written.
        read: what is read from its files.
        expected: returns a site's updates and coefficients, which add up to the expected update; by default the
            adapter's own update.
        rounding: the stated relative error of each update and parameter, if the files have a smaller dtype.

    Raises:
        AdapterError: it reads something else.
    """
    begun = time.perf_counter()
    worst, where, probed, stated = 0.0, "", 0, rounding or {}
    for name, tensor in adapter.whole.items():
        error = read.compare_whole(name, tensor)
        _refuse_more(error, name, stated, read.reader)
        worst, where = max((worst, where), (error, name))
    for site in sorted(adapter.updates):
        terms = [(adapter.updates[site], 1.0)] if expected is None else expected(site)
        error, exact = read.compare(site, terms)
        probed += not exact
        _refuse_more(error, site, stated, read.reader)
        if error >= worst:
            worst, where = error, site
    return Verification(
        sites=len(adapter.updates),
        probed=probed,
        error=worst,
        site=where,
        reference="result",
        again=0,
        again_error=None,
        identity=None,
        gauge=None,
        seconds=time.perf_counter() - begun,
        reader=read.reader,
    )


def _refuse_more(error: float, name: str, stated: Mapping[str, float], reader: str) -> None:
    """Refuse a difference beyond what rounding explains; random vectors measure it up to a factor of two."""
    if not error <= TOLERANCE + 2 * stated.get(name, 0.0):
        fix = "report it, with the adapters' configurations; --no-verify writes it all the same"
        raise AdapterError(f"{reader} computes another update, by {error:.1e} of its norm", where=name, fix=fix)


def check_readable(adapter: Adapter, folder: Path) -> float | None:
    """Return the largest difference between what peft and what Tangora reads from an adapter's own files.

    None if the files are not in peft's format, or cannot be loaded without the base's weights (DoRA and the like),
    or if its names had to be changed.

    Raises:
        AdapterError: they differ.
    """
    plain = all(u.factors() is not None or len(u.shape) == 1 for u in adapter.updates.values())
    if (
        not plain
        or not _starts_at_the_base(adapter)
        or not all((folder / name).is_file() for name in (CONFIG, WEIGHTS))
    ):
        return None
    if adapter.details.names or any(unwrapped(name) != name for name in read_header(folder / WEIGHTS)):
        return None
    read = InPeft(adapter, folder)
    error = max(read.compare(site, [(update, 1.0)])[0] for site, update in adapter.updates.items())
    if not error <= TOLERANCE:
        raise AdapterError("stock peft reads another update", got=error, where=folder, fix="report it")
    return error


def layout_digest(adapter: Adapter) -> str:
    """Return a digest of everything that decides how an adapter's tensors are read."""
    config = {key: value for key, value in (adapter.config or {}).items() if key not in _NAMES}
    return digest([config, {site: update.shape for site, update in adapter.updates.items()}])


def _starts_at_the_base(adapter: Adapter) -> bool:
    config = adapter.config or {}
    init = config.get("init_lora_weights")
    biases = config.get("bias") in ("all", "lora_only") and not adapter.whole
    converted = isinstance(init, str) and init.lower() in ("pissa", "olora")
    return not config.get("use_dora") and not converted and not biases
