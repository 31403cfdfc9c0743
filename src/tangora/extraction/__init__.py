"""Extract a LoRA from a full fine-tuned checkpoint: the reverse of merging an adapter into its base.

folders -> pairs      every parameter of the model's class: the tuned tensor, the base's, and what peft can hold of it
        -> deltas     one pair at a time: the change, its norm, and the rounding of the files' dtype
        -> chosen     singular triplets, and the rank of each site: given, least under a bound, or within a budget
        -> extract    an adapter that stock peft loads, with its error, and what is left out
        -> readback   the written files against both checkpoints, in float64
"""

from __future__ import annotations

from tangora.extraction.extract import extract

__all__ = ["extract"]
