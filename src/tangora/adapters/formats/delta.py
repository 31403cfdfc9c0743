"""The format `delta`: changes of whole parameters, from full fine-tuning, in ``delta.safetensors``, in float32."""

from __future__ import annotations

from tangora.adapters.formats._tensors import TensorsFormat

__all__ = ["FORMAT"]


class _DeltaFormat(TensorsFormat):
    name = "delta"
    kind = "full"
    file = "delta.safetensors"


FORMAT = _DeltaFormat()
