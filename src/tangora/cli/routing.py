"""What `tangora fuse` does if the method is a router: experts and the router become one routed adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tangora.cli.learning import learn, learned_lines
from tangora.errors import ArgumentError
from tangora.support.sizes import size_text

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.cli.fuse import FuseOptions
    from tangora.cli.output import Output

__all__ = ["is_router", "route_adapters", "routed_lines"]

_PEFT = "plain peft does not load it: use tangora predict or evaluate, tangora.predictor or tangora.load_model"


def is_router(method: str) -> bool:
    """Return whether a method's name is that of a router."""
    from tangora.support.seams import ROUTERS  # deferred: --help needs no registry

    return method in ROUTERS


def route_adapters(options: FuseOptions, output: Output) -> None:
    """Route the adapters, write the result unless it is a dry run, and print what it is."""
    settings = options.settings()
    from tangora.fusion.routed import refuse_of_methods, route_settings, routed  # deferred: --help needs no torch
    from tangora.support.seams import ROUTERS

    given = {"weights": options.weights, "rank": options.rank or options.error, "space": options.space}
    refuse_of_methods(options.method, **given, statistics=options.statistics)
    _refuse_of_files(options)
    chosen = route_settings(options.method, settings, where="--set")
    fusion = options.fusion()
    if ROUTERS.get(options.method).needs == "rows":
        learned = learn(options, fusion, chosen, output)
        if learned is None:
            return
        made = learned
    else:
        options.refuse_rows()
        made = routed(fusion, chosen, where="--method")
    if not options.dry_run:
        from tangora.checkpoints.beside_adapters import beside_adapters  # deferred: with the reader of tokenizers

        beside, _ = beside_adapters(options.adapters)
        made.save(options.out, overwrite=options.overwrite, beside=beside)
    output.result(_document(made, options), *routed_lines(made, options))


def _refuse_of_files(options: FuseOptions) -> None:
    """Refuse how only the files of plain adapters can be written."""
    for name, value in {"--uniform": options.uniform, "--dtype": options.dtype}.items():
        if value:
            what = f"{options.method} is a router, and its adapter has a format of its own, in float32"
            raise ArgumentError(what, got=value, where=name, fix=f"leave {name} out")


def routed_lines(made: Adapter, options: FuseOptions) -> Iterator[str]:
    """What was routed, or would be, line by line."""
    from tangora.inspection.routed import routed_summary  # deferred: --help needs none of it

    summary = routed_summary(made.metadata, {name: update.shape for name, update in made.updates.items()})
    assert summary is not None
    count = f"{len(options.adapters)} adapter{'s' if len(options.adapters) > 1 else ''}"
    yield f"{'would route' if options.dry_run else 'routed'} {count} by {options.method}"
    yield from summary.lines()
    yield from learned_lines(made.metadata.fused)
    yield f"size: {size_text(_size(made))}"
    if not options.dry_run:
        yield _PEFT
        yield f"adapter: {options.out.resolve()}"


def _size(made: Adapter) -> int:
    return sum(4 * update.dense().numel() for update in made.updates.values())


def _document(made: Adapter, options: FuseOptions) -> dict[str, Any]:
    from tangora.inspection.routed import routed_summary  # deferred: as above

    summary = routed_summary(made.metadata, {name: update.shape for name, update in made.updates.items()})
    about = made.metadata.fused
    assert about is not None
    assert summary is not None
    return {
        **about.model_dump(mode="json", include={"method", "parents", "parameters", "seed", "selection"}),
        **summary.to_dict(),
        "size": _size(made),
        "dry_run": options.dry_run,
        "adapter": options.out,
    }
