"""Refuse an adapter that was made for another base."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from tangora.errors import ModelError
from tangora.support.names import hub_name

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.tasks import Base

__all__ = ["refuse_another_base"]


def refuse_another_base(adapter: Adapter | None, base: Base, *, same_base: bool = False) -> None:
    """Refuse an adapter that was made for another base model.

    Fingerprints are compared if the adapter has one. If not, names are compared, if both are known; only the last part
    counts, since folders are moved.

    Raises:
        ModelError: says for which base it was made.
    """
    made_for = adapter.metadata.base if adapter is not None and not same_base else None
    if made_for is None:
        return
    name, own = (PurePath(hub_name(one or "") or one or "").name.lower() for one in (made_for.model, base.config.model))
    if made_for.fingerprint:
        prints = f"{made_for.fingerprint[:12]} of {made_for.model or 'an unnamed base'}, not {base.fingerprint[:12]}"
        what = f"the adapter was made for other base weights: {prints}"
        different = made_for.fingerprint != base.fingerprint
    else:
        what, different = f"the adapter was made for {made_for.model}", bool(name) and name != own
    if different and made_for.weights not in (None, base.config.weights):
        what = f"the adapter was trained on weights in {made_for.weights}, which are other weights"
        fix = f"load the base in {made_for.weights}; to use the adapter on these weights nevertheless, pass "
        raise ModelError(what, got=base.config.weights, where="base", fix=fix + "same_base=True, or --same-base")
    if different:
        fix = f"set base.model to {made_for.model or 'the base of the adapter'}; if the two are the same weights, pass "
        raise ModelError(what, got=base.config.model, where="base.model", fix=fix + "same_base=True, or --same-base")
