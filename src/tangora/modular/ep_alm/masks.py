"""The masks of a decoder's layers, with the visual token in column 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

__all__ = ["MaskName", "as_taken", "layer_masks"]

MaskName = Literal["causal", "released"]


def layer_masks(
    seen: Int[Tensor, "rows keys"], queries: int, mask: MaskName
) -> tuple[Bool[Tensor, "rows 1 queries keys"], Bool[Tensor, "rows 1 queries keys"]]:
    """Return the masks of the layers before the range, and of those from its first layer on; True: attends.

    Before the range, nothing sees column 0. From there on, everything does. Column 0 itself sees

    - ``causal``: itself alone;
    - ``released``: every token of its row, as in the released code. What it has read of later tokens is read by the
      earlier ones in the next layer: the answer leaks into its own prediction. There it sees padding too, which would
      make answers depend on the other rows of a batch, and is left out here.

    Args:
        seen: 1 for tokens, the columns in front included, and 0 for padding.
        queries: number of the last columns that are computed; the others are in a cache.
        mask: see above.
    """
    keys = seen.shape[1]
    rows, columns = torch.arange(keys - queries, keys, device=seen.device), torch.arange(keys, device=seen.device)
    itself = rows[:, None] == columns
    # A column of padding sees itself, so that no softmax is over nothing; nothing sees it.
    allowed = (rows[:, None] >= columns) & seen.bool()[:, None] | itself
    before = allowed & ((columns > 0) | itself)
    if mask == "released" and queries == keys:
        allowed = allowed | (seen.bool()[:, None] & (rows[:, None] == 0))
    return before[:, None], allowed[:, None]


def as_taken(mask: Bool[Tensor, "rows 1 queries keys"], way: str, dtype: torch.dtype) -> Tensor:
    """Return a mask in the form that an implementation of attention takes: booleans, or numbers that are added."""
    if way != "eager":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
