"""The program: its commands in order, and how it begins and ends.

Only the command that is called is imported; for the others, `LISTED` has what ``tangora --help`` prints.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tangora.cli.command import Command, without_types
from tangora.cli.exits import end
from tangora.cli.terminal import printing, show

__all__ = ["LISTED", "app", "command", "main"]

LISTED = {
    "Fuse and merge": {
        "fuse": "Fuse adapters of one base model into one adapter, exactly or with a stated error; no base model is "
        "loaded.",
        "merge": "Merge adapters into their base model, or fine-tuned checkpoints into one; the result is a full "
        "checkpoint.",
        "extract": "Extract a LoRA from a full fine-tuned checkpoint: the best of its rank, with its error stated and "
        "verified.",
        "tune": "Choose coefficients for existing adapters on your own rows, fuse them, and show what each task keeps.",
        "polish": "Train a fused adapter towards its experts' answers on rows without labels, at a fixed rank.",
        "statistics": "Collect the statistics of an expert's data (Gram, Fisher) that regmean and fisher need.",
    },
    "Serve": {
        "export": "Write an adapter in the form that a server reads: vLLM, TGI, llama.cpp, Ollama, peft.",
    },
    "Share": {
        "push": "Publish an adapter or a checkpoint on the Hub, with its card, in one commit; nothing there is "
        "deleted.",
    },
    "Predict": {
        "predict": "Answer new rows with an adapter, as it was trained and scored.",
    },
    "Recipes": {
        "new": "Write a recipe with comments for rows of your own, after a look at them.",
        "recipe": "List or show the bundled recipes, list every key of a recipe, or print a JSON Schema of recipes.",
        "run": "Fine-tune every task in every mode, fuse every subset, score, and write a report.",
        "finetune": "Fine-tune one adapter of a recipe.",
        "distill": "Train a plain LoRA (or L-LoRA) adapter whose features follow those of a tangent adapter, or of "
        "several.",
        "evaluate": "Score adapters, and the base model itself, on the tasks of a recipe.",
    },
    "Look into a run": {
        "report": "Build a run's figures and report.html again from its tables.",
        "table": "Print the scores of one or several runs as a table for a paper: Markdown, LaTeX or CSV.",
        "compare": "Test two runs, or the methods of one, against each other on the same test rows.",
        "analyze": "Look into a run's experts: do they disentangle, conflict, overlap, behave linearly? Adds it to the "
        "report.",
        "explore": "Write the fusion explorer: a page with a slider for each task vector, and exact scores at every "
        "move.",
        "status": "Print what is done of a run, what runs where, and what is left.",
        "jobs": "List the jobs of a run: key, kind, what it is about, and whether its files are there.",
        "job": "Do one job of a run, unless its files are there.",
    },
    "Look up": {
        "inspect": "Describe adapters and checkpoints, and whether they can be fused, in which spaces and by which "
        "methods.",
        "methods": "List the fusion methods: what each does, its parameters and default weight, and its paper; and the "
        "routers.",
        "plugins": "List methods, families, metrics, modes, formats, spaces, searches, routers and executors, and "
        "where each is from.",
    },
}
"""The commands by panel of the help, each with the first paragraph of its own help; its file has its name."""


class Program(TyperGroup):
    """The group of all commands: each is listed by its summary, and imported when it is called."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        with printing():
            super().format_help(ctx, formatter)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options of the program itself."""
        return without_types(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name, the command with its options, and the arguments that are left for it."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed if name is None else command(name).built(), rest


def command(name: str) -> Command:
    """Return the command of that name."""
    found: Command = import_module(f"tangora.cli.{name}").COMMAND
    return found


app = typer.Typer(
    name="tangora",
    cls=Program,
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
    version: Annotated[bool, typer.Option("--version", metavar="", help="Show the version and stop.")] = False,
) -> None:
    if version:
        from tangora.support.version import package_version  # deferred: only here

        show(f"tangora {package_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.get_help()  # prints it
        raise typer.Exit


def _listed() -> None:
    """Stands in the list for a command, which is called in its place."""


for _panel, _summaries in LISTED.items():
    for _name, _summary in _summaries.items():
        app.command(_name, help=_summary, rich_help_panel=_panel)(_listed)


if __name__ == "__main__":
    main()
