"""Weights and parameters of a method: parse them from options, and format them as a line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.fusion.weights import WeightTable

__all__ = ["parse_parameters", "parse_settings", "parse_weights", "weights_line"]

_NAMED = 8  # adapters whose weights are listed by name


def parse_weights(text: str | None) -> WeightTable | float | None:
    """Parse ``0.3`` as one number, ``0.3,0.5`` as one per adapter, and ``FILE.json`` as the content of the file.

    A file holds site -> list, or ``weights`` that are a list or such a mapping, as ``coefficients`` in ``scores.csv``
    and ``fused`` in ``tangora.json`` have.

    Raises:
        ArgumentError: it is none of these.
    """
    if text is None:
        return None
    if text.endswith(".json"):
        return _weights_of(Path(text))
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        fix = "give one number, one per adapter separated by commas: 0.3,0.5, or a .json file"
        raise ArgumentError("weights must be numbers", got=text, where="--weights", fix=fix) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _weights_of(path: Path) -> WeightTable:
    from tangora.support.files import read_json  # deferred: most weights are numbers

    value: Any = read_json(path, ArgumentError)
    for key in ("fused", "weights"):
        value = value.get(key) or value if isinstance(value, dict) else value
    rows = list(value.values()) if isinstance(value, dict) else [value]
    if not rows or not all(isinstance(row, list) for row in rows):
        fix = "give lists of numbers by site, or the tangora.json of a fused adapter"
        raise ArgumentError("no weights in the file", where=path, fix=fix)
    table: WeightTable = value
    return table


def parse_parameters(settings: Sequence[str] | None) -> dict[str, Any]:
    """Parse ``name=value`` pairs, with values in YAML.

    Raises:
        ArgumentError: a pair has no name or no ``=``.
    """
    if not settings:
        return {}
    from tangora.support.yaml import parse  # deferred: most fusions have no parameters

    chosen: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.isidentifier():
            raise ArgumentError("a parameter is name=value", got=setting, where="--set", fix="for example density=0.2")
        try:
            chosen[key] = parse(text)
        except ValueError as cause:
            raise ArgumentError(f"the value must be YAML ({cause})", got=text, where=f"--set {key}") from cause
    return chosen


def parse_settings(settings: Sequence[str] | None, where: str) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` pairs with values in YAML, or a template such as ``{question}``; a key may have dots.

    Raises:
        ArgumentError: a pair has no key or no ``=``.

    >>> parse_settings(["max_length=64", "prompt=Q: {question}", "sums.stop=[x]"], "--task-set")
    {'max_length': 64, 'prompt': 'Q: {question}', 'sums.stop': ['x']}
    """
    from tangora.support.yaml import parse  # deferred: most commands have none

    chosen: dict[str, Any] = {}
    for setting in settings or ():
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ArgumentError("a setting is KEY=VALUE", got=setting, where=where, fix="for example max_length=64")
        chosen[key] = text
        if "{" not in text or (text.startswith("{") and ":" in text):
            with suppress(ValueError):  # a text that is no YAML is a text
                chosen[key] = parse(text)
    return chosen


def weights_line(table: WeightTable, names: Sequence[str], origin: str = "") -> str:
    """Return the weights of a fusion as one line.

    Args:
        table: one per model, or site -> one per model.
        names: of the models.
        origin: their source, if they were not given.

    >>> weights_line([0.5, 0.5], ["a", "b"], "the default of ties")
    'weights: 0.5 each (the default of ties)'
    >>> weights_line({"up": [0.5, 1.0], "down": [0.25, 1.0]}, ["a", "b"])
    'weights, one for each of 2 sites: a 0.25 to 0.5, b 1'
    """
    rows = list(table.values()) if isinstance(table, dict) else [table]
    ranges = [_range([row[i] for row in rows]) for i in range(len(names))]
    what = f"weights, one for each of {len(rows)} sites" if isinstance(table, dict) else "weights"
    if len(set(ranges)) == 1:
        text = ranges[0] + (" each" if len(names) > 1 else "")
    else:
        pairs = [f"{name} {text}" for name, text in zip(names, ranges, strict=True)]
        text = ", ".join(pairs if len(pairs) <= _NAMED else [*pairs[:_NAMED], f"and {len(pairs) - _NAMED} more"])
    return f"{what}: {text}" + (f" ({origin})" if origin else "")


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
