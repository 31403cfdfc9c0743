"""``tangora fuse --full``: its options, and what it prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli.terminal import bars, show
from tangora.errors import RecipeError

if TYPE_CHECKING:
    from tangora.checkpoints import Merged
    from tangora.fusion.weights import Table

__all__ = ["FullOptions", "fuse_full", "merged_lines", "refuse_of_adapters"]

Full = Annotated[
    bool, typer.Option("--full", help="Write a full checkpoint: BASE CHECKPOINT..., or ADAPTER... --base BASE.")
]
BaseFolder = Annotated[
    Path | None, typer.Option("--base", help="The base that adapters are for: with --full, and for DoRA and the like.")
]
HeadsChoice = Annotated[
    str | None, typer.Option("--heads", help="modules_to_save: keep one per task, or fuse them by name.")
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="With --full: of the result, such as float32.")]
ShardSize = Annotated[str, typer.Option("--shard-size", help="With --full: bytes in a file.")]
AllowMissing = Annotated[
    list[str] | None,
    typer.Option("--allow-missing", metavar="NAME", help="With --full: a tensor that not every model has."),
]
Threads = Annotated[int | None, typer.Option("--threads", help="With --full: default the processors, at most 8.")]
Device = Annotated[str, typer.Option("--device", help="With --full: cpu or cuda.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --full: say what would be written, in how much memory.")]


@dataclass(frozen=True)
class FullOptions:
    """The options that only a full checkpoint has."""

    base: Path | None = None
    dtype: str | None = None
    shard_size: str = "5GB"
    allow_missing: tuple[str, ...] = ()
    threads: int | None = None
    device: str = "cpu"
    dry_run: bool = False

    def refuse_without_full(self) -> None:
        """An option that would do nothing is a misunderstanding.

        Raises:
            RecipeError: one of them was given.
        """
        for option in fields(self):
            if option.name != "base" and (value := getattr(self, option.name)) != option.default:
                name = "--" + option.name.replace("_", "-")
                fix = f"add --full, or leave {name} out"
                raise RecipeError("an option of full checkpoints", got=str(value), where=name, fix=fix)


def refuse_of_adapters(rank: int | None, statistics: Sequence[Path] | None) -> None:
    """A rank and statistics are of adapters.

    Raises:
        RecipeError: one of them was given.
    """
    if rank is not None:
        raise RecipeError("a full checkpoint has no rank", got=rank, where="--rank", fix="leave it out")
    if statistics:
        fix = "fuse the adapters without --full first, and then the result onto its base"
        raise RecipeError("statistics are of adapters", got=len(statistics), where="--statistics", fix=fix)


def fuse_full(
    folders: Sequence[Path],
    out: Path,
    method: str,
    weights: Table | float | None,
    options: FullOptions,
    settings: Mapping[str, Any],
) -> None:
    """Fuse, and say what came of it.

    Raises:
        RecipeError: there is no base, or nothing beside it.
    """
    models = list(folders)
    base = options.base if options.base is not None else models.pop(0)
    if not models:
        fix = "give the base first and then the models; or the adapters, and the base as --base BASE"
        raise RecipeError("nothing to fuse with the base", got=str(base), where="fuse --full", fix=fix)
    from tangora.checkpoints import fuse_checkpoints

    with bars() as progress:
        merged = fuse_checkpoints(
            base,
            models,
            out,
            method,
            weights,
            dtype=options.dtype,
            shard_size=options.shard_size,
            allow_missing=options.allow_missing,
            threads=options.threads,
            device=options.device,
            dry_run=options.dry_run,
            progress=None if options.dry_run else progress,
            **settings,
        )
    show(*merged_lines(merged, options.dry_run))


def merged_lines(merged: Merged, dry_run: bool) -> Iterator[str]:
    """What a fusion came to, or would come to, line by line."""
    verb = "would fuse" if dry_run else "fused"
    yield f"{verb} {len(merged.parents)} models by {merged.method} over {merged.tensors} tensors"
    yield from merged.notes
    files = f"{merged.shards} file{'s' if merged.shards > 1 else ''}"
    finished = f", {merged.kept} of them finished before" if merged.kept else ""
    yield f"read: {merged.read / 1e9:.2f} GB; write: {merged.size / 1e9:.2f} GB in {files}{finished}"
    if not dry_run:
        yield f"checkpoint: {merged.out.resolve()}"
        if merged.verified is not None:
            yield f"verified in {merged.verified.seconds:.1f} s: {merged.verified.words()}"
        return
    mib = {name: value / 2**20 for name, value in vars(merged.memory).items()}
    parts = " + ".join(f"{value:.0f} {name}" for name, value in mib.items() if value)
    yield f"peak memory with {merged.threads} threads: {merged.memory.total / 2**20:.0f} MiB = {parts}"
