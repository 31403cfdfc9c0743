"""The command line: arguments in, one-line errors and exit codes out; the work is imported when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli import analyze as analyzing
from tangora.cli import distill as distilling
from tangora.cli import explore as exploring
from tangora.cli import fuse as fusing
from tangora.cli import fuse_full as checkpoints
from tangora.cli import inspect as inspecting
from tangora.cli import statistics as collecting
from tangora.cli.exits import end, quiet_libraries, traceback_goes_to
from tangora.cli.options import Overwrite, RecipeArgument, Settings
from tangora.cli.terminal import bars, method_table, parse_parameters, parse_weights, score_table, show
from tangora.errors import RecipeError

if TYPE_CHECKING:
    from tangora.config.recipe import Recipe

__all__ = ["app", "main"]

SPLITS = ("train", "validation", "test")

app = typer.Typer(
    name="tangora",
    help="Tangent-space adapters that add up: fine-tune one adapter per task, fuse them exactly, show what was kept.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Entry point: 0 done, 2 something to put right (one line says what), 130 interrupted, 1 a bug."""
    quiet_libraries()
    end(lambda: app(standalone_mode=False))


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    if version:
        from importlib import metadata

        print(f"tangora {metadata.version('tangora')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


@app.command()
def run(
    recipe: RecipeArgument,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; default runs/NAME.")] = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
) -> None:
    """Fine-tune every task in every mode, fuse every subset, score, report. Goes on where it was stopped."""
    loaded = _load(recipe, settings)
    folder = out or Path("runs") / loaded.name
    if dry_run:
        from tangora.runs.preflight import preflight

        with bars() as progress:
            plan = preflight(loaded, folder, progress, overwrite=overwrite)
        show(*plan)
        return
    traceback_goes_to(folder / "run.log")
    from tangora.runs.runner import run as run_recipe

    with bars() as progress:
        run_recipe(loaded, folder, overwrite=overwrite, progress=progress)
    from tangora.report import terminal

    show(terminal(folder))
    print(f"report: {(folder / 'report.html').resolve()}")


@app.command()
def finetune(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option("--out", help="Where the adapter goes; of a joint mode, one folder a task.")],
    task: Annotated[str | None, typer.Option("--task", help="Which of the recipe's tasks; a joint mode: all.")] = None,
    mode: Annotated[str, typer.Option("--mode", help="Which of the recipe's modes.")] = "lora",
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune one adapter. Under [bold]accelerate launch -m tangora finetune ...[/bold] on several processes."""
    from tangora.cli.finetune import finetune_recipe  # deferred: torch

    finetune_recipe(_load(recipe, settings), mode, task, out, overwrite)


app.command("distill")(distilling.distill)


@app.command()
def fuse(
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER...", help="Folders of PEFT adapters, or with --full of checkpoints, the base first."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the fused adapter goes.")],
    method: Annotated[str, typer.Option("--method", help="See: tangora methods.")] = "task_arithmetic",
    weights: Annotated[
        str | None, typer.Option("--weights", help="One number for all, or one per adapter: 0.3,0.5,-0.2")
    ] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the method: density=0.2")
    ] = None,
    space: Annotated[
        str, typer.Option("--space", help="delta: the updates BA. factors: A and B apart. core: BA in common bases.")
    ] = "delta",
    rank: Annotated[int | None, typer.Option("--rank", help="Truncate to this rank; the error is reported.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="For methods that draw random masks.")] = 0,
    same_base: Annotated[
        bool, typer.Option("--same-base", help="I know that differing base names are one model.")
    ] = False,
    statistics: collecting.StatisticsFiles = None,
    verify: fusing.Verify = True,
    overwrite: Overwrite = False,
    full: checkpoints.Full = False,
    base: checkpoints.BaseFolder = None,
    heads: checkpoints.HeadsChoice = None,
    dtype: checkpoints.Dtype = None,
    shard_size: checkpoints.ShardSize = "5GB",
    allow_missing: checkpoints.AllowMissing = None,
    threads: checkpoints.Threads = None,
    device: checkpoints.Device = "cpu",
    dry_run: checkpoints.DryRun = False,
) -> None:
    """Fuse adapters into one, exactly or with a stated error; with --full, checkpoints or adapters into a model."""
    from tangora.support.files import refuse_existing

    refuse_existing(out, overwrite)
    options, numbers = parse_parameters(parameters), parse_weights(weights)
    machine = checkpoints.FullOptions(base, dtype, shard_size, tuple(allow_missing or ()), threads, device, dry_run)
    settings: dict[str, Any] = {"seed": seed, "space": space, "same_base": same_base, "heads": heads}
    if full:
        checkpoints.refuse_of_adapters(rank, statistics)
        settings |= {**options, "overwrite": overwrite, "verify": verify}
        checkpoints.fuse_full(adapters, out, method, numbers, machine, settings)
        return
    machine.refuse_without_full()
    settings |= {"rank": rank, "statistics": statistics, "base": base}
    fusing.fuse_adapters(
        adapters, out, method, numbers, parameters=options, overwrite=overwrite, verify=verify, **settings
    )


@app.command()
def statistics(
    recipe: RecipeArgument,
    adapter: collecting.AdapterArgument,
    out: Annotated[Path, typer.Option("--out", help="A .safetensors file; a .json is written beside it.")],
    task: Annotated[str | None, typer.Option("--task", help="Which of the recipe's tasks; the adapter's own.")] = None,
    kinds: collecting.Kinds = None,
    split: collecting.SplitName = "train",
    rows: collecting.Rows = 1000,
    batch_size: collecting.BatchSize = 16,
    also: collecting.Also = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Collect what regmean and fisher must know of an expert's data, to fuse without data or base afterwards."""
    loaded = _load(recipe, settings)
    collecting.write_statistics(loaded, adapter, out, task, kinds, split, rows, batch_size, also, overwrite)


@app.command()
def evaluate(
    recipe: RecipeArgument,
    adapters: Annotated[list[Path] | None, typer.Argument(metavar="[ADAPTER]...", help="None: the base alone.")] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    settings: Settings = None,
) -> None:
    """Score adapters, and the base model itself, on the tasks of a recipe."""
    if split not in SPLITS:
        raise RecipeError("no such split", got=split, where="--split", fix=f"give one of {', '.join(SPLITS)}")
    loaded = _load(recipe, settings)
    from tangora.adapters.adapter import load
    from tangora.evaluation.evaluator import Evaluator, scoring_key
    from tangora.runs.runner import prepare

    candidates = {str(path): load(path) for path in adapters or []}
    with bars() as progress:
        base, tasks = prepare(loaded, progress)
        evaluator = Evaluator(base, tasks, batch_size=loaded.evaluation.batch_size)
        names = [t.name for t in tasks]
        progress.begin(f"score on {split}", 1 + len(candidates))
        scores = {"zero-shot": evaluator.evaluate("zero_shot", lambda: None, names, split)}
        progress.advance()
        for path, adapter in candidates.items():
            scores[path] = evaluator.evaluate(scoring_key(adapter), _constant(adapter), names, split)
            progress.advance(detail=path)
        progress.end()
    show(score_table(scores, names, split))


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]) -> None:
    """Build a run's figures and report.html again from its tables."""
    if not (run / "scores.csv").is_file():
        raise RecipeError("not a run: scores.csv is missing", where=run, fix="give the folder that tangora run wrote")
    from tangora.report import build

    print(f"report: {build(run).resolve()}")


app.command("analyze")(analyzing.analyze)
app.command("explore")(exploring.explore)


@app.command()
def inspect(folders: inspecting.Folders, sites: inspecting.Sites = None, as_json: inspecting.AsJson = False) -> None:
    """Say what adapters and checkpoints are, and whether they can be fused, in which spaces and by which methods."""
    if code := inspecting.inspect_folders(folders, sites, as_json):
        raise typer.Exit(code)


@app.command()
def methods() -> None:
    """List the fusion methods: parameters, granularity, reference."""
    show(method_table())


def _load(recipe: str, settings: list[str] | None) -> Recipe:
    from tangora.config.recipe import load_recipe

    return load_recipe(recipe, settings or [])


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


if __name__ == "__main__":
    main()
