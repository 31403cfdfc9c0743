"""``tangora fuse``: adapters into one adapter; with ``--full``, what `tangora merge` does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli import completion
from tangora.cli.auto import advice, polish_instead, recommended, refuse_choices
from tangora.cli.command import Command
from tangora.cli.fusing import ADAPTERS, CHECKS, BaseFolder, FusionOptions
from tangora.cli.merge import (
    AllowMissing,
    Device,
    MergeOptions,
    ShardSize,
    Threads,
    default_weights,
    merge_models,
)
from tangora.cli.options import FromHub, TrustOption
from tangora.cli.output import Output
from tangora.cli.ranks import RankCost, chosen_error, fused_cost, parse_rank
from tangora.cli.routing import is_router, route_adapters
from tangora.cli.row_files import ROWS, DataOption, RecipeOption, RecipeSettings
from tangora.cli.weights import weights_line
from tangora.cli.written import Written, saved
from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.fusion.fusion import Fusion

__all__ = ["COMMAND", "FuseOptions", "fuse", "fused_lines"]

_OF_CHECKPOINTS = ("shard_size", "allow_missing", "threads", "device", "dry_run")


@dataclass(frozen=True, kw_only=True)
class FuseOptions(FusionOptions):
    """What is fused; the last fields are those of `tangora merge`, for ``--full``."""

    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER", help="Folders, single files, or org/name[@revision] of the Hub."),
        FromHub("adapter"),
    ]
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="A folder, or NAME.safetensors for a single file.")
    ]
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Of the result: kohya, diffusers, comfy, peft (one file), lora, mlx. Default: the first's.",
            autocompletion=completion.formats,
        ),
    ] = None
    method: Annotated[
        str,
        typer.Option(
            "--method", "-m", help="Or a router: smile, wemoe. See: tangora methods.", autocompletion=completion.fusions
        ),
    ] = "task_arithmetic"
    auto: Annotated[
        bool,
        typer.Option("--auto", help="Choose what keeps most with what is given: adapters alone, or rows (--data) too."),
    ] = False
    rank: Annotated[
        str | None,
        typer.Option("--rank", "-r", help="Truncate to this rank; auto: the least with an error under --error."),
    ] = None
    error: Annotated[
        float | None,
        typer.Option("--error", help="With --rank auto: the largest relative error of a site; default: 0.05."),
    ] = None
    uniform: Annotated[
        bool,
        typer.Option("--uniform", help="One rank and one alpha at all sites, filled up with zeros: for any server."),
    ] = False
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Of the file: float32 (default), bfloat16, float16; the error is printed."),
    ] = None
    statistics: Annotated[
        list[Path] | None,
        typer.Option(
            "--statistics",
            metavar="FILE",
            help="For regmean and fisher: one per adapter. See: tangora statistics.",
            rich_help_panel=ADAPTERS,
        ),
    ] = None
    base: BaseFolder = None
    data: DataOption = None
    recipe: RecipeOption = None
    recipe_settings: RecipeSettings = None
    trust_remote_code: TrustOption = False
    full: Annotated[bool, typer.Option("--full")] = False
    shard_size: ShardSize = "5GB"
    allow_missing: AllowMissing = None
    threads: Threads = None
    device: Device = "cpu"
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With a router, or rows and --auto: print what would be done; write nothing."),
    ] = False

    def of_merge(self) -> MergeOptions:
        """The same options for `tangora merge`.

        Raises:
            ArgumentError: an option that only adapters have.
        """
        if (rank := self.rank or self.error) is not None:
            raise ArgumentError("a full checkpoint has no rank", got=rank, where="--rank", fix="leave it out")
        if self.uniform:
            raise ArgumentError("a full checkpoint has no rank", got=True, where="--uniform", fix="leave it out")
        if self.format is not None:
            raise ArgumentError(
                "a full checkpoint has one format", got=self.format, where="--format", fix="leave it out"
            )
        if self.statistics:
            fix = "fuse the adapters without --full first, and then merge the result into its base"
            raise ArgumentError("statistics are of adapters", got=len(self.statistics), where="--statistics", fix=fix)
        shared = {f.name: getattr(self, f.name) for f in fields(MergeOptions) if hasattr(self, f.name)}
        return MergeOptions(models=self.adapters, **shared)

    def refuse_of_checkpoints(self) -> None:
        """Refuse an option that would do nothing, which is a misunderstanding.

        Raises:
            ArgumentError: an option that only `tangora merge` has.
        """
        for field in fields(self):
            if field.name == "dry_run" and (self.auto or is_router(self.method)):
                continue
            if field.name in _OF_CHECKPOINTS and (value := getattr(self, field.name)) != field.default:
                name = "--" + field.name.replace("_", "-")
                fix = f"use: tangora merge; or leave {name} out"
                raise ArgumentError("an option of full checkpoints", got=str(value), where=name, fix=fix)

    def refuse_rows(self) -> None:
        """Refuse rows, from which nothing would be learned.

        Raises:
            ArgumentError: names the option.
        """
        given = {"--data": self.data, "--recipe": self.recipe, "--recipe-set": self.recipe_settings}
        for name, value in given.items():
            if value:
                got = value if isinstance(value, str) else value[0]
                fix = "leave it out; tangora polish, and routers such as wemoe, learn from rows"
                raise ArgumentError(f"{self.method} learns from no rows", got=got, where=name, fix=fix)

    def fusion(self) -> Fusion:
        """Open and check the adapters."""
        from tangora.fusion.fusion import Fusion  # deferred: --help needs no torch

        return Fusion(
            self.adapters,
            self.space,
            seed=self.seed,
            same_base=self.same_base,
            statistics=self.statistics,
            base=self.base,
            heads=self.heads,  # type: ignore[arg-type]  # another value is refused
        )


def fuse(options: FuseOptions, output: Output) -> None:
    """Fuse adapters of one base model into one adapter, exactly or with a stated error; no base model is loaded.

    The result is a PEFT adapter, or a file like the first for LoRAs of diffusion models. Its rank is the sum of the
    ranks unless --rank cuts it. With a router as the method, every token chooses among the adapters, which stay as they
    are; the result is a routed adapter. To write a full model instead, use [bold]tangora merge[/bold].
    """
    if options.auto:
        refuse_choices(options)
        if options.data or options.recipe:
            polish_instead(options, output)
            return
        method, weight = recommended(options.adapters)
        options = replace(options, method=method, weights=str(weight))
    _refuse_place(options)
    if options.full:
        options.refuse_rows()
        _fuse_full(options.of_merge(), output)
        return
    options.refuse_of_checkpoints()
    if is_router(options.method):
        route_adapters(options, output)
        return
    options.refuse_rows()
    rank = parse_rank(options.rank)
    weights, origin = default_weights(options, [True] * len(options.adapters))
    origin = advice(options.adapters) if options.auto else origin
    parameters = options.settings()
    from tangora.fusion.statistics import refuse_superfluous  # deferred: --help needs no torch
    from tangora.methods import get

    fusion = options.fusion()
    refuse_superfluous(fusion.statistics, get(options.method), fusion.adapters, fusion.names)
    fused = fusion.merge(options.method, weights, parameters, rank, chosen_error(options.error, rank))
    written = saved(fused, fusion, options)
    # What was cut is known by the sites of the fusion, which a format may join.
    same = options.rank is None or written.adapter.updates.keys() == fused.updates.keys()
    cost = fused_cost(written.adapter if same else fused, options.out, options.adapters)
    lines = list(fused_lines(written.adapter, options.out, written, origin, cost))
    if fused.whole and fusion.base is None:  # with the base, the changes of its parameters are weighted
        lines.insert(2, f"saved whole, so kept as it is, without weights: {', '.join(sorted(fused.whole))}")
    output.result(_document(written.adapter, options.out, written, cost), *lines)


def _refuse_place(options: FuseOptions) -> None:
    """Refuse an output that would replace something, before anything is computed."""
    from tangora.support.files import refuse_existing, refuse_output  # deferred: --help needs none of it

    inputs = [*options.adapters, *filter(None, [options.base])]
    if options.full or options.out.suffix != ".safetensors" or is_router(options.method):
        refuse_output(options.out, options.overwrite, inputs)
        return
    from tangora.adapters.saving import refuse_foreign_file  # deferred: imports torch

    refuse_existing(options.out, options.overwrite, inputs)
    refuse_foreign_file(options.out)


def _fuse_full(options: MergeOptions, output: Output) -> None:
    """What ``--full`` always did: the first folder is the base unless ``--base`` is given."""
    models = list(options.models)
    base = options.base if options.base is not None else models.pop(0)
    if not models:
        fix = "give the base first and then the models; or the adapters, and the base as --base BASE"
        raise ArgumentError("nothing to fuse with the base", got=str(base), where="fuse --full", fix=fix)
    merge_models(options, base, models, output)


def fused_lines(
    fused: Adapter, out: Path, written: Written, origin: str = "", cost: RankCost | None = None
) -> Iterator[str]:
    """What a fusion did, line by line."""
    about = fused.metadata.fused
    assert about is not None
    count = "1 adapter" if len(about.parents) == 1 else f"{len(about.parents)} adapters"
    yield f"fused {count} by {about.method} ({about.space}) over {len(fused.updates)} sites"
    yield weights_line(about.weights, [parent.name for parent in about.parents], origin)
    if cost is not None:
        yield cost.line()
    if about.truncation_error is not None:
        bound = "" if about.error_bound is None else f", at each site at most {about.error_bound:g}"
        yield f"relative error of the truncation: {about.truncation_error:.3g}{bound}"
    if written.rounding_error is not None:
        yield f"relative error of the dtype: at most {written.rounding_error:.2g} at a site"
    yield from written.notes
    if fused.metadata.expanded:
        yield "it answers in its expansion, and plain peft loads another function: use tangora predict or load_model"
    if (file := fused.details.file) is not None:
        yield f"format: {file.format}, of {file.title}"
    yield f"adapter: {out.resolve()}"
    if written.verification is not None:
        yield f"verified in {written.verification.seconds:.1f} s: {written.verification.summary()}"


def _document(fused: Adapter, out: Path, written: Written, cost: RankCost | None) -> dict[str, Any]:
    verification = written.verification
    about = fused.metadata.fused
    assert about is not None
    return {
        **about.model_dump(mode="json"),
        "sites": len(fused.updates),
        "ranks": [] if cost is None else cost.ranks,
        **({} if cost is None else cost.to_dict()),
        "verified": None if verification is None else verification.to_dict() | {"seconds": verification.seconds},
        "rounding_error": written.rounding_error,
        "notes": list(written.notes),
        "adapter": out,
    }


COMMAND = Command(
    fuse,
    example="tangora fuse adapters/sst2 adapters/snips --method ties --set density=0.3 --out fused",
    examples={
        ROWS: "tangora fuse adapters/sst2 adapters/snips --method wemoe --data sst2=a.csv --data snips=b.csv --out out",
        ADAPTERS: "tangora fuse adapters/sst2 adapters/snips --space core --heads keep --out fused",
        CHECKS: "tangora fuse adapters/sst2 moved/snips --same-base --no-verify --out fused",
    },
    hidden=frozenset({"full", *_OF_CHECKPOINTS} - {"dry_run"}),
)
