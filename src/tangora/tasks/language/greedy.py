"""Generate tokens greedily, with a cache of keys and values, by an ordinary model or by an expanded one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.tasks.caches import cache_of
from tangora.tasks.language.logits import positions, takes

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["Generation"]

_COMPACT = 0.25  # the share of finished rows from which on they leave the batch


@dataclass(frozen=True)
class Generation:
    """Greedy generation: in every step, the token with the largest logit.

    Args:
        model: a decoder, or a `PeftModel` around it.
        most: the largest number of tokens.
        ends: tokens that end an answer.
        stopped: whether an answer with these tokens has reached a text that ends it.
        settle: see `tangora.tasks.contract.Readout.answer`.
        beside: what the model reads beside the tokens of the prompts, such as images, one entry per row.
    """

    model: nn.Module
    most: int
    ends: Sequence[int]
    stopped: Callable[[list[int]], bool]
    settle: Callable[[Tensor], Tensor] | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    def answers(self, ids: Int[Tensor, "rows columns"], mask: Int[Tensor, "rows columns"]) -> list[list[int]]:
        """Return the tokens of an answer to each prompt, without the one that ends it.

        Args:
            ids: prompts, padded on the left.
            mask: 1 for tokens of prompts, 0 for padding.
        """
        answers: list[list[int]] = [[] for _ in ids]
        rows, cache = list(range(len(ids))), None
        for _ in range(self.most):
            logits, cache = self._step(ids, mask, cache)
            chosen = logits.argmax(-1)
            going = []
            for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
                if token not in self.ends and row >= 0:
                    answers[row].append(token)
                    if not self.stopped(answers[row]):
                        going.append(place)
            if not going:
                break
            done = set(range(len(rows))) - set(going)
            rows = [-1 if place in done else row for place, row in enumerate(rows)]
            # A model without such a cache, as a recurrent one, reads all tokens again; an expanded one also does if its
            # cache may lose tangents.
            ids = chosen[:, None] if cache is not None else torch.cat([ids, chosen[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            if len(done) >= _COMPACT * len(rows) and hasattr(cache, "batch_select_indices"):
                kept = torch.tensor(going, device=ids.device)
                cache.batch_select_indices(kept)
                ids, mask, rows = ids[kept], mask[kept], [rows[place] for place in going]
        return answers

    @property
    def _own_positions(self) -> bool:
        return takes(self.model, "position_ids")

    def _step(self, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Return the logits of the next token, and the cache with these tokens."""
        named: dict[str, Any] = {"attention_mask": mask, "use_cache": True, "past_key_values": cache}
        if cache is None:  # a cache contains the prompts with what is beside them; without one, no row leaves the batch
            named |= self.beside
        if self._own_positions:
            named["position_ids"] = positions(mask)[:, -ids.shape[1] :]
        if takes(self.model, "logits_to_keep"):
            named["logits_to_keep"] = 1
        output: Any = self.model(input_ids=ids, **named)
        if self.settle is None:
            return output.logits[:, -1].float(), getattr(output, "past_key_values", None)
        return self.settle(output.logits[:, -1]).float(), cache_of(output)
