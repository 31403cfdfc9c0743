"""A LoRA adapter as peft stores it, read and written without peft.

    adapter_config.json        r, lora_alpha, use_rslora, rank_pattern, alpha_pattern -> one scaling per site
    adapter_model.safetensors  the factors, and what was saved whole (`names` has the names)

    settings   what a configuration asks for; rank and scaling of a site
    names      which tensor is which part of which layer
    layers     one layer's tensors as updates: linear, embedding, convolution, bias, experts
    based      updates that depend on the base's weight: DoRA, PiSSA, OLoRA
    filed      updates that stay in their file until they are asked for
    reading    all of it together
    survey     what the files hold, without their numbers
    writing    the way back
    format     these as a `tangora.adapters.contract.Format`

Everything that is a change of the base's weights is read; everything else is refused, and the reason said.
"""

from __future__ import annotations

from typing import Any

__all__ = ["FORMAT"]


def __getattr__(name: str) -> Any:
    if name == "FORMAT":
        # It builds adapters, and modules below `Adapter` import this package's others.
        from tangora.adapters.formats.lora.format import FORMAT  # deferred: see above

        return FORMAT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
