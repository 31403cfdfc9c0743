"""``tangora export``: an adapter in the form that a server reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import FromHub, Options, OverwriteOption
from tangora.cli.output import Output

if TYPE_CHECKING:
    from tangora.serving.contract import Exported

__all__ = ["COMMAND", "ExportOptions", "export", "exported_lines"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """What is exported, for which server, and where it goes."""

    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="A folder, or org/name of the Hub."), FromHub("adapter")
    ]
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="SERVER",
            help="vllm, tgi, gguf (llama.cpp), ollama or peft.",
            autocompletion=completion.servers,
        ),
    ]
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="The folder; for gguf, the file.")]
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="BASE",
            help="The base model: a folder, or a name in the Hub's cache. Default: the one that the adapter names.",
        ),
    ] = None
    name: Annotated[
        str | None, typer.Option("--name", help="Of the adapter in requests. Default: the name of --out.")
    ] = None
    served: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="The base as the server has it: a GGUF file, a model of Ollama. Default: --base.",
        ),
    ] = None
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16; the error is printed.")] = (
        "float32"
    )
    overwrite: OverwriteOption = False


def export(options: ExportOptions, output: Output) -> None:
    """Write an adapter in the form that a server reads: vLLM, TGI, llama.cpp, Ollama, peft.

    The adapter is checked by the server's rules first. What the server would not compute exactly is refused, with the
    reason. The files are read again and compared, and the command that starts the server is printed.
    """
    from tangora.serving.exporting import export as write  # deferred: --help needs none of it

    exported = write(
        options.adapter,
        options.to,
        options.out,
        base=options.base,
        name=options.name,
        model=options.served,
        dtype=options.dtype,
        overwrite=options.overwrite,
    )
    output.result(vars(exported), *exported_lines(exported))


def exported_lines(exported: Exported) -> Iterator[str]:
    """What was written, line by line; the commands come last, ready to be copied."""
    sites = "1 site" if exported.sites == 1 else f"{exported.sites} sites"
    size = f"{exported.size / 1e6:.1f} MB" if exported.size >= 1e5 else f"{exported.size / 1e3:.1f} kB"
    yield f"{exported.to}: {sites}, rank {exported.rank}, scaling {exported.scaling:g}, {size}"
    yield from exported.notes
    if exported.rounding:
        yield f"rounding to its dtype: relative error {exported.rounding:.1e}"
    yield f"read again by {exported.checked}: largest relative difference {exported.difference:.1e}"
    yield f"adapter: {exported.out.resolve()}"
    if exported.start:
        yield "start it with:"
        yield from (f"  {command}" for command in exported.start)


COMMAND = Command(export, example="tangora export fused --to vllm --base base --out served")
