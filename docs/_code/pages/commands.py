"""The reference of the command line: every command with all its arguments and options, as typer has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pages.prose import cell, table
from tangora.cli.commands import LISTED, command

__all__ = ["page"]

_INTRO = "`tangora COMMAND --help` prints the same. Progress and notes go to stderr, results to stdout."
_EXITS = """
| code | meaning |
| --- | --- |
| 0 | done |
| 1 | a bug: the traceback is printed, or its log file named |
| 2 | something to put right: the last line on stderr says what, where and how |
| 130 | interrupted by Ctrl-C; the same command goes on where it stopped |
"""


def page() -> tuple[str, str]:
    """Return the path and the text of the page."""
    parts = [
        "# Command line",
        "`tangora COMMAND --help` prints the same. Progress and notes go to stderr, results to stdout.",
    ]
    parts += ["## Exit codes", _EXITS.strip()]
    for panel, names in LISTED.items():
        parts += [f"## {panel}", *(_command(name) for name in names)]
    return "reference/command-line.md", "\n\n".join(parts) + "\n"


def _command(name: str) -> str:
    built, own = command(name).built(), command(name)
    arguments = [one for one in built.params if _is_argument(one)]
    options = [one for one in built.params if not _is_argument(one) and not one.hidden]
    usage = " ".join(["tangora", name, *map(_placeholder, arguments), "[OPTIONS]"])
    parts = [f"### {name}", *map(_plain, own.help), f"```console\n$ {usage}\n```"]
    if arguments:
        parts.append(
            table(("argument", "meaning"), [(f"`{one.metavar}`", cell(_plain(one.help or ""))) for one in arguments])
        )
    parts.append(table(("option", "default", "meaning"), map(_row, options)))
    examples = "\n".join(f"$ {line}" for line in dict.fromkeys([own.example, *own.examples.values()]))
    parts.append(f"```console\n{examples}\n```")
    return "\n\n".join(part.strip("\n") for part in parts)


def _is_argument(one: Any) -> bool:
    return bool(one.param_type_name == "argument")


def _placeholder(one: Any) -> str:
    shown = one.metavar + ("..." if one.nargs == -1 and not one.metavar.endswith("...") else "")
    return shown if one.required else f"[{shown}]"


def _row(one: Any) -> tuple[str, str, str]:
    names = [*one.opts, *one.secondary_opts]
    flags = ", ".join(f"`{name}`" for name in names)
    if one.metavar:
        flags = ", ".join(f"`{name} {one.metavar}`" if name.startswith("--") else f"`{name}`" for name in names)
    return cell(flags), _default(one), cell(_plain(one.help or ""))


def _default(one: Any) -> str:
    if one.required:
        return "required"
    flag = isinstance(one.default, bool) or one.default in (None, "", [], ())
    return "" if flag else f"`{cell(str(one.default))}`"


def _plain(text: str) -> str:
    """A help text as Markdown: rich's bold words are code, and nothing else is markup."""
    kept = re.split(r"(\[bold\].*?\[/bold\])", text)
    return "".join(_code(part) if part.startswith("[bold]") else _escaped(part) for part in kept)


def _code(part: str) -> str:
    return f"`{part.removeprefix('[bold]').removesuffix('[/bold]')}`"


def _escaped(text: str) -> str:
    return (
        re.sub(r"(?<!\w)(--[a-z][a-z-]*)", r"`\1`", text.replace("\\[", "[")).replace("*", r"\*").replace("<", "&lt;")
    )


def _all_parameters() -> Iterator[tuple[str, Any]]:
    """Every command's name with each of its parameters; for the test that none is left out."""
    for names in LISTED.values():
        for name in names:
            yield from ((name, one) for one in command(name).built().params)
