"""The format `tuners`: a PEFT directory of any kind other than LoRA that changes weights: LoHa, IA³, VeRA, OFT, ...

Nothing of a kind's mathematics is written again here. Stock peft builds its own layers in a skeleton of the base, loads
the file into them, and merges one layer at a time; the update is what that changed.

    known        the kinds by name, and why some are refused
    files        an adapter's configuration and tensors, and what they stand for
    skeleton     the base's class with shapes instead of weights, wrapped by stock peft
    merging      the change of one layer, in float64, compared with what the layer answers
    reading      a folder as an adapter
    survey       a folder described without its base
    format       the format itself, which is found by its name
"""

from __future__ import annotations

from typing import Any

__all__ = ["FORMAT"]


def __getattr__(name: str) -> Any:
    if name == "FORMAT":
        # `format` imports `Adapter`, and modules that `Adapter` imports use other modules of this package.
        from tangora.adapters.formats.tuners.format import FORMAT  # deferred: see above

        return FORMAT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
