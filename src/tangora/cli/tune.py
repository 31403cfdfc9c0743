"""``tangora tune``: coefficients for existing adapters, chosen on one's own rows, and the adapter fused with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import Options, OverwriteOption, SameBaseOption, TrustOption
from tangora.cli.output import Output
from tangora.cli.row_files import ROWS, RecipeOption, RecipeSettings, row_files
from tangora.cli.weights import parse_parameters, parse_settings, parse_weights
from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.in_peft.verification import Verification
    from tangora.cli.tuning import Bench, Named, Reading
    from tangora.coefficients.result import SearchResult
    from tangora.progress import Progress

__all__ = ["COMMAND", "TuneOptions", "tune"]


@dataclass(frozen=True, kw_only=True)
class TuneOptions(Options):
    """The adapters, the rows, and how coefficients are chosen."""

    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER", help="The adapters; as NAME=ADAPTER if their names do not say their tasks."),
    ]
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for the fused adapter.")]
    search: Annotated[
        str | None,
        typer.Option(
            "--search",
            "-s",
            help="grid (one number for all), learned, convex, lorahub, adamerging, ... Default: the most robust.",
            autocompletion=completion.searches,
        ),
    ] = None
    method: Annotated[
        str, typer.Option("--method", "-m", help="See: tangora methods.", autocompletion=completion.methods)
    ] = "task_arithmetic"
    weights: Annotated[
        str | None,
        typer.Option("--weights", "-w", metavar="NUMBERS", help="The grid. Default: six numbers from 0.1 to 1."),
    ] = None
    labels: Annotated[
        int | None,
        typer.Option(
            "--labels", min=1, metavar="N", help="Rows of each task that choose. Default: half of them, at most 200."
        ),
    ] = None
    rank: Annotated[int | None, typer.Option("--rank", "-r", min=1, metavar="N", help="Largest rank of a site.")] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the search, or a parameter of the method.",
            autocompletion=completion.settings,
        ),
    ] = None
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="N", help="Of the cut of the rows, and of all draws.")
    ] = 0
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Rows per forward pass.")] = 64
    same_base: SameBaseOption = False
    overwrite: OverwriteOption = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and stop.")] = False
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=FILE",
            help="Rows of a task, with answers: .jsonl, .csv, .parquet, .npz, or a folder with one of images a class.",
            rich_help_panel=ROWS,
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="BASE",
            help="With --data: the base. Default: what an adapter names.",
            rich_help_panel=ROWS,
        ),
    ] = None
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            help="Of the base, such as causal-lm. Default: what the adapters record.",
            autocompletion=completion.families,
            rich_help_panel=ROWS,
        ),
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", help="Of every task. Default: what the adapters record, or the family's.", rich_help_panel=ROWS
        ),
    ] = None
    task_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--task-set",
            metavar="KEY=VALUE",
            help="How rows are read, as in a recipe's tasks: prompt='{question}'; NAME.KEY=VALUE for one task.",
            rich_help_panel=ROWS,
        ),
    ] = None
    base_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--base-set",
            metavar="KEY=VALUE",
            help="As in a recipe's base: max_new_tokens=32.",
            rich_help_panel=ROWS,
        ),
    ] = None
    rows: Annotated[
        int | None,
        typer.Option("--rows", min=4, metavar="N", help="Most rows of a file, drawn by seed.", rich_help_panel=ROWS),
    ] = None
    recipe: RecipeOption = None
    recipe_settings: RecipeSettings = None
    trust_remote_code: TrustOption = False

    def files(self) -> dict[str, Path]:
        """Task -> file of its rows; empty with a recipe.

        Raises:
            ArgumentError: neither ``--data`` nor ``--recipe``, or both; or an option that the recipe answers.
        """
        files = row_files("tune", self.data, self.recipe, self.recipe_settings, self.base)
        own = {
            "--family": self.family,
            "--metric": self.metric,
            "--task-set": self.task_settings,
            "--base-set": self.base_settings,
            "--rows": self.rows,
        }
        if self.recipe is not None and (odd := [name for name, value in own.items() if value is not None]):
            fix = "change the recipe with --recipe-set"
            raise ArgumentError("the recipe says how rows are read", got=odd[0], where="--recipe", fix=fix)
        return files

    def tasks(self, files: Mapping[str, Path]) -> list[str]:
        """The tasks that there are rows of."""
        if self.recipe is None:
            return list(files)
        from tangora.config.recipe import load_recipe  # deferred: --help needs no pydantic

        return [task.name for task in load_recipe(self.recipe, self.recipe_settings or []).tasks]

    def reading(self, files: Mapping[str, Path]) -> Reading:
        """How the files are read."""
        from tangora.cli.tuning import Reading  # deferred: imports torch

        return Reading(
            files=files,
            base=self.base,
            family=self.family,
            metric=self.metric,
            base_settings=parse_settings(self.base_settings, "--base-set"),
            task_settings=parse_settings(self.task_settings, "--task-set"),
            labels=self.labels,
            rows=self.rows,
            seed=self.seed,
            trust=self.trust_remote_code,
        )

    def grid(self) -> list[float]:
        """The λ that are compared.

        Raises:
            ArgumentError: they are no numbers.
        """
        from tangora.coefficients.one_weight import GRID  # deferred: imports torch

        given = parse_weights(self.weights)
        if isinstance(given, dict):
            fix = "give numbers: 0.1,0.3,0.5"
            raise ArgumentError("a grid is a list of numbers", got=self.weights, where="--weights", fix=fix)
        return list(GRID) if given is None else [given] if isinstance(given, float) else list(given)


def tune(options: TuneOptions, output: Output) -> None:
    """Choose coefficients for existing adapters on your own rows, fuse them, and show what each task keeps.

    Each file is cut by the seed into rows that choose the coefficients and rows that score the result. The table has
    the base, every adapter, one number for all, and the fused adapter. A call that was killed goes on if it is given
    again.
    """
    files, grid = options.files(), options.grid()
    from tangora.support.files import refuse_output  # deferred: --help needs none of it

    local = [path for text in options.adapters for path in (Path(text), Path(text.partition("=")[2])) if path.is_dir()]
    refuse_output(options.out, options.overwrite, [*filter(lambda path: path != Path(), local), *files.values()])
    from tangora.cli.comparison import cut_notes, cut_table  # deferred: with rich's tables
    from tangora.cli.tuned import document_of, lines_of, pair_notes, plan_of, tables_of
    from tangora.cli.tuning import named_adapters

    named = named_adapters(options.adapters, options.tasks(files))
    with output.progress() as progress:
        bench = _bench(options, named, files, progress)
        notes = [*pair_notes(named, bench), *cut_notes(bench.cuts)]
        if options.dry_run:
            document, line = plan_of(named, bench, grid, options.search)
            output.result(document, cut_table(bench.cuts, bench.choosing, bench.scoring), *notes, line)
            return
        for note in notes:
            progress.note(note)
        found, verified = _searched(options, named, bench, grid, progress)
    document = document_of(named, bench, found, verified, options.out)
    output.result(document, *tables_of(bench, found), *lines_of(bench, found, verified, options.out))


def _bench(options: TuneOptions, named: Named, files: Mapping[str, Path], progress: Progress) -> Bench:
    """Load base and rows."""
    from tangora.cli.tuning import from_recipe, from_rows  # deferred: imports torch

    if options.recipe is None:
        return from_rows(named, options.reading(files), progress)
    trust, more = options.trust_remote_code, options.recipe_settings or []
    return from_recipe(named, options.recipe, more, progress, options.labels, trust=trust)


def _searched(
    options: TuneOptions, named: Named, bench: Bench, grid: Sequence[float], progress: Progress
) -> tuple[SearchResult, Verification | None]:
    """Choose coefficients, score, and write the fused adapter, verified."""
    from tangora.adapters.in_peft.verification import verify  # deferred: imports torch
    from tangora.checkpoints.beside_adapters import beside_adapters
    from tangora.coefficients.searching import search
    from tangora.methods import get
    from tangora.modes.finetuning import in_work_folder

    given = parse_parameters(options.settings)
    own = get(options.method).parameters
    work = options.out.parent / f".{options.out.name}.tuning"
    verified: list[Verification] = []

    def check(adapter: Adapter, folder: Path) -> Mapping[str, Any]:
        verified.append(verify(adapter, folder))
        return verified[0].to_dict()

    with in_work_folder(work, options.out):
        found = search(
            named.sources,
            bench.base,
            bench.tasks,
            options.search,
            method=options.method,
            parameters={key: value for key, value in given.items() if key in own},
            weights=grid,
            labels=options.labels if options.recipe is not None else None,
            split=bench.choosing,
            scored=bench.scoring,
            rank=options.rank,
            seed=options.seed,
            batch_size=options.batch_size,
            same_base=options.same_base,
            scratch=work,
            progress=progress,
            **{key: value for key, value in given.items() if key not in own},
        )
        beside, _ = beside_adapters([Path(place) for place in named.given.values()])
        in_peft = found.adapter.metadata.of_kind.in_peft
        found.adapter.save(options.out, options.overwrite, check=check if in_peft else None, beside=beside)
    return found, verified[0] if verified else None


COMMAND = Command(
    tune,
    example="tangora tune adapters/sums adapters/caps --data sums=a.jsonl --data caps=b.jsonl --base llama --out fused",
    examples={ROWS: "tangora tune run/adapters/lora/* --recipe text7 --recipe-set data.root=DATA --out fused"},
)
