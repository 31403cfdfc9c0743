"""Write a fused adapter, in its format, after a comparison of what is read from its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.cli.fuse import FuseOptions
    from tangora.fusion.fusion import Fusion
    from tangora.fusion.verification import Verification

__all__ = ["Written", "saved"]


@dataclass(frozen=True)
class Written:
    """What was written: the adapter, the result of its verification, the error of its dtype, and notes."""

    adapter: Adapter
    verification: Verification | None
    rounding_error: float | None
    notes: Sequence[str]


def saved(fused: Adapter, fusion: Fusion, options: FuseOptions) -> Written:
    """Write the adapter; compare what is read from its files before they appear, unless that is turned off."""
    from tangora.adapters.saving import is_file_name, target_format  # deferred: imports torch
    from tangora.adapters.stored import dtype_of, rounded, with_one_rank
    from tangora.checkpoints.beside_adapters import beside_adapters  # deferred: with the reader of tokenizers

    verifications: list[Verification] = []
    format_ = target_format(fused, options.out, options.format)
    in_file = is_file_name(options.out)
    beside, notes = ({}, list(_trained_on(fused))) if in_file else beside_adapters(options.adapters)
    recorded = {task for adapter in fusion.adapters for task in adapter.records}
    if lost := sorted(recorded - fused.records.keys()):
        notes.append(f"without a record for prediction, since the adapters differ in it: {', '.join(lost)}")
    exact = with_one_rank(fused) if options.uniform else fused
    exact = format_.prepare(exact) if hasattr(format_, "prepare") else exact
    written, errors = exact, dict[str, float]()
    if options.dtype is not None and dtype_of(options.dtype) != dtype_of("float32"):
        written, errors = rounded(exact, dtype_of(options.dtype))

    def check(adapter: Adapter, place: Path) -> Mapping[str, Any]:
        from tangora.fusion.file_verification import verify_file  # deferred: imports torch
        from tangora.fusion.sources import SourceAdapter
        from tangora.fusion.verification import verify  # deferred: imports peft

        sources = [SourceAdapter(a, f) for a, f in zip(fusion.adapters, options.adapters, strict=True)]
        in_peft = format_.name == fused.metadata.of_kind.format
        verified = verify(exact if errors else adapter, place, sources, errors) if in_peft else None
        verifications.append(verified or verify_file(fused, place, sources, errors))
        return verifications[0].to_dict()

    checked = check if options.verify and fused.metadata.of_kind.in_peft else None
    written.save(options.out, options.overwrite, check=checked, format=options.format, beside=beside)
    error = max(errors.values(), default=None) if errors else None
    verification = verifications[0] if verifications else None
    return Written(written, verification, error, [*_notes(options.out), *notes])


def _trained_on(fused: Adapter) -> Iterator[str]:
    """Yield the checkpoints that single files were trained on, if they record different ones."""
    file = fused.details.file
    parents = file.parents if file is not None else {}
    known = {name: about["ss_sd_model_name"] for name, about in parents.items() if "ss_sd_model_name" in about}
    if len(set(known.values())) > 1:
        yield f"trained on different checkpoints: {', '.join(f'{name} on {of}' for name, of in known.items())}"


def _notes(out: Path) -> Iterator[str]:
    """Yield what a reader of the adapter must support."""
    from tangora.support.files import read_json  # deferred: --help needs none of it

    path = out / "adapter_config.json"
    config = read_json(path) if path.is_file() else {}
    if patterns := [name for name in ("rank_pattern", "alpha_pattern") if config.get(name)]:
        what = "ranks or scalings differ between sites: only a reader of"
        yield f"{what} {' and '.join(patterns)}, as peft is, computes this; --uniform writes one rank and one alpha"
    elif config.get("use_rslora"):
        what = "alpha is divided by the root of the rank: only a reader of use_rslora"
        yield f"{what}, as peft is, computes this; --uniform writes it without"
