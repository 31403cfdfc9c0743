"""Polyhistor-Lite (arXiv:2210.03265): one small head writes templates, and every layer composes its weights of them."""

from __future__ import annotations

from tangora.config.bottleneck import PolyhistorLiteSettings
from tangora.modes.kinds.hyperformer import Hyperformer

__all__ = ["MODE"]


class _PolyhistorLite(Hyperformer):
    """Polyhistor with layer-wise scaling: ``W_l = Σ_{i=1..s} K_l[i] ⊗ T_i`` for s times the least width.

    (arXiv:2210.03265, §3.3.) The templates T_i, one for each of the layer's s embeddings, have the size of the
    narrowest layer's matrix and rank r; the kernels ``K_l ∈ R^{s x s x s}`` belong to the layer, and tasks share them.
    Choose it if even Polyhistor's heads are too large. In a network of one width it is Polyhistor.

    Kernels begin with standard deviation 1/√s, so that W_l begins as large in wide layers as in narrow ones; with
    ``kernels: released`` it is 1, as in the authors' code.
    """

    name = "polyhistor-lite"
    settings = PolyhistorLiteSettings


MODE = _PolyhistorLite()
