"""The result of comparing runs: a row for each fusion, as a table and as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tangora.errors import ArgumentError
from tangora.evaluation.seeds import deviation
from tangora.evaluation.significance import PairedTest
from tangora.report.grid import Cell, Grid
from tangora.report.seeds import ENOUGH
from tangora.report.summary import method_name, mode_name
from tangora.support.shown import one_line
from tangora.tasks.metrics import direction

__all__ = ["CompareSettings", "Compared", "RunComparison"]


@dataclass(frozen=True)
class CompareSettings:
    """What is compared.

    Attributes:
        baseline: within one run, the method that every other one is compared with; ``METHOD/SPACE`` names the space.
        methods, modes, tasks: only these; empty for all.
        n_tasks: only fusions of so many tasks; None for all.
        permutations: largest number of exchanges of predictions.
        resamples: of intervals; None for the number of the first run's recipe.
        seed: of exchanges and resamples; None for the first run's.
    """

    baseline: str | None = None
    methods: Sequence[str] = ()
    modes: Sequence[str] = ()
    tasks: Sequence[str] = ()
    n_tasks: int | None = None
    permutations: int = 10_000
    resamples: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are too small."""
        for name, least in (("permutations", 1), ("resamples", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ArgumentError(f"{name} must be at least {least}", got=value, where=f"--{name}")


@dataclass(frozen=True)
class Compared:
    """One comparison.

    Attributes:
        mode, method, space, selection: of the second model; in both runs, or compared with the baseline.
        n_tasks: number of fused tasks.
        subsets: number of subsets that are averaged.
        tasks: those that are scored.
        test: scores, difference, interval and p-value.
        holm: the p-value after Holm's correction over all comparisons.
        seeds: those that are averaged; none for runs of one seed.
    """

    mode: str
    method: str
    space: str
    selection: str
    n_tasks: int
    subsets: int
    tasks: Sequence[str]
    test: PairedTest
    holm: float = 1.0
    seeds: Sequence[int] = ()


@dataclass(frozen=True, repr=False)
class RunComparison:
    """All comparisons of two runs, or of one run's methods with a baseline.

    Attributes:
        labels: of what is subtracted, and of what it is subtracted from.
        rows: one for each mode, method and number of tasks.
        metrics: task -> its metric.
        permutations: largest number of exchanges.
        resamples: of the intervals.
        seed: of exchanges and resamples.
        notes: what was left out.
    """

    labels: tuple[str, str]
    rows: Sequence[Compared]
    metrics: Mapping[str, str]
    permutations: int
    resamples: int
    seed: int
    notes: Sequence[str] = ()

    def __repr__(self) -> str:
        return one_line("RunComparison", f"{self.labels[1]} - {self.labels[0]}", f"{len(self.rows)} comparisons")

    def grid(self, digits: int = 3) -> Grid:
        """Return the table.

        Args:
            digits: decimals of scores; p-values have three significant digits.

        Raises:
            ArgumentError: ``digits`` is not from 0 to 10.
        """
        if not 0 <= digits <= 10:
            raise ArgumentError("digits must be 0 to 10", got=digits, where="--digits")
        rows = [
            ([mode_name(row.mode), method_name(row.method, row.space), str(row.n_tasks)], _cells(row, digits))
            for row in self.rows
        ]
        columns = [*self.labels, "difference", *(["sd"] if self._seeds else []), "low", "high", "p", "p (Holm)"]
        return Grid(["mode", "method", "tasks fused"], columns, rows, list(self._said()))

    def _said(self) -> Iterator[str]:
        metrics = list(dict.fromkeys(self.metrics.values()))
        yield f"mean over tasks of {', '.join(metrics)} on test rows; difference: {self.labels[1]} - {self.labels[0]}"
        if len(metrics) > 1:
            yield "the means are over different metrics"
        if direction(metrics) < 0:
            yield "less is better"
        seeds = self._seeds
        of_seeds = f"seeds ({', '.join(map(str, seeds))}) and of " if seeds else ""
        resampled = f"paired bootstrap resamples of {of_seeds}rows within tasks"
        yield f"low, high: 95 % interval of {self.resamples:,} {resampled}"
        if seeds:
            few = (
                ", which are few: how others would differ is only partly in the interval" if len(seeds) < ENOUGH else ""
            )
            yield f"sd: of the difference over {len(seeds)} seeds{few}"
        exact = sum(row.test.exact for row in self.rows)
        drawn = f"{self.permutations:,} random exchanges (seed {self.seed})"
        how = "all exchanges" if exact == len(self.rows) else drawn
        mixed = f"; all exchanges for {exact} of {len(self.rows)}" if 0 < exact < len(self.rows) else ""
        alike = ", with every seed alike; it is about other rows, not about other seeds" if seeds else ""
        yield f"p: two-sided, of exchanging the two predictions of a row{alike}: {how}{mixed}"
        count = "1 comparison" if len(self.rows) == 1 else f"{len(self.rows)} comparisons"
        yield f"p (Holm): corrected for the {count} of this table"
        yield from self.notes

    @property
    def _seeds(self) -> Sequence[int]:
        """The seeds that are averaged; none for runs of one seed."""
        return self.rows[0].seeds if self.rows else ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        rows = [{**asdict(row), "tasks": list(row.tasks)} for row in self.rows]
        about = {"permutations": self.permutations, "resamples": self.resamples, "seed": self.seed}
        compared = {"first": self.labels[0], "second": self.labels[1], "metrics": dict(self.metrics)}
        return {**compared, **about, "rows": rows, "notes": list(self._said())}


def _cells(row: Compared, digits: int) -> list[Cell]:
    test = row.test
    numbers = (test.first, test.second, test.difference, test.low, test.high)
    scores = [Cell(f"{value:+.{digits}f}" if i > 1 else f"{value:.{digits}f}") for i, value in enumerate(numbers)]
    if row.seeds:
        scores.insert(3, Cell(f"{deviation(test.by_seed) or 0.0:.{digits}f}"))
    return [*scores, Cell(f"{test.p:.3g}"), Cell(f"{row.holm:.3g}")]
