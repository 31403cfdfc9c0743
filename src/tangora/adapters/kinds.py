"""The kinds of adapters, and their properties."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "KINDS", "LORA", "Kind"]


@dataclass(frozen=True)
class Kind:
    """A kind of adapter.

    Attributes:
        name: the value of ``kind`` in ``tangora.json``.
        format: the format (`tangora.adapters.contract.Format`) that an adapter of the kind is written in.
        by_parameter: whether its sites are parameters of the base (``layer.weight``) instead of layers (``layer``).
        has_factors: whether its updates are low-rank, so that they can be truncated and fused in every space.
        in_peft: whether stock peft loads it.
        title: its name in a model card.
        summary: its name in ``tangora inspect``.
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
