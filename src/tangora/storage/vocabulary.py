"""Which tensors have one row per token."""

from __future__ import annotations

__all__ = ["is_vocabulary"]

_LAYERS = ("wte", "shared", "lm_head")
_OTHER = ("position", "type", "patch", "norm")


def is_vocabulary(name: str) -> bool:
    """Return whether a parameter is an input embedding of tokens, or an output head over them, by its name.

    >>> is_vocabulary("model.embed_tokens.weight"), is_vocabulary("model.embed_positions.weight")
    (True, False)
    """
    parts = name.split(".")
    layer = parts[-2] if len(parts) > 1 else ""
    decoder = layer == "decoder" and len(parts) > 2 and parts[-3] in ("predictions", "lm_head")
    return layer in _LAYERS or decoder or ("embed" in layer and not any(word in layer for word in _OTHER))
