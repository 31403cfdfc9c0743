"""``tangora push``: a folder onto the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tangora.cli.command import Command
from tangora.cli.options import Options
from tangora.cli.output import Output

if TYPE_CHECKING:
    from tangora.adapters.pushing import Pushed

__all__ = ["COMMAND", "PushOptions", "push"]


@dataclass(frozen=True, kw_only=True)
class PushOptions(Options):
    """The folder and its place."""

    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An adapter or a checkpoint.")]
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="On the Hub: org/name; made if need be.")]
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Made if need be; default: main.")
    ] = None
    message: Annotated[str | None, typer.Option("--message", metavar="TEXT", help="Of the commit.")] = None
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="The base's name on the Hub, in place of a local folder's."),
    ] = None


def push(options: PushOptions, output: Output) -> None:
    """Publish an adapter or a checkpoint on the Hub, with its card, in one commit; nothing there is deleted.

    The folder is checked first: it must be whole, without pickles, and its card and records must not name paths of this
    machine. Log in with [bold]hf auth login[/bold], or set HF_TOKEN.
    """
    from tangora.adapters.pushing import push as upload  # deferred: imports torch

    with output.progress() as progress:
        pushed = upload(
            options.folder,
            options.repository,
            private=options.private,
            revision=options.revision,
            message=options.message,
            base=options.base,
            progress=progress,
        )
    output.result(asdict(pushed), *_lines(pushed))


def _lines(pushed: Pushed) -> Iterator[str]:
    if pushed.left_out:
        yield f"not uploaded, since it is no part of it: {', '.join(pushed.left_out)}"
    if pushed.also_there:
        yield f"also in the repository, and left there: {', '.join(pushed.also_there)}"
    yield f"pushed {len(pushed.files)} files: {pushed.source}"
    yield pushed.url


COMMAND = Command(push, example="tangora push fused me/fused --private")
