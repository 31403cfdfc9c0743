"""The program: its commands in order, and how it begins and ends."""

from __future__ import annotations

from typing import Annotated

import typer

from tangora.cli import (
    analyze,
    distill,
    evaluate,
    explore,
    finetune,
    fuse,
    inspect,
    job,
    jobs,
    merge,
    methods,
    plugins,
    report,
    run,
    statistics,
)
from tangora.cli.exits import end

__all__ = ["app", "main"]

COMMANDS = (
    fuse.COMMAND,
    merge.COMMAND,
    statistics.COMMAND,
    run.COMMAND,
    finetune.COMMAND,
    distill.COMMAND,
    evaluate.COMMAND,
    report.COMMAND,
    analyze.COMMAND,
    explore.COMMAND,
    jobs.COMMAND,
    job.COMMAND,
    inspect.COMMAND,
    methods.COMMAND,
    plugins.COMMAND,
)

app = typer.Typer(
    name="tangora",
    help="Tangent-space adapters that add up: fine-tune one adapter per task, fuse them exactly, show what was kept.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="[bold]Example[/bold]  tangora fuse adapters/sst2 adapters/snips --weights 0.5 --out fused",
)


def main() -> None:
    """Run the program: 0 done, 2 something to put right (one line says what), 130 interrupted, 1 a bug."""
    end(lambda: app(standalone_mode=False))


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    if version:
        from tangora.support.version import package_version  # deferred: only here

        print(f"tangora {package_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


for _command in COMMANDS:
    _command.register(app)


if __name__ == "__main__":
    main()
