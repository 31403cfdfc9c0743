"""``tangora statistics``: its options, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tangora.cli.terminal import bars
from tangora.errors import RecipeError

if TYPE_CHECKING:
    from tangora.config.recipe import Recipe

__all__ = ["AdapterArgument", "Also", "BatchSize", "Kinds", "Rows", "SplitName", "StatisticsFiles", "write_statistics"]

AdapterArgument = Annotated[Path, typer.Argument(metavar="ADAPTER", help="The expert that they are of.")]
Kinds = Annotated[
    list[str] | None, typer.Option("--kind", help="gram (for regmean) or fisher; both where none is named.")
]
SplitName = Annotated[str, typer.Option("--split", help="Whose rows; train leaves the others unseen.")]
Rows = Annotated[int, typer.Option("--rows", help="At most so many, a sample by the recipe's seed.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Rows per forward pass.")]
Also = Annotated[
    list[Path] | None, typer.Option("--also", metavar="ADAPTER", help="Cover the sites of this adapter, too.")
]
StatisticsFiles = Annotated[
    list[Path] | None,
    typer.Option("--statistics", metavar="FILE", help="For regmean and fisher: one per adapter; see: statistics."),
]


def write_statistics(
    recipe: Recipe,
    adapter: Path,
    out: Path,
    task: str | None,
    kinds: list[str] | None,
    split: str,
    rows: int,
    batch_size: int,
    also: list[Path] | None,
    overwrite: bool,
) -> None:
    """Collect, write, and say what.

    Raises:
        RecipeError: the task is not told, or not in the recipe.
    """
    from tangora.adapters.adapter import load
    from tangora.evaluation.collection import collect_statistics
    from tangora.support.files import refuse_existing
    from tangora.support.validation import did_you_mean
    from tangora.tasks import load_base, load_task

    refuse_existing(out, overwrite)
    expert = load(adapter)
    name, known = task or expert.metadata.task or "", {t.name: t for t in recipe.tasks}
    if name not in known:
        fix = did_you_mean(name, list(known))
        raise RecipeError("no such task in the recipe", got=name, where="--task", fix=fix)
    base = load_base(recipe.base)
    with bars() as progress:
        found = collect_statistics(
            base,
            load_task(known[name], base, recipe.seed),
            expert,
            kinds=kinds or ["gram", "fisher"],  # type: ignore[arg-type]  # other words are refused
            split=split,
            rows=rows,
            seed=recipe.seed,
            batch_size=batch_size,
            also=[load(path) for path in also or []],
            progress=progress,
        )
    found.save(out, overwrite=overwrite)
    about = found.about
    print(
        f"{' and '.join(about.kinds)} of {about.rows} {about.split} rows of {about.task}: {len(found.tensors)} tensors"
    )
    if about.averaged:
        print(f"without a Gram, and averaged by regmean: {len(about.averaged)} tensors")
    print(f"statistics: {out.resolve()}")
