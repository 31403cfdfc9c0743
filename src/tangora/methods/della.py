"""DELLA: drop at random, small entries more often, then elect signs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import FusionError
from tangora.methods._limits import DENSITY, Limit, check_density
from tangora.methods._registry import fusion_method
from tangora.methods._sums import elected_mean, in_blocks, widened

__all__ = ["della"]

WINDOW = Limit(low=0, high=2, open_high=True, fix="give the spread of the probabilities, such as 0.2")


@fusion_method(
    "della",
    granularity="tensor",
    reference="arXiv:2406.11617",
    default_weight=1.0,
    random=True,
    limits={"density": DENSITY, "window": WINDOW},
)
def della(
    deltas: Float[Tensor, "tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    uniforms: Float[Tensor, "tasks *param"],
    density: float = 0.5,
    window: float = 0.2,
) -> Float[Tensor, "*param"]:
    """Entries dropped at random, the smaller the likelier, rescaled; then elected signs and the mean of what agrees.

    In every row, the n entries in order of magnitude stay with probabilities that rise evenly from
    ``density − window/2`` to ``density + window/2``; what stays is divided by its own probability, and merged as in
    `ties` (arXiv:2406.11617, section 3: MAGPRUNE, elect, fuse).

    Choose it where `dare_ties` loses too much: large entries are seldom dropped.

    A row is the last dimension. Among equal magnitudes the later entry counts as the larger. Weights multiply after
    the election, as in `ties`.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.
        uniforms: numbers in [0, 1), shaped like ``deltas``; an entry stays when its number is under its probability.
        density: the mean probability to stay, in (0, 1].
        window: the largest probability minus the smallest; 0 is `dare_ties`.

    Raises:
        FusionError: a parameter is out of range, or a probability would be.

    >>> deltas = torch.tensor([[1.0, -4.0, 2.0]])
    >>> della(deltas, weights=torch.ones(1, 1), uniforms=torch.full((1, 3), 0.45), density=0.5, window=0.2)
    tensor([ 0.0000, -6.6667,  4.0000])
    """
    check_density("della", density)
    WINDOW.check("della", "window", window)
    if not (window / 2 < density and density + window / 2 <= 1) and window > 0:
        fix = "choose a window of at most twice the distance of the density to 0 and to 1"
        got = f"{density - window / 2:g} to {density + window / 2:g}"
        raise FusionError("della: probabilities must be in (0, 1]", got=got, where="fuse.window", fix=fix)
    chances = _chances(deltas, density, window)

    def block(d: Tensor, w: Tensor, u: Tensor, p: Tensor) -> Tensor:
        pairs = zip(map(widened, d), u, p, strict=True)
        return elected_mean([torch.where(one < keep, delta / keep, 0.0) for delta, one, keep in pairs], w)

    return in_blocks(block, deltas, weights, uniforms, chances)


def _chances(deltas: Float[Tensor, "tasks *param"], density: float, window: float) -> Float[Tensor, "tasks *param"]:
    """The probability of every entry to stay."""
    wide = widened(deltas)
    if wide.ndim == 1 or wide.shape[-1] == 1 or window == 0:
        return torch.full_like(wide, density)
    order = wide.abs().argsort(dim=-1, stable=True)
    rising = torch.linspace(density - window / 2, density + window / 2, wide.shape[-1], dtype=wide.dtype)
    return torch.empty_like(wide).scatter_(-1, order, rising.to(wide.device).expand_as(wide).contiguous())
