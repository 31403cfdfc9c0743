"""Polyhistor (arXiv:2210.03265): HyperFormer with decomposed heads, for dense vision on networks with stages."""

from __future__ import annotations

from tangora.config.bottleneck import PolyhistorSettings
from tangora.modes.kinds.hyperformer import Hyperformer

__all__ = ["MODE"]


class _Polyhistor(Hyperformer):
    """HyperFormer whose heads write factors: ``W = W_out W_in`` of rank r, with ``r (rows + columns)`` numbers.

    (arXiv:2210.03265, §3.2.) Choose it to train several tasks of images at once, with a small part of HyperFormer's
    parameters. With r at least the smaller side of W, it can write whatever HyperFormer can.
    """

    name = "polyhistor"
    settings = PolyhistorSettings


MODE = _Polyhistor()
