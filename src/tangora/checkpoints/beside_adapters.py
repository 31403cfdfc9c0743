"""Choose the files that a fused adapter takes over from its parents: a tokenizer and chat templates that all have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tangora.checkpoints.carried import is_tokenizer, same_content, small_files

__all__ = ["beside_adapters"]


def beside_adapters(parents: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """Return path in the output -> file to copy, and notes on what was chosen and what is left out.

    The files of a tokenizer belong together: all are taken over, or none. Two versions of one are not compared by their
    tokens, since no tensor shows which of them the fused adapter needs.

    Raises:
        FileError: a file leads out of its folder.
    """
    theirs = [dict(_of_tokenizer(parent)) for parent in parents]
    names = sorted({name for files in theirs for name in files})
    if not names:
        return {}, []
    differing = [name for name in names if not _is_common(name, theirs)]
    if not differing:
        return theirs[0], ["the tokenizer is the one that all adapters have"]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    why = f"not all adapters have the same {differing[0]}"
    return {}, [f"the adapters' tokenizers are left out, since {why}: {shown}"]


def _of_tokenizer(parent: Path) -> Iterator[tuple[str, Path]]:
    if parent.is_dir():  # a format of another package may be one file
        yield from ((name, path) for name, path in small_files(parent).items() if is_tokenizer(name))


def _is_common(name: str, theirs: Sequence[dict[str, Path]]) -> bool:
    first, *rest = (files.get(name) for files in theirs)
    return first is not None and all(other is not None and same_content(first, other) for other in rest)
