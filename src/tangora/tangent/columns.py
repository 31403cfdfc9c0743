"""Logits as an affine function of fusion coefficients, computed once for a split and all fusions.

    logits(c) = origin + Σₖ cₖ · columnsₖ,      origin = f(x; φ₀),   columnsₖ = J(x) τₖ

With T task vectors, a forward pass with T tangents gives the columns of a batch, for any number of subsets, grids and
searches. Columns per task and site come from gradients: the gradient ``g`` of a logit by a site's output is multiplied
with ``s B (A x)`` of every vector. So one backward pass per class gives all T · S columns of a row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from tangora.adapters.heads import heads_digest
from tangora.errors import ArgumentError, DataError, FileError, ModelError
from tangora.support.files import atomic_file, digest, read_safetensors, write_safetensors
from tangora.support.json_text import parse_json
from tangora.support.seams import FAMILIES
from tangora.support.shown import one_line
from tangora.support.source import source_digest
from tangora.tangent._memory import refuse_unless_fits
from tangora.tangent.direction import Direction, direction_of, stacked_directions
from tangora.tangent.model import TangentTaskModel, at_start
from tangora.tangent.per_site import per_site
from tangora.tasks.lines import lines_of
from tangora.tasks.model import make_readout
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.tasks import Base, Task

__all__ = ["Columns", "columns_key", "load_columns", "make_columns", "site_columns"]


@dataclass(frozen=True)
class Columns:
    """The tangent model's logits on rows of one split, affine in the coefficients of task vectors.

    A row of ``origin`` is a line (`tangora.tasks.lines`): a row of the split, a target's token, a word, or a label of a
    row with the logits 0 and z. ``examples`` has its row in the split.

    Attributes:
        vectors: names of the T task vectors.
        sites: empty for one column per task vector; else the S sites, for one column per vector and site.
        origin: ``f(x; φ₀)``, float32.
        columns: ``J(x) τ``, float32.
        labels: the correct outcome: a class, a token, a tag, or whether the row has the label.
        examples: for each row here, its row in the split.
        fingerprint: of base, split, vectors and sites.
    """

    task: str
    split: str
    vectors: tuple[str, ...]
    sites: tuple[str, ...]
    origin: Float[Tensor, "rows classes"]
    columns: Float[Tensor, "vectors *sites rows classes"]
    labels: Int[Tensor, "rows"]
    examples: Int[Tensor, "rows"]
    fingerprint: str

    def __repr__(self) -> str:
        rows, classes = self.origin.shape
        each = f", one for each of {len(self.sites)} sites" if self.sites else ""
        vectors = f"{len(self.vectors)} task vectors{each}"
        return one_line("Columns", repr(self.task), self.split, f"{rows} rows", f"{classes} classes", vectors)

    def logits(self, coefficients: Float[Tensor, "*many vectors *sites"]) -> Float[Tensor, "*many rows classes"]:
        """Return logits of the fusion with these coefficients, differentiable in them.

        Args:
            coefficients: one per vector, or with ``sites`` one per vector and site; leading dimensions are for many
                fusions at once.
        """
        own = self.columns.ndim - 2
        expected = tuple(self.columns.shape[:own])
        if tuple(coefficients.shape[-own:]) != expected:
            got = tuple(coefficients.shape)
            raise ArgumentError("every column needs a coefficient", got=got, where=f"columns {expected}")
        flat = coefficients.reshape(*coefficients.shape[:-own], -1).to(self.columns)
        moved = flat @ self.columns.reshape(flat.shape[-1], -1)
        logits: Tensor = self.origin + moved.unflatten(-1, self.origin.shape)
        return logits

    def subset(self, vectors: Sequence[str]) -> Columns:
        """Return the columns of only these task vectors, in this order.

        Raises:
            ArgumentError: a name is not among ``vectors``.
        """
        if unknown := [v for v in vectors if v not in self.vectors]:
            raise ArgumentError("no such task vector", got=unknown[0], where=f"columns of {', '.join(self.vectors)}")
        picked = self.columns[[self.vectors.index(v) for v in vectors]]
        return replace(self, vectors=tuple(vectors), columns=picked)

    def rows(self, index: Int[Tensor, " picked"] | Sequence[int]) -> Columns:
        """Return the columns of only these rows."""
        chosen = torch.as_tensor(index, dtype=torch.int64)
        columns = self.columns.index_select(-2, chosen)
        return replace(
            self,
            origin=self.origin[chosen],
            columns=columns,
            labels=self.labels[chosen],
            examples=self.examples[chosen],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, with names and fingerprint in its header."""
        metadata = {k: getattr(self, k) for k in ("task", "split", "vectors", "sites", "fingerprint")}
        tensors = {k: getattr(self, k).contiguous() for k in ("origin", "columns", "labels", "examples")}
        with atomic_file(path) as scratch:
            write_safetensors(scratch, tensors, {"tangora.columns": json.dumps(metadata)})


def load_columns(path: str | os.PathLike[str], fingerprint: str | None = None) -> Columns:
    """Read columns that `Columns.save` wrote.

    Args:
        path: the file.
        fingerprint: the fingerprint that the columns must have, if given.

    Raises:
        FileError: the file is missing or corrupt, or no file of columns.
        DataError: the columns are of another base, split or task vectors.
    """
    tensors = read_safetensors(path)
    with safe_open(path, "pt") as file:
        metadata: dict[str, Any] = parse_json((file.metadata() or {}).get("tangora.columns", "{}"))
    if not metadata or tensors.keys() != {"origin", "columns", "labels", "examples"}:
        raise FileError("not a file of columns", where=Path(path), fix="delete it; the run makes it again")
    if fingerprint is not None and metadata["fingerprint"] != fingerprint:
        what = f"the columns have fingerprint {metadata['fingerprint'][:12]}, not {fingerprint[:12]}"
        raise DataError(what, where=Path(path), fix="they belong to another run: delete the file")
    names = {name: tuple(metadata.pop(name)) for name in ("vectors", "sites")}
    fields: dict[str, Any] = {**metadata, **names, **tensors}
    return Columns(**fields)


def columns_key(base: Base, task: Task, split: str, adapters: Mapping[str, Adapter], sites: bool = False) -> str:
    """Return the fingerprint of these adapters' columns; it changes with the code that computes them."""
    prints = [[name, adapter.fingerprint] for name, adapter in adapters.items()]
    heads = sorted({heads_digest({task.name: a.heads[task.name]}) for a in adapters.values() if task.name in a.heads})
    return digest([_code(task.family), base.fingerprint, task.name, task.fingerprint, split, prints, sites, *heads])


@cache
def _code(family: str) -> str:
    return source_digest(columns_key, FAMILIES.get(family), without=("tangora.errors", "tangora.progress"))


def make_columns(
    base: Base, task: Task, split: str, adapters: Mapping[str, Adapter], *, batch_size: int = 64
) -> Columns:
    """Compute one column per task vector, by forward mode: T tangents with one primal.

    Args:
        base: the adapters' base model; it is unchanged afterwards.
        task: the task with the rows.
        split: one of its splits.
        adapters: name -> adapter; they share φ₀. If one of them has a head for the task, the logits are those of this
            head.
        batch_size: rows per forward pass.

    Raises:
        ModelError: an adapter does not fit, φ₀ differs, or an operator has no forward derivative.
        DataError: the split is missing, or the columns do not fit into memory (the message has their size).
    """
    _check(task, split)
    rows = task.splits[split]
    refuse_unless_fits(base, task, rows, 1 + len(adapters), where=f"columns of {task.name}, {split}")
    stacked = stacked_directions([direction_of(a, base.backbone) for a in adapters.values()])
    with at_start(base.backbone, list(adapters.values())):
        model = TangentTaskModel(base.backbone, task, base, readout=make_readout(task, base, *adapters.values()))
        parts = _swept(model, task, split, partial(_pushed, stacked=stacked), batch_size)
    return _assembled(parts, task, split, tuple(adapters), (), columns_key(base, task, split, adapters))


def site_columns(
    base: Base,
    task: Task,
    split: str,
    adapters: Mapping[str, Adapter],
    *,
    rows: Sequence[int] | None = None,
    batch_size: int = 16,
) -> Columns:
    """Compute one column per task vector and site, by reverse mode: one backward pass per class.

    Args:
        base, task, split, adapters: see `make_columns`; every update must be low-rank.
        rows: rows of the split; by default all.
        batch_size: rows per forward pass.

    Raises:
        ModelError, DataError: see `make_columns`.
    """
    _check(task, split)
    chosen = range(len(task.splits[split])) if rows is None else rows
    directions = [direction_of(a, base.backbone) for a in adapters.values()]
    if any(d.parameters for d in directions):
        fix = "use coefficients per task, or compress the updates"
        raise ModelError("columns per site need low-rank updates", where="coefficients", fix=fix)
    stacked = stacked_directions(directions)
    sites = tuple(stacked.low_rank)
    count = 1 + len(adapters) * len(sites)
    refuse_unless_fits(base, task, task.splits[split], count, len(chosen), f"columns per site of {task.name}, {split}")
    with at_start(base.backbone, list(adapters.values())):
        model = TangentTaskModel(base.backbone, task, base, readout=make_readout(task, base, *adapters.values()))
        parts = _swept(model, task, split, partial(per_site, stacked=stacked), batch_size, set(chosen))
    return _assembled(parts, task, split, tuple(adapters), sites, columns_key(base, task, split, adapters, True))


def _check(task: Task, split: str) -> None:
    if split not in task.splits:
        raise DataError("the split is missing", got=split, where=f"task {task.name}")
    if task.form.logits_over is None:
        fix = "score by forward passes"
        what = "columns need logits that are a distribution"
        raise DataError(what, got=task.family, where=f"task {task.name}", fix=fix)


def _swept(
    model: TangentTaskModel, task: Task, split: str, columns_of: Any, batch_size: int, only: set[int] | None = None
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return (rows of the split, labels, origin, columns) for each batch."""
    device, over = next(model.backbone.parameters()).device, task.form.logits_over
    assert over is not None
    batches = []
    with evaluating(model):
        for rows, batch in task.splits[split].batches(batch_size, model.collator, only):
            placed = {name: value.to(device) for name, value in batch.items()}
            origin, columns = columns_of(model, placed, placed.pop("labels"))
            # Lines are chosen on the CPU, so that the device need not synchronize to count them, nor send ignored ones.
            lines = lines_of(over, batch["labels"].cpu(), model.readout.width, device)
            flat = lines.of(origin).cpu(), lines.of(columns).cpu()
            batches.append((torch.tensor(rows)[lines.rows], lines.labels, *flat))
    return batches


def _pushed(model: TangentTaskModel, inputs: Any, labels: Tensor, *, stacked: Direction) -> tuple[Tensor, Tensor]:
    """Return logits at φ₀ and their T tangents."""

    def one(tensors: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return model.expansion(inputs, labels, Direction(**tensors))

    with torch.no_grad():
        shared: Any = (None, 0)
        origin, columns = torch.vmap(one, out_dims=shared)(stacked.tensors())
    return origin, columns


def _assembled(
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    task: Task,
    split: str,
    vectors: tuple[str, ...],
    sites: tuple[str, ...],
    fingerprint: str,
) -> Columns:
    examples, labels, origin = (torch.cat([p[i] for p in parts]) for i in range(3))
    columns = torch.cat([p[3] for p in parts], -2)
    if not bool(torch.isfinite(columns).all() and torch.isfinite(origin).all()):
        fix = "an expert has diverged: train it with a lower learning rate"
        raise ModelError("a logit of the expansion is not finite", where=f"{task.name}, {split}", fix=fix)
    order = torch.argsort(examples, stable=True)
    unsorted = Columns(task.name, split, vectors, sites, origin, columns, labels, examples, fingerprint)
    return unsorted.rows(order)
