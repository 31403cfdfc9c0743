"""The input directions in which a low-rank update acts most: leading right singular vectors, from its factors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import FusionError
from tangora.updates.task_vector import LowRank
from tangora.updates.truncation import thin_svd

__all__ = ["leading_directions", "refuse_alike"]

_NOISE = 1e-6  # of the largest singular value: below it, a direction is rounding of float32
_SAME = 1e-5  # of a sum of squared cosines: rounding of float32 directions is about 1e-6


def leading_directions(update: LowRank | None, count: int, width: int) -> Float[Tensor, "directions width"]:
    """Return the leading right singular vectors of ``s·BA``, as rows, computed in float64 without the product.

    With thin decompositions ``B = Q_B R_B`` and ``Aᵀ = Q_A R_A``, those of ``BA`` are ``Q_A`` times those of the small
    matrix ``R_B R_Aᵀ``. Of each, the entry of the largest magnitude is positive, so that the sign is determined.

    Args:
        update: of one site; None for none.
        count: how many there are at most; fewer if the rank is smaller.
        width: of the input.
    """
    if update is None:
        return torch.zeros(0, width)
    _, r_b = torch.linalg.qr(update.b.double())
    q_a, r_a = torch.linalg.qr(update.a.double().T)
    _, values, right = thin_svd(r_b @ r_a.T)
    kept = int((values > _NOISE * values[0]).sum()) if bool(values[0] > 0) else 0
    rows = right[: min(count, kept)] @ q_a.T
    signs = torch.gather(rows, 1, rows.abs().argmax(1, keepdim=True)).sign()
    directions: Tensor = (rows * signs).float()
    return directions


def refuse_alike(
    site: str, names: Sequence[str], directions: Sequence[Float[Tensor, "directions width"]], fix: str
) -> None:
    """Refuse experts between which no input decides: those whose directions span the same space.

    Every input has equal scores for them then, and rounding would choose, otherwise in every batch. So it is with
    experts that share A, as L-LoRA's do, if as many directions are compared as A has rows.

    Args:
        site: of the updates.
        names: of the experts.
        directions: orthonormal rows of each expert; none for one without the site.
        fix: for the error.

    Raises:
        FusionError: names two of them.
    """
    for (one, first), (other, second) in combinations(zip(names, directions, strict=True), 2):
        shared = float((first @ second.T).square().sum())  # the squared cosines of the angles between the two spaces
        if len(first) == len(second) > 0 and shared > len(first) - _SAME:
            what = f"{one} and {other} are compared in the same {len(first)} input directions, so that no input decides"
            raise FusionError(what, where=site, fix=fix)
