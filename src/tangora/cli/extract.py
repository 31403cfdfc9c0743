"""``tangora extract``: a LoRA from a full fine-tuned checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli.command import Command
from tangora.cli.options import FromHub, Options, OverwriteOption
from tangora.cli.output import Output
from tangora.cli.ranks import RankCost, parse_rank, rank_cost, weights_size

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.extracted import ExtractedInfo

__all__ = ["COMMAND", "ExtractOptions", "extract", "extracted_lines"]

_PARTS = "What is kept"


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(Options):
    """The two checkpoints, the ranks, and what becomes of layers that LoRA does not adapt."""

    tuned: Annotated[
        Path,
        typer.Argument(metavar="TUNED", help="The fine-tuned model: a full checkpoint, or org/name of the Hub."),
        FromHub("checkpoint"),
    ]
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="The model that it was tuned from."), FromHub("checkpoint")
    ]
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the adapter goes.")]
    rank: Annotated[
        str, typer.Option("--rank", "-r", help="Of each site; auto: the least with an error of at most --error.")
    ] = "auto"
    error: Annotated[float, typer.Option("--error", help="With --rank auto: the largest relative error of a site.")] = (
        0.05
    )
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="SIZE", help="With --rank auto: of all factors, such as 500MB."),
    ] = None
    dtype: Annotated[str, typer.Option("--dtype", help="Of the file: float32, bfloat16, float16.")] = "float32"
    overwrite: OverwriteOption = False
    embeddings: Annotated[
        str,
        typer.Option(
            "--embeddings",
            help="whole: embeddings and output heads as they are. lora: factors.",
            rich_help_panel=_PARTS,
        ),
    ] = "whole"
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            "--leave-out",
            metavar="NAME",
            help="A parameter to leave out; * stands for anything. Its share is printed.",
            rich_help_panel=_PARTS,
        ),
    ] = None
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Read the result again and compare it with both checkpoints.",
            rich_help_panel=_PARTS,
        ),
    ] = True


def extract(options: ExtractOptions, output: Output) -> None:
    """Extract a LoRA from a full fine-tuned checkpoint: the best of its rank, with its error stated and verified.

    The result is a plain PEFT adapter. Norms, embeddings and new heads that changed are saved whole in it, and what is
    left out is printed with its share of the change. Weights are read one pair at a time.
    """
    rank = parse_rank(options.rank)
    from tangora.extraction.extract import extract as make  # deferred: --help needs no torch

    with output.progress() as progress:
        adapter = make(
            options.tuned,
            options.base,
            options.out,
            rank="auto" if rank is None else rank,
            error=options.error,
            budget=options.budget,
            embeddings=options.embeddings,  # type: ignore[arg-type]  # another value is refused
            leave_out=options.leave_out or (),
            dtype=options.dtype,
            overwrite=options.overwrite,
            check=options.verify,
            progress=progress,
        )
    info = adapter.metadata.extracted
    assert info is not None
    checkpoint = sum(path.stat().st_size for path in options.tuned.glob("*.safetensors"))
    cost = rank_cost(adapter.updates, weights_size(options.out) or 0, [checkpoint], errors=info.site_errors)
    document = {**info.model_dump(mode="json"), **_document(adapter, cost), "verified": options.verify}
    lines = extracted_lines(info, adapter, cost)
    done = "verified: the files have the stated errors, against both checkpoints in float64; stock peft loads them"
    shown = [f"adapter: {options.out.resolve()}", *([done] if options.verify else [])]
    output.result({**document, "adapter": options.out}, *lines, *shown)


def extracted_lines(info: ExtractedInfo, adapter: Adapter, cost: RankCost) -> Iterator[str]:
    """What was extracted, line by line."""
    from tangora.support.sizes import size_text  # deferred: --help needs none of it

    yield f"extracted {len(info.site_errors)} sites of {info.tuned}"
    yield cost.line("the checkpoint")
    worst = max(info.site_errors, key=lambda site: info.site_errors[site], default="")
    yield f"relative error over the sites: {info.error:.3g}; the largest {info.site_errors[worst]:.3g}, at {worst}"
    if info.bound is not None and info.site_errors[worst] > info.bound:
        yield f"the budget of {size_text(info.budget or 0)} does not suffice for an error of {info.bound:g} at each"
    if info.whole:
        size = sum(value.numel() * value.element_size() for value in adapter.whole.values())
        shown = ", ".join(info.whole[:4]) + (f" and {len(info.whole) - 4} more" if len(info.whole) > 4 else "")
        yield f"saved whole, {size_text(size)}: {shown}"
    for name, share in info.left_out.items():
        yield f"left out: {name}, {share:.2g} of the change"
    yield f"relative error of the whole change: {info.total_error:.3g}"
    if info.rounding > 0.01:
        yield f"about {info.rounding:.2g} of the change, or more, is rounding in the checkpoint; less error copies it"


def _document(adapter: Adapter, cost: RankCost) -> dict[str, Any]:
    return {"sites": len(adapter.updates), "ranks": cost.ranks, **cost.to_dict()}


COMMAND = Command(
    extract,
    example="tangora extract tuned base --rank 64 --out adapter",
    examples={_PARTS: "tangora extract tuned base --error 0.1 --leave-out '*norm*' --embeddings lora --out adapter"},
)
