"""`export`: an adapter in the form that a server reads, checked by that server's rules."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tangora.errors import ArgumentError
from tangora.serving.contract import Exported, Order, Target
from tangora.support.files import refuse_existing, refuse_output

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.serving.base import ServedBase

__all__ = ["TARGETS", "export"]

TARGETS: Mapping[str, str] = {
    "gguf": "llama.cpp: one GGUF file",
    "ollama": "Ollama: a folder with a GGUF file and a Modelfile",
    "peft": "stock peft, and servers that read any folder of peft",
    "tgi": "Text Generation Inference: a folder of peft",
    "vllm": "vLLM: a folder of peft",
}
"""Name -> what it is for. Each is a module of `tangora.serving.targets`."""

_NAME = re.compile(r"[\w.@/+-]+")


def export(
    adapter: str | os.PathLike[str] | Adapter,
    to: str,
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    name: str | None = None,
    model: str | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Exported:
    """Write an adapter in the form that a server reads, or refuse it with the reason and the way out.

    The server computes exactly the adapter's updates. Factors are filled up with zeros to one rank; scalings that
    differ are multiplied into B, which rounds once. The files are read again and compared before they appear.

    Args:
        adapter: a folder, a name on the Hub, or an adapter in memory. Fuse several first, with `tangora.fuse`.
        to: ``vllm``, ``tgi``, ``gguf`` (llama.cpp), ``ollama`` or ``peft``.
        out: the folder; for ``gguf``, the file.
        base: the base model's folder, or its name on the Hub if its files are in the cache. By default the one that
            the adapter names. Only its configuration is read, except for adapters that depend on its weights.
        name: of the adapter in requests; the name of ``out`` by default.
        model: the base as the server has it, for the commands: a GGUF file for ``gguf``, a model's name for ``ollama``.
        dtype: of the factors: ``float32``, ``bfloat16`` or ``float16``, with the error stated.
        overwrite: replace an earlier output.

    Raises:
        ArgumentError: no such target, name or dtype, or no base is known.
        FileError: the adapter or the base's configuration cannot be read.
        AdapterError: the server cannot compute what the adapter is.
        OutputError: something is in the way.

    >>> export("adapters/one", "peft", "served").rank
    2
    """
    target, place = _target(to), Path(out)
    _refuse_place(target, place, overwrite, [path for path in (adapter, base) if isinstance(path, (str, os.PathLike))])
    chosen = _checked_name(name or place.name.removesuffix(".gguf"))
    source, served = _sources(adapter, None if base is None else os.fspath(base), target)

    from tangora.adapters.stored import dtype_of, rounded, with_one_rank  # deferred: imports torch
    from tangora.serving.base import with_names_of, without_unchanged  # deferred: as above
    from tangora.serving.plain import plain_lora  # deferred: as above

    wanted = dtype_of(dtype)
    plain, notes = plain_lora(source, to)
    if served is not None:
        plain, dropped = without_unchanged(served, with_names_of(served, plain))
        notes += dropped
    exact, more = target.prepare(plain, served)
    written, errors = with_one_rank(exact), dict[str, float]()
    if wanted != dtype_of("float32"):
        written, errors = rounded(written, wanted)
    result = target.write(
        Order(
            adapter=written,
            exact=exact,
            base=served,
            out=place,
            name=chosen,
            model=model,
            overwrite=overwrite,
            rounding=errors,
        )
    )
    factors = next(iter(written.updates.values())).factors()
    assert factors is not None
    return Exported(
        to=to,
        out=place,
        name=chosen,
        sites=len(written.updates),
        rank=factors.rank,
        scaling=factors.scaling,
        size=_size(place),
        rounding=max(errors.values(), default=0.0),
        difference=result.difference,
        checked=result.checked,
        start=list(result.start),
        notes=[*notes, *_unchecked(served), *more],
    )


def _target(to: str) -> Target:
    if to not in TARGETS:
        raise ArgumentError("no such target", got=to, where="--to", fix=f"give one of {', '.join(TARGETS)}")
    found: Target = import_module(f"tangora.serving.targets.{to}").TARGET
    return found


def _refuse_place(target: Target, out: Path, overwrite: bool, inputs: list[str | os.PathLike[str]]) -> None:
    if not target.is_file:
        refuse_output(out, overwrite, inputs)
        return
    if out.is_dir():
        fix = f"give a file: {out / 'adapter.gguf'}"
        raise ArgumentError(f"{target.name} writes one file, not a folder", got=str(out), where="--out", fix=fix)
    refuse_existing(out, overwrite, inputs)


def _checked_name(name: str) -> str:
    """Servers take ``name=path``, several of them divided by commas or spaces."""
    if not _NAME.fullmatch(name):
        fix = "give one of letters, digits and . _ - / + @, with --name or name="
        raise ArgumentError("a name that a server's command line cannot hold", got=name, where="--name", fix=fix)
    return name


def _sources(
    adapter: str | os.PathLike[str] | Adapter, base: str | None, target: Target
) -> tuple[Adapter, ServedBase | None]:
    """Read the adapter, with its base's weights only if the updates depend on them, and the base's configuration."""
    from tangora.adapters.adapter import Adapter, load  # deferred: imports torch
    from tangora.adapters.contract import format_of
    from tangora.adapters.metadata import read_metadata
    from tangora.serving.base import served_base
    from tangora.storage.architecture import stored_folder
    from tangora.storage.hub import located

    if isinstance(adapter, Adapter):
        source = adapter
    else:
        folder = located(adapter, "adapter")
        about = read_metadata(folder) if folder.is_dir() else None
        weighs = folder.exists() and format_of(folder).survey(folder, about).needs_base is not None
        source = load(folder, stored_folder(base) if weighs else None)
    if base is None and not target.needs_base:
        return source, None
    return source, served_base(base, source.metadata.base.model, source.metadata.base.revision)


def _unchecked(base: ServedBase | None) -> list[str]:
    if base is None or base.architecture is not None:
        return []
    named = base.class_name or "the base's class, which its config.json does not name"
    return [f"the layers' names were not checked: transformers does not have {named}"]


def _size(place: Path) -> int:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
