"""Caches of keys and values that a model can continue from, an expanded model too.

In an expanded model, cached keys and values have tangents. They survive in a cache that holds the states as they are.
Others (quantized, or of recurrent states) may lose them without an error: then every call must start at the first
token.
"""

from __future__ import annotations

from typing import Any

__all__ = ["cache_of", "cached_length", "keeps_states"]

LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer", "StaticLayer", "StaticSlidingWindowLayer"}
"""transformers' layers of a cache that keep tangents (checked in 5.23)."""


def cache_of(output: Any) -> Any | None:
    """Return the cache that a model has filled, for its next call; None if the next call must start at the first token.

    Calls of an expanded model that share a cache must be in one block of dual numbers, such as one call of a readout's
    ``answer``, or one `TangentModel.open`: tangents end with the block.

    Args:
        output: of a transformers model that was called with ``use_cache=True``.

    >>> from types import SimpleNamespace
    >>> cache_of(SimpleNamespace(logits=None)) is None
    True
    """
    cache = getattr(output, "past_key_values", None)
    return cache if keeps_states(cache) else None


def keeps_states(cache: Any) -> bool:
    """Return whether a cache of transformers holds keys and values as they were computed, with their tangents."""
    halves = [getattr(cache, f"{name}_attention_cache", None) for name in ("self", "cross")]  # of an encoder-decoder
    if all(half is not None for half in halves):
        return all(map(keeps_states, halves))
    kinds = [type(layer) for layer in getattr(cache, "layers", [])]
    return bool(kinds) and all(k.__module__ == "transformers.cache_utils" and k.__name__ in LAYERS for k in kinds)


def cached_length(cache: Any) -> int:
    """Return the number of tokens in a cache; 0 for any other value."""
    length = getattr(cache, "get_seq_length", None)
    return int(length()) if callable(length) else 0
