"""What commands print, and how their options are read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.errors import RecipeError

if TYPE_CHECKING:
    from rich.table import Table

    from tangora.adapters.adapter import Adapter
    from tangora.cli.bars import Bars
    from tangora.evaluation.evaluator import Result
    from tangora.fusion.weights import Table as Weights

__all__ = ["bars", "fused_lines", "method_table", "parse_parameters", "parse_weights", "score_table", "show"]


def parse_weights(text: str | None) -> Weights | float | None:
    """``0.3`` as one number, ``0.3,0.5`` as one per adapter, ``FILE.json`` as what is written there.

    A file holds site -> list, or ``weights`` that are a list or such a mapping, as ``coefficients`` in ``scores.csv``
    and ``fused`` in ``tangora.json`` have.

    Raises:
        RecipeError: it is none of these.
    """
    if text is None:
        return None
    if text.endswith(".json"):
        return _weights_of(Path(text))
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        fix = "give one number, one per adapter separated by commas: 0.3,0.5, or a .json file"
        raise RecipeError("weights must be numbers", got=text, where="--weights", fix=fix) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _weights_of(path: Path) -> Weights:
    from tangora.support.files import read_json

    found: Any = read_json(path, RecipeError)
    for key in ("fused", "weights"):
        found = found.get(key) or found if isinstance(found, dict) else found
    rows = list(found.values()) if isinstance(found, dict) else [found]
    if not rows or not all(isinstance(row, list) for row in rows):
        fix = "give lists of numbers by site, or the tangora.json of a fused adapter"
        raise RecipeError("no weights in the file", where=path, fix=fix)
    table: Weights = found
    return table


def parse_parameters(settings: list[str] | None) -> dict[str, Any]:
    """``name=value`` pairs, values in YAML.

    Raises:
        RecipeError: a pair has no name or no ``=``.
    """
    if not settings:
        return {}
    from tangora.support.yaml import parse

    chosen: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.isidentifier():
            raise RecipeError("a parameter is name=value", got=setting, where="--set", fix="for example density=0.2")
        chosen[key] = parse(text)
    return chosen


def fused_lines(fused: Adapter, out: Path) -> Iterator[str]:
    """What a fusion came to, line by line."""
    about = fused.metadata.fused
    if about is None:
        return
    ranks = sorted({update.rank for update in fused.updates.values() if hasattr(update, "rank")})
    yield f"fused {len(about.parents)} adapters by {about.method} ({about.space}) over {len(fused.updates)} sites"
    if ranks:
        yield f"rank: {ranks[0]}" if len(ranks) == 1 else f"rank: {ranks[0]} to {ranks[-1]}"
    if about.truncation_error is not None:
        yield f"relative error of the truncation: {about.truncation_error:.3g}"
    yield f"adapter: {out.resolve()}"


def score_table(scores: Mapping[str, Mapping[str, Result]], names: Sequence[str], split: str) -> Table:
    """Scores of candidates: a row a task and their mean, a column a candidate."""
    from rich.table import Table

    table = Table(title=f"score on {split}", box=None, header_style="bold")
    table.add_column("task")
    for candidate in scores:
        table.add_column(candidate, justify="right", overflow="fold")
    for name in names:
        table.add_row(name, *(f"{results[name].score:.3f}" for results in scores.values()))
    means = [sum(r[n].score for n in names) / len(names) for r in scores.values()]
    table.add_row("mean", *(f"{mean:.3f}" for mean in means), style="bold")
    return table


def show(*renderables: Any) -> None:
    """Print to stdout with rich, 110 columns wide where it is no terminal; plain text is not wrapped."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False, soft_wrap=False)
    for renderable in renderables:
        console.print(renderable, soft_wrap=isinstance(renderable, str))


def method_table() -> Table:
    """Every fusion method of the registry."""
    from rich.table import Table

    from tangora.methods import methods

    table = Table(box=None, header_style="bold")
    for column in ("method", "what it does", "parameters", "weight", "reference"):
        table.add_column(column, overflow="fold")
    for name, method in methods().items():
        parameters = ", ".join(f"{k}={v}" for k, v in method.parameters.items())
        table.add_row(name, method.summary, parameters, f"{method.default_weight:g}", method.reference)
    return table


@contextmanager
def bars() -> Iterator[Bars]:
    """Progress on stderr for the length of the block."""
    from tangora.cli.bars import Bars

    with Bars() as drawn:
        yield drawn
