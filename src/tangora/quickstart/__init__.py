"""The embedded example: four small image tasks and a tiny CLIP, made on this machine without a network.

The pictures are part of the scikit-learn and scikit-image packages. `encoder` pretrains a CLIP of about half a million
weights once, on captioned pictures that are in no task, and keeps it in a cache. This is large enough to watch adapters
learn, fuse and interfere in minutes, and far too small to rank methods: a few hundred test rows per task, one seed, one
toy model.
"""

from __future__ import annotations

from tangora.quickstart import questions, scenes
from tangora.quickstart.cache import cache_folder, decoder, encoder, swin
from tangora.quickstart.data import labels, load, names, origins, pretraining

__all__ = [
    "cache_folder",
    "decoder",
    "encoder",
    "labels",
    "load",
    "names",
    "origins",
    "pretraining",
    "questions",
    "scenes",
    "swin",
]
