"""``tangora merge``: adapters into their base, or fine-tuned checkpoints into one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli.command import Command
from tangora.cli.fusing import ADAPTERS, CHECKS, BaseFolder, FusionOptions
from tangora.cli.options import FromHub
from tangora.cli.output import Output
from tangora.cli.weights import weights_line
from tangora.errors import ArgumentError, FileError

if TYPE_CHECKING:
    from tangora.checkpoints import Merged
    from tangora.fusion.weights import WeightTable

__all__ = [
    "COMMAND",
    "AllowMissing",
    "Device",
    "DryRun",
    "Dtype",
    "MergeOptions",
    "ShardSize",
    "Threads",
    "merge",
    "default_weights",
    "merge_models",
    "merged_lines",
]

_MACHINE = "Files and machine"

Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Of the result, such as float32; default: the base's.", rich_help_panel=_MACHINE),
]
ShardSize = Annotated[str, typer.Option("--shard-size", help="Bytes in a file.", rich_help_panel=_MACHINE)]
AllowMissing = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-missing",
        metavar="NAME",
        help="A tensor that not every checkpoint has; * stands for anything.",
        rich_help_panel=_MACHINE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="Default: OMP_NUM_THREADS, or the processors, at most 8.", rich_help_panel=_MACHINE),
]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.", rich_help_panel=_MACHINE)]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print what would be written, and in how much memory; write nothing.",
        rich_help_panel=_MACHINE,
    ),
]


@dataclass(frozen=True, kw_only=True)
class MergeOptions(FusionOptions):
    """What is merged, and how the result is written."""

    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL",
            help="Adapters, with --base; or checkpoints, the base first. Folders, or org/name of the Hub.",
        ),
        FromHub("any"),
    ]
    base: BaseFolder = None
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize",
            help="A base in 4 or 8 bits of bitsandbytes: merge into its values; the loss is printed.",
            rich_help_panel=ADAPTERS,
        ),
    ] = False
    dtype: Dtype = None
    shard_size: ShardSize = "5GB"
    allow_missing: AllowMissing = None
    threads: Threads = None
    device: Device = "cpu"
    dry_run: DryRun = False

    def fuse(self, models: Sequence[Path], base: Path, weights: WeightTable | float | None, output: Output) -> Merged:
        """Fuse ``models`` into ``base`` and write the result."""
        from tangora.checkpoints import fuse_checkpoints  # deferred: --help needs none of it

        with output.progress() as progress:
            return fuse_checkpoints(
                base,
                models,
                self.out,
                self.method,
                weights,
                dtype=self.dtype,
                shard_size=self.shard_size,
                allow_missing=self.allow_missing or (),
                seed=self.seed,
                space=self.space,
                same_base=self.same_base,
                heads=self.heads,  # type: ignore[arg-type]  # another value is refused
                threads=self.threads,
                device=self.device,
                overwrite=self.overwrite,
                dry_run=self.dry_run,
                verify=self.verify,
                progress=None if self.dry_run else progress,
                **self.settings(),
            )


def merge(options: MergeOptions, output: Output) -> None:
    """Merge adapters into their base model, or fine-tuned checkpoints into one; the result is a full checkpoint.

    Give adapters and their base as --base; or checkpoints, the base first. A single adapter is merged
    with weight 1 unless --weights says otherwise. Tensors are streamed: memory stays small, and a merge that was
    killed goes on where it was.
    """
    from tangora.support.files import refuse_output  # deferred: --help needs none of it

    refuse_output(options.out, options.overwrite, [*options.models, *filter(None, [options.base])])
    base, models = _sorted_out(options)
    if not options.dequantize:
        merge_models(options, base, models, output)
        return
    if options.base is None:
        fix = "give the folder of the adapters' base"
        raise ArgumentError("a base is dequantized for adapters", where="--base", fix=fix)
    from tangora.checkpoints.dequantized import dequantize  # deferred: --help needs no torch
    from tangora.support.files import writing
    from tangora.support.publishing import scratch_beside

    out = options.out.resolve()
    with ExitStack() as stack:
        with writing(out):
            made = stack.enter_context(scratch_beside(out))  # removes what a killed merge to the same place has left
            full = made / base.resolve().name  # the name that adapters may have recorded
            full.mkdir(parents=True)
            loss = dequantize(base, full)
        merge_models(options, full, models, output, [loss.note(full.name)])


def default_weights(options: FusionOptions, adapters: Sequence[bool]) -> tuple[WeightTable | float | None, str]:
    """Return the weights that are given, or the default, and where it is from.

    Args:
        options: the command's.
        adapters: for each model, whether it is an adapter. A single one has the weight 1 by default.
    """
    if (weights := options.numbers()) is not None:
        return weights, ""
    if list(adapters) == [True]:
        return 1.0, "a single adapter is merged whole"
    return None, f"the default of {options.method}"


def merge_models(
    options: MergeOptions, base: Path, models: Sequence[Path], output: Output, notes: Sequence[str] = ()
) -> None:
    """Fuse ``models`` into ``base``, and print the result.

    Args:
        options: how.
        base, models: folders.
        output: where the result is printed.
        notes: on the base, for the user.
    """
    weights, origin = default_weights(options, [_is_adapter(model) for model in models])
    merged = options.fuse(models, base, weights, output)
    merged = replace(merged, notes=[*notes, *merged.notes])
    output.result(_document(merged, options.dry_run), *merged_lines(merged, options.dry_run, origin))


def _sorted_out(options: MergeOptions) -> tuple[Path, list[Path]]:
    """The base and the models, by what the folders hold.

    Raises:
        ArgumentError: adapters without a base, adapters beside checkpoints, or nothing to merge.
        FileError: a folder does not exist.
    """
    for folder in options.models:
        if not folder.exists():
            fix = "give folders of adapters or of checkpoints"
            raise FileError("no such folder", where=folder, fix=fix)
    adapters = [folder for folder in options.models if _is_adapter(folder)]
    others = [folder for folder in options.models if folder not in adapters]
    if adapters and others:
        what = f"adapters and checkpoints in one merge: {adapters[0]} is an adapter, {others[0]} is a checkpoint"
        fix = "merge adapters in one command and checkpoints in another"
        if len(others) == 1:
            fix = f"give the base of the adapters as --base {others[0]}"
        raise ArgumentError(what, where="merge", fix=fix)
    if adapters and options.base is None:
        fix = "give the folder of the model that they were trained on"
        raise ArgumentError("adapters are merged into their base", where="--base", fix=fix)
    if options.base is not None:
        return options.base, options.models
    base, *models = options.models
    if not models:
        fix = "give the base first and then the models; or the adapters, and the base as --base BASE"
        raise ArgumentError("nothing to merge with the base", got=str(base), where="merge", fix=fix)
    return base, models


def _is_adapter(folder: Path) -> bool:
    from tangora.adapters.contract import holds_adapter  # deferred: --help needs none of it

    return holds_adapter(folder)


def merged_lines(merged: Merged, dry_run: bool = False, origin: str = "") -> Iterator[str]:
    """What a merge did, or would do, line by line."""
    verb = "would fuse" if dry_run else "fused"
    count = "1 model" if len(merged.parents) == 1 else f"{len(merged.parents)} models"
    yield f"{verb} {count} by {merged.method} over {merged.tensors} tensors"
    yield weights_line(merged.weights, merged.parents, origin)
    yield from merged.notes
    files = f"{merged.shards} file{'s' if merged.shards > 1 else ''}"
    finished = f", {merged.kept} of them finished before" if merged.kept else ""
    yield f"read: {merged.read / 1e9:.2f} GB; write: {merged.size / 1e9:.2f} GB in {files}{finished}"
    if not dry_run:
        yield f"checkpoint: {merged.out.resolve()}"
        if merged.verified is not None:
            yield f"verified in {merged.verified.seconds:.1f} s: {merged.verified.summary()}"
        return
    mib = {name: value / 2**20 for name, value in vars(merged.memory).items()}
    parts = " + ".join(f"{value:.0f} {name}" for name, value in mib.items() if value)
    threads = f"{merged.threads} thread{'s' if merged.threads > 1 else ''}"
    yield f"peak memory with {threads}: {merged.memory.total / 2**20:.0f} MiB = {parts}"


def _document(merged: Merged, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        **{name: value for name, value in vars(merged).items() if name not in ("out", "memory", "verified")},
        "memory": {**vars(merged.memory), "total": merged.memory.total},
        "verified": None if merged.verified is None else asdict(merged.verified),
        "checkpoint": merged.out,
    }


COMMAND = Command(
    merge,
    example="tangora merge adapters/sst2 adapters/snips --base base -w 0.5 --out merged",
    examples={
        ADAPTERS: "tangora merge adapters/sst2 adapters/snips --base base --space core --out merged",
        CHECKS: "tangora merge adapters/sst2 --base moved/base --same-base --no-verify --out merged",
        _MACHINE: "tangora merge base ft-code ft-math --dtype bfloat16 --shard-size 2GB --dry-run --out merged",
    },
)
