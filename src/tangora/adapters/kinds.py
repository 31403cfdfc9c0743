"""The kinds of adapters, and their properties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["FULL", "KINDS", "LORA", "MODULES", "ROUTED", "Kind", "KindName"]

KindName: TypeAlias = Literal["lora", "full", "modules", "routed"]


@dataclass(frozen=True)
class Kind:
    """A kind of adapter.

    Attributes:
        name: the value of ``kind`` in ``tangora.json``.
        format: the format (`tangora.adapters.contract.Format`) that an adapter of the kind is written in.
        by_parameter: whether its sites are parameters (``layer.weight``) instead of layers (``layer``).
        has_factors: whether its updates are low-rank, so that they can be truncated and fused in every space.
        in_peft: whether stock peft loads it.
        title: its name in a model card.
        summary: its name in ``tangora inspect``.
        adds_modules: whether its updates are the parameters of modules that its mode adds to the network. They are no
            change of the base's weights: they cannot be added to these, and only the mode can put them to use.
        routed: whether it chooses for every input: several experts stay apart in it, and nothing was added up.
    """

    name: KindName
    format: str
    by_parameter: bool
    has_factors: bool
    in_peft: bool
    title: str
    summary: str
    adds_modules: bool = False
    routed: bool = False


LORA = Kind("lora", "lora", False, True, True, "A LoRA adapter", "a LoRA adapter")
FULL = Kind(
    "full", "delta", True, False, False, "The change of all weights by full fine-tuning", "differences of all weights"
)
MODULES = Kind("modules", "modules", True, False, False, "Modules added to the network", "added modules", True)
ROUTED = Kind("routed", "routed", True, False, False, "A routed adapter", "a routed adapter", True, True)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (LORA, FULL, MODULES, ROUTED)}
"""Name -> kind."""
