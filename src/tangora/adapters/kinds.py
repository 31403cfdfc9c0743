"""The kinds of adapters: what their updates belong to, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "KINDS", "LORA", "Kind"]


@dataclass(frozen=True)
class Kind:
    """A kind of adapter.

    Attributes:
        name: as ``tangora.json`` says it in ``kind``.
        format: the format (`tangora.adapters.contract.Format`) that an adapter of the kind is written in.
        by_parameter: whether its sites are parameters of the base (``layer.weight``), instead of layers (``layer``)
            whose weight is changed.
        has_factors: whether its updates are low-rank: they can be cut to a rank and fused in every space.
        in_peft: whether stock peft loads it.
        title: what a model card calls it.
        summary: what ``tangora inspect`` calls it.
    """

    name: str
    format: str
    by_parameter: bool
    has_factors: bool
    in_peft: bool
    title: str
    summary: str


LORA = Kind("lora", "lora", False, True, True, "A LoRA adapter", "a LoRA adapter")
FULL = Kind(
    "full", "delta", True, False, False, "The change of all weights by full fine-tuning", "differences of all weights"
)

KINDS = {kind.name: kind for kind in (LORA, FULL)}
"""Name -> kind."""
