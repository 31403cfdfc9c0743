"""A command is a function of typed options: `Command` makes the typer command from the options' dataclass.

A file of this package holds one command::

    @dataclass(frozen=True, kw_only=True)
    class GreetOptions(Options):
        name: Annotated[str, typer.Argument(metavar="NAME", help="Whom to greet.")]
        loud: Annotated[bool, typer.Option("--loud", help="In capitals.")] = False

    def greet(options: GreetOptions, output: Output) -> None:
        '''Greet somebody.'''
        output.result({"greeting": ...}, f"hello, {options.name}")

    COMMAND = Command(greet, example="tangora greet Ada --loud")

The fields of the dataclass are the arguments and options, in their order; those of `Options` come last.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand
from typer.main import get_command

from tangora.cli.exits import print_traceback, quiet_libraries
from tangora.cli.options import FromHub, Options
from tangora.cli.output import Output
from tangora.cli.terminal import printing
from tangora.errors import TangoraError

__all__ = ["Command", "without_types"]


@dataclass(frozen=True)
class Command:
    """One command of the program.

    Args:
        work: ``(options, output)``; its docstring is the help. What it returns is the exit code, None for 0.
        example: one line that a reader can adapt, shown below the options.
        examples: the same for groups of options other than "Options" and "Output", by their titles.
        hidden: options that are left out of the help.
    """

    work: Callable[[Any, Output], int | None]
    example: str
    examples: Mapping[str, str] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The name on the command line."""
        return self.work.__name__.removesuffix("_")

    @property
    def help(self) -> list[str]:
        """The paragraphs of the help."""
        return [" ".join(paragraph.split()) for paragraph in (inspect.getdoc(self.work) or "").split("\n\n")]

    def built(self) -> Any:
        """Return what typer calls: a command with options of the fields."""
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        lines = {"Example": self.example, **self.examples, "Output": f"{self.example} --json"}
        shown = "\n\n".join(f"[bold]{title}[/bold]  {line}" for title, line in lines.items())
        alone.command(self.name, help="\n\n".join(self.help), epilog=shown, cls=_Called)(self._typed())
        return get_command(alone)

    def _typed(self) -> Callable[..., None]:
        """A function with the signature that typer reads: one keyword for each field of the options."""
        kind: type[Options] = get_type_hints(self.work)["options"]

        def run(**values: Any) -> None:
            if code := self._run(kind(**values)):
                raise typer.Exit(code)

        run.__signature__ = inspect.Signature(list(self._parameters(kind)))  # type: ignore[attr-defined]
        run.__annotations__ = {}  # those of the signature count
        return run

    def _parameters(self, kind: type[Options]) -> Iterator[inspect.Parameter]:
        hints = get_type_hints(kind, include_extras=True)
        shared = {one.name for one in fields(Options)}
        for one in sorted(fields(kind), key=lambda one: one.name in shared):
            hint = self._shown(one.name, hints[one.name])
            yield inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=_default(one), annotation=hint)

    def _shown(self, name: str, hint: Any) -> Any:
        """The annotation of a field, with what its option is called in the help: nothing for a flag."""
        kind, (parameter, *marks) = hint.__origin__, hint.__metadata__
        if marks:  # a path would lose the ./ by which it is known as one
            kind = _TEXTS[kind]
        parameter = copy(parameter)
        parameter.hidden = name in self.hidden
        if parameter.metavar is None:
            parameter.metavar = "" if kind in (bool, bool | None) else name.upper()
        return Annotated[kind, parameter]

    def _run(self, options: Options) -> int | None:
        quiet_libraries(options.verbose)
        output = Output(options.json, options.quiet)
        try:
            return self.work(_with_paths(options, output), output)
        except TangoraError as error:
            if options.verbose:
                print_traceback(error)
            raise


_TEXTS: Mapping[Any, Any] = {
    Path: str,
    Path | None: str | None,
    list[Path]: list[str],
    list[Path] | None: list[str] | None,
}


def _with_paths(options: Options, output: Output) -> Options:
    """Return the options with the paths of folders that are named as on the Hub; those are fetched."""
    hints = get_type_hints(type(options), include_extras=True)
    marked = {name: mark for name, hint in hints.items() for mark in hint.__metadata__ if isinstance(mark, FromHub)}
    if not marked:
        return options
    from tangora.support.hub import hub_reference  # deferred: --help needs no names

    given = {name: getattr(options, name) for name in marked}
    texts = [text for value in given.values() for text in ([value] if isinstance(value, str) else value or ())]
    if not any(hub_reference(text) is not None for text in texts):
        return replace(options, **{name: _each(value, Path) for name, value in given.items()})
    from tangora.storage.hub import located  # deferred: most folders are here

    with output.progress() as progress:
        found = {
            name: _each(value, partial(located, purpose=marked[name].purpose, progress=progress))
            for name, value in given.items()
        }
    return replace(options, **found)


def _each(value: Any, of: Callable[[str], Path]) -> Any:
    if value is None or isinstance(value, str):
        return value and of(value)
    return [of(one) for one in value]


def without_types(parameters: Sequence[Any]) -> list[Any]:
    """Return the options of typer's own; the help names no type for a flag."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return list(parameters)


class _Called(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return without_types(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with printing():
            super().format_help(ctx, formatter)


def _default(one: Field[Any]) -> Any:
    return inspect.Parameter.empty if one.default is MISSING else one.default
