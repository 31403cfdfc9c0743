"""``tangora plugins``: list the members of every extension point, and the package of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import Options
from tangora.cli.output import Output
from tangora.errors import ArgumentError

__all__ = ["COMMAND", "PluginsOptions", "members", "plugins"]


@dataclass(frozen=True, kw_only=True)
class PluginsOptions(Options):
    """The kinds to list."""

    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KIND", help="Such as methods or families; default: all.", autocompletion=completion.kinds
        ),
    ] = None


def plugins(options: PluginsOptions, output: Output) -> None:
    """List methods, families, metrics, modes, formats, spaces, searches, routers and executors, and where each is from.

    Parts of other packages are found through their entry points.
    """
    from rich.table import Table  # deferred: --help of the program prints none

    for kind in options.kinds or ():
        if kind not in completion.KINDS:
            from tangora.support.validation import did_you_mean  # deferred: only for a wrong name

            fix = did_you_mean(kind, list(completion.KINDS))
            raise ArgumentError("no such kind of plugin", got=kind, where="plugins", fix=fix)
    known = {kind: members(kind) for kind in options.kinds or completion.KINDS}
    table = Table(box=None, header_style="bold")
    table.add_column("kind", no_wrap=True)
    table.add_column("name", overflow="fold")
    table.add_column("from", overflow="fold")
    for kind, origins in known.items():
        for index, (name, origin) in enumerate(origins.items()):
            table.add_row("" if index else kind, name, origin)
    output.result(known, table)


def members(kind: str) -> dict[str, str]:
    """Return name -> package of every member of a kind; only fusion methods are imported."""
    from tangora.support import seams  # deferred: --help needs no registry

    if kind == "methods":
        from tangora.methods import methods  # deferred: imports torch with them

        return {name: method.function.__module__ for name, method in methods().items()}
    return getattr(seams, kind.upper()).origins()  # type: ignore[no-any-return]


COMMAND = Command(plugins, example="tangora plugins methods searches")
