"""How an adapter was extracted from a checkpoint: the record in ``tangora.json``, and its section of the card."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tangora.support.markdown import as_code, as_table, as_text
from tangora.support.sizes import size_text

__all__ = ["ExtractedInfo", "extraction_section"]


class ExtractedInfo(BaseModel):
    """How an adapter was made of a tuned checkpoint and its base, and what it lacks of the difference.

    ``rank`` is the rank that was asked for, ``bound`` the largest error of a site if it is ``auto``, and ``budget`` the
    bytes of all factors. ``error`` is the relative Frobenius error over the sites, ``site_errors`` that of each, and
    ``total_error`` the error of the whole change of the base's weights, with what is left out. ``left_out`` maps
    parameters to their share of the whole change (of its square). ``whole`` lists the layers that are saved whole.
    ``rounding`` estimates the part of the change, as an error, that is rounding to the dtype of the tuned checkpoint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    tuned: str
    fingerprint: str
    rank: int | Literal["auto"]
    bound: float | None = None
    budget: int | None = None
    error: float
    total_error: float
    site_errors: dict[str, float]
    whole: list[str]
    left_out: dict[str, float]
    rounding: float


def extraction_section(info: ExtractedInfo | None) -> str:
    """Return the section of the card; empty for an adapter that was not extracted."""
    if info is None:
        return ""
    rank = str(info.rank) if info.rank != "auto" else f"the least with an error of at most {info.bound:g} at each site"
    worst = max(info.site_errors, key=lambda site: info.site_errors[site], default=None)
    rows = [("checkpoint", as_text(info.tuned)), ("rank", rank)]
    if info.budget is not None:
        rows.append(("budget", size_text(info.budget)))
    rows.append(("error over the sites", f"{info.error:.3g} (relative, Frobenius)"))
    if worst is not None:
        rows.append(("largest error", f"{info.site_errors[worst]:.3g} at {as_code(worst)}"))
    rows.append(("error of the whole change", f"{info.total_error:.3g}"))
    rows.append(("of it rounding in the checkpoint", f"at least about {info.rounding:.2g}"))
    if info.whole:
        rows.append(("saved whole", ", ".join(map(as_code, info.whole))))
    rows += [(f"left out: {as_code(name)}", f"{share:.2g} of the change") for name, share in info.left_out.items()]
    return f"## How it was extracted\n\n{as_table(('', ''), rows)}"
