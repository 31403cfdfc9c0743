"""JSON equality: whether a text has the object of its reference."""

from __future__ import annotations

from tangora.tasks.metrics._json import pairs
from tangora.tasks.metrics._rows import TextScore

__all__ = ["METRIC", "JsonEqual"]


class JsonEqual(TextScore):
    """The share of rows with a JSON object equal to that of a reference, in [0, 1].

    The object is what stands between the first ``{`` of a text and its last ``}``; a text without one is wrong. The
    order of keys does not count, nor case, nor the amount of white space in keys and values. A value that is no text
    counts as its JSON: ``1`` equals ``"1"``. Choose it for records and function calls; ``slot_f1`` gives credit for
    parts.

    >>> METRIC.score(['Sure: {"b": "New  York", "a": 1}', '{"a": 2}'], ['{"a": 1, "b": "new york"}', '{"a": 1}'])
    0.5
    """

    name = "json_equal"

    def of_text(self, text: str, reference: str, /) -> float:
        """Return 1 if the text has an object, and it equals the reference's."""
        found = pairs(text)
        return float(found is not None and found == pairs(reference))


METRIC = JsonEqual()
