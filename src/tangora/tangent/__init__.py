"""The whole network expanded to first order at φ₀: linear in φ, and so in every fusion coefficient.

    f(x; φ) = f(x; φ₀) + J(x) (φ − φ₀)

`_dual` pushes tangents through a network in forward mode. The tangents come from an adapter's LoRA layers while it is
trained (`lora`), and afterwards from a `Direction`, made from a task vector, at the sites of the base model
(`direction`). `model` adds primal and tangent: `TangentModel` around any module, `TangentTaskModel` for logits.
`columns` stores ``f(x; φ₀)`` and ``J(x) τₜ`` for the rows of a split, from which every fused model's logits follow.

    training     φ ─ TangentLora ─▶ dual numbers ─▶ logits ─▶ loss; backward through the primal: Jᵀ∇L
    evaluation   Adapter ─ direction_of ─▶ Direction ─▶ dual numbers ─▶ logits
    fusion       Directions, stacked ─ vmap ─▶ Columns ─▶ Σ cₜ columnsₜ, for every subset and coefficient
"""

from tangora.tangent.columns import Columns, load_columns, make_columns, site_columns
from tangora.tangent.direction import Direction, direction_of
from tangora.tangent.lora import expand_lora
from tangora.tangent.model import Offsets, TangentModel, TangentTaskModel, at_start

__all__ = [
    "Columns",
    "Direction",
    "Offsets",
    "TangentModel",
    "TangentTaskModel",
    "at_start",
    "direction_of",
    "expand_lora",
    "load_columns",
    "make_columns",
    "site_columns",
]
