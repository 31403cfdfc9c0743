"""Read and write LoRA adapters as peft stores them, without peft.

    adapter_config.json        r, lora_alpha, use_rslora, rank_pattern, alpha_pattern -> one scaling per site
    adapter_model.safetensors  the factors, and parameters saved whole (`names` documents the names)

    settings        the settings of a configuration; rank and scaling of a site
    names           tensor names -> layers and their factors
    layers          one layer's tensors as updates: linear, embedding, convolution, bias, experts
    base_dependent  updates that depend on the base's weight: DoRA, PiSSA, OLoRA
    lazy            updates that stay in their file until they are needed
    reading         directory -> updates
    survey          a description of the files, without their numbers
    writing         updates -> directory
    format          these as a `tangora.adapters.contract.Format`

Every adapter that is a change of the base's weights is read. Any other is refused with the reason.
"""

from __future__ import annotations

from typing import Any

__all__ = ["FORMAT"]


def __getattr__(name: str) -> Any:
    if name == "FORMAT":
        # `format` imports `Adapter`, and modules that `Adapter` imports use other modules of this package.
        from tangora.adapters.formats.lora.format import FORMAT  # deferred: see above

        return FORMAT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
