"""``tangora fuse`` of adapters: fused, written, verified, told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangora.cli.terminal import fused_lines, show

if TYPE_CHECKING:
    from tangora.fusion.verification import Verification
    from tangora.fusion.weights import Table

__all__ = ["Verify", "fuse_adapters"]

Verify = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Of adapters: read the output again and compare it in float64.")
]


def fuse_adapters(
    folders: Sequence[Path],
    out: Path,
    method: str,
    weights: Table | float | None,
    *,
    rank: int | None,
    parameters: Mapping[str, Any],
    overwrite: bool,
    verify: bool,
    **settings: Any,
) -> None:
    """Fuse, and say what came of it.

    Args:
        folders, method, weights, rank, parameters: see `tangora.fuse`.
        out, overwrite: where it goes.
        verify: whether to read it again through stock peft, before it appears.
        settings: of `tangora.fusion.fusion.Fusion`.
    """
    from tangora.fusion.fusion import Fusion
    from tangora.fusion.statistics import refuse_superfluous
    from tangora.methods import get

    fusion = Fusion(list(folders), **settings)
    refuse_superfluous(fusion.statistics, get(method), fusion.adapters, fusion.names)
    fused = fusion.merge(method, weights, parameters, rank)
    found: list[Verification] = []

    def check(adapter: Any, folder: Path) -> Mapping[str, Any]:
        from tangora.fusion.verification import Parent, verify

        pairs = zip(fusion.adapters, folders, strict=True)
        found.append(verify(adapter, folder, [Parent(a, f) for a, f in pairs]))
        return found[0].told()

    checked = verify and fused.metadata.of_kind.in_peft
    fused.save(out, overwrite=overwrite, check=check if checked else None)
    show(*fused_lines(fused, out), *_verified_lines(found))


def _verified_lines(found: Sequence[Verification]) -> Iterator[str]:
    for verification in found:
        yield f"verified in {verification.seconds:.1f} s: {verification.words()}"
