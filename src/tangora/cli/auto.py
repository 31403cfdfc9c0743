"""What `tangora fuse --auto` does: the recommended way to one adapter for what is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from tangora.cli.polish import PolishOptions, polish
from tangora.errors import AdapterError, ArgumentError

if TYPE_CHECKING:
    from tangora.cli.fuse import FuseOptions
    from tangora.cli.output import Output

__all__ = ["GENERATIVE", "METHOD", "WEIGHT", "advice", "polish_instead", "recommended", "refuse_choices"]

METHOD, WEIGHT = "mean_norm", 1.3
"""What is recommended without rows: docs/quality.md."""
GENERATIVE = "tsv_m", 1.0
"""What is recommended without rows for adapters that generate text."""
_GENERATING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")  # values of peft's task_type
_CHOSEN = "chosen by --auto"
_MORE = "with rows of the tasks' inputs, --data NAME=FILE, a polish keeps more"
POLISH = {"steps": 200, "temperature": 2.0}
"""What is recommended with rows of the tasks' inputs: docs/quality.md."""
_RANKS = 2
_PLAIN = ("format", "uniform", "dtype", "statistics", "error", "heads", "space", "verify")


def refuse_choices(options: FuseOptions) -> None:
    """Refuse what ``--auto`` chooses itself, and a single adapter.

    Raises:
        ArgumentError: names the option.
    """
    if len(options.adapters) < 2:
        fix = "give two adapters or more; without --auto, a single one may be weighted"
        raise ArgumentError("there is nothing to choose", got=len(options.adapters), where="--auto", fix=fix)
    given = {"--method": options.method != type(options).method, "--weights": options.weights is not None}
    for name, is_given in {**given, "--set": bool(options.parameters)}.items():
        if is_given:
            fix = f"leave {name} out, or --auto"
            raise ArgumentError("--auto chooses method, weights and parameters", got=name, where="--auto", fix=fix)
    if options.dry_run and not (options.data or options.recipe or options.full):
        fix = "leave --dry-run out: without rows nothing is trained, and the fusion takes seconds"
        raise ArgumentError("there is nothing to plan", got="--dry-run", where="--auto", fix=fix)


def recommended(adapters: Sequence[Path]) -> tuple[str, float]:
    """Return method and weight by what the adapters do, as their configurations say; other folders do not count."""
    from tangora.support.files import read_json  # deferred: --help needs none of it

    files = [adapter / "adapter_config.json" for adapter in adapters]
    kinds = [read_json(file, AdapterError).get("task_type") for file in files if file.is_file()]
    return GENERATIVE if kinds and all(kind in _GENERATING for kind in kinds) else (METHOD, WEIGHT)


def advice(adapters: Sequence[Path]) -> str:
    """Return what is said of the weights: who chose them, and for folders what keeps more."""
    return _CHOSEN if any(adapter.is_file() for adapter in adapters) else f"{_CHOSEN}; {_MORE}"


def polish_instead(options: FuseOptions, output: Output) -> None:
    """Polish with the rows that are given, at twice the largest rank of the experts unless ``--rank`` is given.

    Raises:
        ArgumentError: an option that the polish does not have.
    """
    if options.full:
        fix = "leave --full out; tangora merge merges the result into its base"
        raise ArgumentError("with rows, the result is polished: an adapter", got="--full", where="--auto", fix=fix)
    options.refuse_of_checkpoints()
    for field in fields(options):
        if field.name in _PLAIN and getattr(options, field.name) != field.default:
            name = "--no-verify" if field.name == "verify" else f"--{field.name}"
            fix = f"leave {name} out; tangora export writes other formats"
            raise ArgumentError("with rows, the result is polished: a plain LoRA", got=name, where="--auto", fix=fix)
    shared = ("adapters", "out", "data", "recipe", "recipe_settings", "trust_remote_code", "same_base")
    given = {name: getattr(options, name) for name in (*shared, "seed", "overwrite", "dry_run")}
    settings = [f"{name}={value}" for name, value in POLISH.items() if name != "steps"]
    base, rank = None if options.base is None else str(options.base), _rank(options)
    polish(PolishOptions(**given, base=base, rank=rank, steps=int(POLISH["steps"]), settings=settings), output)


def _rank(options: FuseOptions) -> int:
    """Return the rank that is given, or twice the largest of the LoRA experts, or the polish's own default."""
    from tangora.cli.ranks import largest_rank, parse_rank  # deferred: with what reads adapters

    rank = parse_rank(options.rank)
    if rank == "auto":
        fix = "give a number, or leave --rank out"
        raise ArgumentError("a polish has a fixed rank", got=rank, where="--rank", fix=fix)
    if rank is not None:
        return int(rank)
    return _RANKS * (largest_rank(options.adapters) or 0) or PolishOptions.rank
