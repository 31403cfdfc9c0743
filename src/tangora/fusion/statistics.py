"""`Statistics`: what a fusion method needs from an expert's data, as tensors in a file.

    a.safetensors   <site>.gram [in, in], <site>.fisher shaped like the update; float32
    a.json          adapter, base, task, split and rows; the sites without a Gram; the tensors' sha-256

``gram`` is ``E[x xᵀ]`` over the inputs x of a linear layer in the expert. ``fisher`` is ``E_x E_{y∼p(y|x)}`` of the
squared gradients of ``log p(y|x)`` with respect to the entries of the layer's weight, at the expert. Tensors are read
one at a time, when they are needed. `tangora.collect_statistics` makes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tangora.adapters.metadata import BaseInfo
from tangora.errors import ArgumentError, FileError, FusionError
from tangora.fusion.contract import space_of
from tangora.methods import Method, Statistic
from tangora.support.files import (
    atomic_file,
    digest,
    file_digest,
    read_json,
    refuse_existing,
    write_json,
    write_safetensors,
)
from tangora.support.shown import one_line
from tangora.support.validation import validate
from tangora.support.version import package_version

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["About", "MethodStatistics", "Statistics", "StatisticsLike", "load", "match", "opened", "refuse_superfluous"]

StatisticsLike: TypeAlias = "Statistics | str | os.PathLike[str]"

_WHERE = "fuse.statistics"
_FIX = "collect them with tangora statistics RECIPE ADAPTER --out FILE.safetensors"


class About(BaseModel):
    """The provenance of statistics: their adapter, and the data that they were collected on."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format: Literal[1] = 1
    tangora: str = Field(default_factory=package_version, description="the version that wrote it")
    kinds: list[Statistic] = Field(min_length=1)
    adapter: str = Field(description="fingerprint of the expert's adapter")
    base: BaseInfo = BaseInfo()
    task: str
    task_fingerprint: str = Field(description="of the task's rows, labels and preprocessing")
    split: str
    rows: int = Field(ge=1)
    seed: int = Field(description="of the choice of rows, and of the drawn labels")
    labels: Literal["every", "drawn"] | None = Field(
        default=None, description="fisher: the expectation over every class, or over one label drawn per row"
    )
    averaged: list[str] = Field(default_factory=list, description="sites that are not linear layers: without a Gram")
    dtype: str = "float32"
    sha256: str = Field(default="", description="of the tensors' file")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of one expert on one task.

    Args:
        about: the content of the sidecar.
        tensors: ``<site>.<kind>`` -> tensor.
        where: the file or a description, for errors.
    """

    about: About
    tensors: Mapping[str, Tensor]
    where: str = "statistics in memory"

    def __repr__(self) -> str:
        about = self.about
        rows = f"{about.rows} {about.split} rows of {about.task!r}"
        return one_line("Statistics", " and ".join(about.kinds), rows, f"{len(self.tensors)} tensors")

    @cached_property
    def fingerprint(self) -> str:
        """Sha-256 (hex) of everything that decides their numbers."""
        return digest(self.about.model_dump(mode="json", exclude={"tangora", "sha256"}))

    def get(self, site: str, kind: str) -> Tensor | None:
        """Return the tensor of one site; None if it has no Gram because it is not a linear layer.

        Raises:
            FusionError: the site is missing.
            FileError: its numbers are not finite.
        """
        if kind == "gram" and site in self.about.averaged:
            return None
        tensor = self.tensors.get(f"{site}.{kind}")
        if tensor is None:
            fix = "collect them again with --also and the adapter that has the site"
            raise FusionError(f"there is no {kind} of a site", got=site, where=self.where, fix=fix)
        if not bool(torch.isfinite(tensor).all()):
            raise FileError("a statistic is not finite", where=f"{site}.{kind} in {self.where}", fix=_FIX)
        return tensor

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Statistics:
        """Write ``path`` (ending in ``.safetensors``) and its ``.json``, and return what `load` would.

        Raises:
            OutputError: a file exists and ``overwrite`` is false, or cannot be written.
            ArgumentError: the name does not end in ``.safetensors``.
        """
        path = Path(path)
        sidecar = _sidecar(path)
        for file in (path, sidecar):
            refuse_existing(file, overwrite)
        with atomic_file(path) as scratch:
            write_safetensors(scratch, self.tensors)
            about = self.about.model_copy(update={"sha256": file_digest(scratch)})
        write_json(sidecar, about.model_dump(mode="json"))
        return Statistics(about, _File(path), str(path))


def load(path: str | os.PathLike[str]) -> Statistics:
    """Read the sidecar of ``path`` and check the tensors against it; they are read later, one at a time.

    Raises:
        FileError: a file is missing or damaged, or the two do not belong together.
    """
    path = Path(path)
    sidecar = _sidecar(path)
    about = validate(About, read_json(sidecar), str(sidecar), FileError)
    try:
        actual = file_digest(path)
    except OSError as cause:
        raise FileError(f"cannot be read ({cause.strerror})", where=path, fix="check the path") from cause
    if actual != about.sha256:
        what = f"the tensors have sha-256 {actual[:12]}, {sidecar.name} records {about.sha256[:12]}"
        raise FileError(what, where=path, fix="the two files do not belong together: copy or collect both again")
    return Statistics(about, _File(path), str(path))


def opened(given: StatisticsLike) -> Statistics:
    """Return the statistics, loaded if a file is given."""
    return given if isinstance(given, Statistics) else load(given)


@dataclass(frozen=True)
class MethodStatistics:
    """The statistics passed to a method: one kind, one entry per adapter. Empty if the method needs none."""

    kind: Statistic | None
    statistics: Sequence[Statistics] = ()

    def to_dicts(self) -> list[dict[str, Any]] | None:
        """Return the statistics' provenance, for the fused adapter's metadata; None if the method needs none."""
        keys = {"task", "split", "rows", "seed"}
        each = [s.about.model_dump(include=keys) | {"fingerprint": s.fingerprint} for s in self.statistics]
        return [{"kind": self.kind, **one} for one in each] if self.kind else None

    def of(self, site: str, shape: Sequence[int]) -> Tensor | None:
        """Return the tensors of one site, stacked; None if it has none.

        Raises:
            FusionError: one is missing, or its shape does not fit the update's.
        """
        assert self.kind is not None
        wanted = (shape[-1], shape[-1]) if self.kind == "gram" else tuple(shape)
        tensors = []
        for one in self.statistics:
            tensor = one.get(site, self.kind)
            if tensor is None:
                return None
            if tuple(tensor.shape) != wanted:
                what = f"the {self.kind} of {site} must be {wanted}"
                raise FusionError(what, got=tuple(tensor.shape), where=one.where, fix=_FIX)
            tensors.append(tensor)
        return torch.stack(tensors)


def match(
    given: Sequence[Statistics], method: Method, space: str, adapters: Sequence[Adapter], names: Sequence[str]
) -> MethodStatistics:
    """Select the statistics that ``method`` needs for each adapter, by fingerprint; they may be in any order.

    Raises:
        FusionError: an adapter has none, or none of this kind; the space does not fuse changes of weights.
    """
    kind = method.statistics
    if kind is None:
        return MethodStatistics(None)
    if not space_of(space).plain:
        fix = "use space='delta'"
        what = f"{method.name} needs statistics, which apply to changes of weights only"
        raise FusionError(what, got=space, where="fuse.space", fix=fix)
    by_print = {one.about.adapter: one for one in given}
    matched = []
    for adapter, name in zip(adapters, names, strict=True):
        if (mine := by_print.get(adapter.fingerprint)) is None:
            present = ", ".join(f"{one.where} is of {one.about.adapter[:12]}" for one in given) or "none were given"
            what = f"{method.name} needs {kind} statistics of {name}, fingerprint {adapter.fingerprint[:12]}: {present}"
            raise FusionError(what, where=_WHERE, fix=_FIX)
        if kind not in mine.about.kinds:
            what = f"{method.name} needs {kind} statistics"
            raise FusionError(what, got=", ".join(mine.about.kinds), where=mine.where, fix=f"{_FIX} --kind {kind}")
        matched.append(mine)
    return MethodStatistics(kind, matched)


def refuse_superfluous(
    given: Sequence[Statistics], method: Method, adapters: Sequence[Adapter], names: Sequence[str]
) -> None:
    """Refuse statistics that would not be used, since the caller expects that they are.

    Raises:
        ArgumentError: the method needs none.
        FusionError: some are of an adapter that is not fused.
    """
    if given and method.statistics is None:
        raise ArgumentError(f"{method.name} needs no statistics", got=len(given), where=_WHERE, fix="leave them out")
    prints = {adapter.fingerprint for adapter in adapters} if given else set()
    for one in given:
        if one.about.adapter not in prints:
            fused = ", ".join(f"{n} {a.fingerprint[:12]}" for n, a in zip(names, adapters, strict=True))
            what = f"statistics of an adapter that is not fused, fingerprint {one.about.adapter[:12]}"
            raise FusionError(what, where=one.where, fix=f"the fused adapters are {fused}")


class _File(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read on access."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _names(self) -> frozenset[str]:
        with self._open() as file:
            return frozenset(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with self._open() as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def _open(self) -> Any:
        try:
            return safe_open(self.path, "pt")
        except (SafetensorError, OSError) as cause:
            fix = "collect them again"
            raise FileError(f"not readable as safetensors ({cause})", where=self.path, fix=fix) from cause


def _sidecar(path: Path) -> Path:
    if path.suffix != ".safetensors":
        fix = "change its suffix"
        raise ArgumentError("statistics are a .safetensors file", got=str(path), where="statistics", fix=fix)
    return path.with_suffix(".json")
