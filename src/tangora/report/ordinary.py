"""What adapters of an expansion score in the ordinary network, which plain peft makes of their files.

RUN/adapters/<mode>/<task>/tangora.json, RUN/fused/<mode>/<label>/tangora.json: ``scores`` with ``as_weights``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tangora.adapters.metadata import FILE, read_metadata
from tangora.support.shown import decimal

__all__ = ["BothWays", "in_words", "read_both_ways"]

EXPERTS = "experts, one per task"


@dataclass(frozen=True)
class BothWays:
    """The scores of a mode's experts, or of a fused adapter.

    Attributes:
        mode: of the recipe.
        name: of the fused adapter's folder, or `EXPERTS`.
        split: of the rows.
        scores: task -> score in the expansion, and in the ordinary network.
        in_peft: whether plain peft makes the ordinary network.
    """

    mode: str
    name: str
    split: str
    scores: Mapping[str, tuple[float, float]]
    in_peft: bool

    @property
    def means(self) -> tuple[float, float]:
        """The means over the tasks."""
        one, other = (sum(pair[i] for pair in self.scores.values()) / len(self.scores) for i in (0, 1))
        return one, other


def read_both_ways(run: Path) -> list[BothWays]:
    """Read the scores of all adapters of a run that were scored both ways.

    Raises:
        FileError: a ``tangora.json`` is unreadable or invalid.
    """
    experts: dict[tuple[str, str, bool], dict[str, tuple[float, float]]] = {}
    fused = []
    for one in _adapters(run, "adapters"):
        experts.setdefault((one.mode, one.split, one.in_peft), {}).update(one.scores)
    for one in _adapters(run, "fused"):
        fused.append(one)
    listed = [BothWays(mode, EXPERTS, split, scores, peft) for (mode, split, peft), scores in experts.items()]
    return [*listed, *fused]


def _adapters(run: Path, folder: str) -> Iterator[BothWays]:
    for path in sorted(run.glob(f"{folder}/*/*/{FILE}")):
        metadata = read_metadata(path.parent)
        scores = (metadata.scores if metadata is not None else None) or {}
        if metadata is None or not scores.get("as_weights"):
            continue
        pairs = {str(t): (float(scores["tasks"][t]), float(value)) for t, value in scores["as_weights"].items()}
        yield BothWays(path.parts[-3], path.parts[-2], str(scores.get("split")), pairs, metadata.of_kind.in_peft)


def in_words(scored: Sequence[BothWays], *, comparable: bool) -> str:
    """Return a sentence on the experts of each mode, or else on its first fused adapter; empty if there are none.

    Args:
        scored: of a run.
        comparable: whether the tasks' metrics have a common scale, so that means are worth stating.
    """
    first: dict[str, BothWays] = {}
    for one in scored:
        first.setdefault(one.mode, one)
    if not first:
        return ""
    text = "Adapters of an expansion answer in it; the ordinary network with their weights is another function"
    if not comparable:
        return f"{text}: their cards have the scores of both."
    parts = []
    for mode, one in first.items():
        where, (own, other) = "plain peft" if one.in_peft else "the base's weights", map(decimal, one.means)
        what = "the experts" if one.name == EXPERTS else one.name
        parts.append(f"{mode}: {what} score {own} in it and {other} in {where}, on {one.split} rows")
    return f"{text} ({'; '.join(parts)})."
