"""Ranks on the command line: a number or ``auto``, what a result's rank costs, and what a smaller one would leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.updates.update import Update

__all__ = ["RankCost", "chosen_error", "fused_cost", "largest_rank", "parse_rank", "rank_cost", "weights_size"]

_WORK = 2 * 10**11  # multiplications; beyond that, only some sites are looked at
_SHOWN = 2  # smaller ranks


def parse_rank(text: str | None) -> int | Literal["auto"] | None:
    """Parse a rank.

    Raises:
        ArgumentError: it is neither ``auto`` nor a whole number of at least 1.
    """
    if text is None or text == "auto":
        return text  # type: ignore[return-value]  # mypy does not narrow to the literal
    if not text.isdigit() or int(text) < 1:
        fix = "give a number such as 16, or auto for the least rank under a bound"
        raise ArgumentError("a rank is auto, or a whole number of at least 1", got=text, where="--rank", fix=fix)
    return int(text)


def chosen_error(error: float | None, rank: int | Literal["auto"] | None) -> float:
    """Return the bound of ``--rank auto``.

    Raises:
        ArgumentError: a bound is given without ``--rank auto``.
    """
    from tangora.fusion.cutting import ERROR  # deferred: --help needs no torch

    if error is not None and rank != "auto":
        fix = "give --rank auto, or leave it out"
        raise ArgumentError("a bound for --rank auto", got=error, where="--error", fix=fix)
    return ERROR if error is None else error


@dataclass(frozen=True)
class RankCost:
    """What a result's rank costs.

    Attributes:
        ranks: the different ranks of the sites, ascending.
        size: bytes of the file.
        times: the size in multiples of the inputs' largest; None if it is not known.
        smaller: a smaller rank -> the relative error over all sites if it cut them.
        sampled: the number of sites that the errors are from; None for all.
        sites: the number of sites.
    """

    ranks: list[int]
    size: int
    times: float | None
    smaller: Mapping[int, float]
    sampled: int | None
    sites: int

    def line(self, of: str = "the largest input", option: str = "--rank {}") -> str:
        """Return one line for a person.

        Args:
            of: what ``times`` is of.
            option: how a smaller rank is asked for.
        """
        from tangora.support.sizes import size_text  # deferred: --help needs none of it

        rank = f"{self.ranks[0]}" if len(self.ranks) == 1 else f"{self.ranks[0]} to {self.ranks[-1]}"
        parts = [f"rank {rank}" if self.ranks else "no factors", size_text(self.size)]
        if self.times is not None:
            parts.append(f"{self.times:.2g} x {of}")
        costs = [f"{option.format(r)} would leave {_error(e)}" for r, e in self.smaller.items()]
        some = f" (at {self.sampled} of {self.sites} sites)" if self.sampled is not None and costs else ""
        return "; ".join([", ".join(parts), *([" and ".join(costs) + some] if costs else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` has."""
        smaller = {str(rank): error for rank, error in self.smaller.items()}
        return {"size": self.size, "times_largest_input": self.times, "smaller_ranks": smaller}


def _error(error: float) -> str:
    return "no error" if error < 1e-6 else f"an error of {error:.2g}"


def weights_size(path: Path) -> int | None:
    """Return the bytes of an adapter's weights: of a single file, or of peft's or mlx-lm's in a folder; else None."""
    files = (path, path / "adapter_model.safetensors", path / "adapters.safetensors")
    return next((file.stat().st_size for file in files if file.is_file()), None)


def rank_cost(
    updates: Mapping[str, Update],
    size: int,
    inputs: Sequence[int | None],
    natural: int | None = None,
    errors: Mapping[str, float] | None = None,
) -> RankCost:
    """Measure what the ranks of a result cost.

    Args:
        updates: of the result; those with factors count.
        size: bytes of its file.
        inputs: bytes of the inputs' files, as far as they are known.
        natural: a rank to compare with, such as that of the inputs.
        errors: site -> the relative error that it has already.
    """
    from tangora.adapters.initial import seed_of  # deferred: --help needs no torch
    from tangora.updates.ranks import error_at, least_rank, spectra_of, work

    factored = {site: update for site, update in updates.items() if update.factors() is not None}
    works = {site: work(f) for site, update in factored.items() if (f := update.factors()) is not None}
    left, chosen = _WORK, list[str]()
    for site in sorted(works, key=lambda one: seed_of("ranks", one)):
        if works[site] <= left or not chosen:
            chosen.append(site)
            left -= works[site]
    ranks = sorted({f.rank for update in factored.values() if (f := update.factors()) is not None})
    known = [one for one in inputs if one]
    times = size / max(known) if known and len(known) == len(inputs) else None
    if not ranks:
        return RankCost(ranks, size, times, {}, None, 0)
    spectra = spectra_of({site: factored[site] for site in chosen})
    enough = max(min(least_rank(values, 1e-6), len(values)) for values in spectra.values())
    tried = sorted({r for r in (enough, natural or 0, ranks[-1] // 2) if 0 < r < ranks[-1]}, reverse=True)[:_SHOWN]
    smaller = {rank: error_at(spectra, rank, errors) for rank in tried}
    sampled = None if len(chosen) == len(factored) else len(chosen)
    return RankCost(ranks, size, times, smaller, sampled, len(factored))


def fused_cost(fused: Adapter, out: Path, inputs: Sequence[Path]) -> RankCost | None:
    """Measure what the rank of a written adapter costs; None if it has no factors.

    Args:
        fused: the adapter.
        out: its folder, in which dense updates are factors.
        inputs: the folders of the adapters that it was made of.
    """
    from tangora.adapters.adapter import load  # deferred: --help needs no torch

    size = weights_size(out)
    if size is None or not fused.metadata.of_kind.in_peft:
        return None
    about = fused.metadata.fused
    known = all(update.factors() is not None or len(update.shape) == 1 for update in fused.updates.values())
    updates = fused.updates if known else load(out, lazily=True).updates
    read = [weights_size(folder) for folder in inputs]
    trained = fused.metadata.polished is not None  # then nothing is left of what was cut
    errors = None if about is None or trained else about.site_errors
    return rank_cost(updates, size, read, largest_rank(inputs), errors)


def largest_rank(inputs: Sequence[Path]) -> int | None:
    """Return the largest rank in the LoRA configurations of the inputs; None if none is peft's.

    The ``r`` of other kinds is no rank: OFT counts blocks by it, and VeRA's default is 256.
    """
    from tangora.support.files import read_json  # deferred: --help needs none of it

    ranks = []
    for folder in inputs:
        path = folder / "adapter_config.json"
        config = read_json(path) if path.is_file() else {}
        if config.get("peft_type", "LORA") == "LORA":
            ranks += [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    return max((rank for rank in ranks if isinstance(rank, int)), default=None)
