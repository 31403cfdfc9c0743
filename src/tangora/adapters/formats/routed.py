"""The format `routed`: low-rank experts and the routers between them, in ``routed.safetensors``, in float32."""

from __future__ import annotations

from tangora.adapters.formats._tensors import TensorsFormat

__all__ = ["FORMAT"]


class _RoutedFormat(TensorsFormat):
    name = "routed"
    kind = "routed"
    file = "routed.safetensors"


FORMAT = _RoutedFormat()
