"""`fuse_checkpoints`: fuse a base with fine-tuned models, or adapters, into one full checkpoint on disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from tangora.checkpoints.carried import Carried, carry
from tangora.checkpoints.fast import FastLane, Kernels, kernels_for
from tangora.checkpoints.gather import gather
from tangora.checkpoints.lane import Lane
from tangora.checkpoints.models import Models, Request
from tangora.checkpoints.output import OutputFolder, opened
from tangora.checkpoints.plan import BLOCK, Memory, OutputPlan, Placement, make_plan
from tangora.checkpoints.scheduler import run_steps
from tangora.checkpoints.sidecars import LINEAGE, write_sidecars
from tangora.checkpoints.steps import Steps
from tangora.errors import ArgumentError
from tangora.fusion.computation import Computation
from tangora.fusion.weights import Weights, WeightTable
from tangora.methods import Method, get
from tangora.progress import Progress
from tangora.storage.checkpoint import INDEX, Checkpoint, open_checkpoint, refuse_quantized
from tangora.storage.files import InputFiles
from tangora.storage.header import ITEMSIZE
from tangora.storage.hub import located
from tangora.support.files import digest, refuse_output, write_text
from tangora.support.shown import one_line
from tangora.support.sizes import bytes_of
from tangora.support.validation import did_you_mean

if TYPE_CHECKING:
    from tangora.checkpoints.verified import CheckpointVerification
    from tangora.fusion.heads import Heads

__all__ = ["Merged", "fuse_checkpoints"]

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
_THREADS = 8  # more would wait for each other and for the disk


@dataclass(frozen=True)
class Merged:
    """The result of a fusion, or of its dry run.

    Attributes:
        out: the folder.
        method: the method's name.
        parents: the models' names.
        tensors: the number of tensors in the output.
        size: the bytes of these tensors.
        read: the bytes of the inputs.
        shards: the number of files.
        kept: the number of these that an interrupted run had finished.
        threads: the number of threads.
        memory: the plan's bound of the peak resident memory.
        weights: the models' weights: one each, or tensor -> one each.
        notes: remarks on the output for the user.
        compiled: whether compiled kernels of the extra ``fast`` compute it; its bytes are the same without them.
        verified: the comparison with the adapters; None for checkpoints, or if it was not requested.
    """

    out: Path
    method: str
    parents: list[str]
    tensors: int
    size: int
    read: int
    shards: int
    kept: int
    threads: int
    memory: Memory
    weights: WeightTable
    notes: list[str] = field(default_factory=list)
    compiled: bool = False
    verified: CheckpointVerification | None = None

    def __repr__(self) -> str:
        models = f"{len(self.parents)} models by {self.method}"
        return one_line("Merged", repr(str(self.out)), models, f"{self.tensors} tensors", f"{self.size:,} bytes")


def fuse_checkpoints(
    base: str | os.PathLike[str],
    models: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    method: str = "task_arithmetic",
    weights: Weights | None = None,
    *,
    dtype: str | None = None,
    shard_size: int | str = "5GB",
    allow_missing: Sequence[str] = (),
    seed: int = 0,
    space: str = "delta",
    same_base: bool = False,
    heads: Heads | None = None,
    threads: int | None = None,
    block: int = BLOCK,
    device: str = "cpu",
    overwrite: bool = False,
    dry_run: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
    **parameters: Any,
) -> Merged:
    """Fuse fine-tuned checkpoints, or adapters, into one full checkpoint, a block at a time.

    .. math:: \\theta = \\theta_0 + F(\\{\\theta_t - \\theta_0\\}; \\lambda)

    Differences are computed in float32 (float64 if a file is), and the result is rounded once, to nearest. Its bits
    do not depend on the threads, the blocks, or the inputs' shards. The output is a folder that transformers loads. A
    fusion that was killed continues where it stopped.

    Args:
        base: the folder of the base model: ``config.json`` and safetensors, in any number of shards.
        models: folders of models fine-tuned from it, or of adapters made for it; not both.
        out: the folder to write.
        method: see ``tangora.methods()``; one that needs every tensor at once is refused.
        weights: one λ for all, one per model, or tensor -> one per model; the method's default if None.
        dtype: of the result, such as ``float32``; if None, each tensor has the base's.
        shard_size: bytes in a file, such as ``"5GB"``.
        allow_missing: names, or patterns with ``*``, of tensors that may be in one model but not in another.
        seed: of random methods.
        space: for adapters, see `tangora.fuse`.
        same_base: treat adapters with different base names as adapters of one base model.
        heads: how to treat adapters' ``modules_to_save`` that differ, see `tangora.fuse`.
        threads: the number of threads; if None, ``OMP_NUM_THREADS``, or else one per processor, but at most 8.
        block: the number of entries of a tensor that are computed at a time.
        device: ``cpu``, or ``cuda`` to stream blocks through a GPU.
        overwrite: replace an output that exists.
        dry_run: write nothing; only return what would be made, and in how much memory.
        verify: when fusing adapters, read the output again and compare it with their files before publishing it.
        progress: receives every finished chunk.
        parameters: the method's own, such as ``density=0.2``.

    Raises:
        FusionError: the models' shapes, tensors or vocabularies differ; the method needs all tensors at once; ...
        ArgumentError: a weight, parameter, dtype, size or device is invalid.
        PluginError: an unknown method or space.
        FileError: a folder is not a checkpoint; a file is damaged, outside its folder, or contains NaN or infinity.
        OutputError: the output exists or cannot be written.

    >>> import tangora
    >>> tangora.fuse_checkpoints("models/base", ["models/m0", "models/m1"], "merged", weights=0.5, dry_run=True)
    Merged('merged', 2 models by task_arithmetic, 7 tensors, 3,674 bytes)
    """
    chosen = get(method)
    chosen.check(parameters)
    out, base = Path(out), located(base, "checkpoint")
    models = models if isinstance(models, (str, os.PathLike)) else [located(model) for model in models]
    refuse_output(out, overwrite, [base, *models])
    kind, size, workers = _dtype(dtype), bytes_of(shard_size, "fuse.shard_size"), _threads(threads)
    _check_device(device)
    refuse_quantized(origin := open_checkpoint(base))
    inputs = gather(origin, models, allow_missing, Request(chosen, weights, parameters, seed, space, same_base, heads))
    plan = make_plan(inputs.targets, dtype=kind, shard_size=size, block=block)
    kernels = _loaded_kernels(plan, chosen, device)
    carried = carry(origin.folder, inputs.tokenizer, dict(zip(inputs.names, map(Path, models), strict=True)))
    lineage = {**inputs.lineage, "dtype": kind, "notes": [*inputs.notes, *carried.notes]}
    kept, checked = 0, None
    if not dry_run:
        key = digest([lineage, plan.fingerprint, inputs.stamps, device.partition(":")[0]])
        with opened(out, plan, key, record=LINEAGE, overwrite=overwrite) as output:
            kept = len(output.kept)
            _run(plan, inputs.computation, output, workers, device, progress or Progress(), kernels)
            _write_beside(output.folder, carried, lineage, inputs, plan.index)
            checked = _checked(output, origin, inputs) if verify and inputs.sources else None
    return Merged(
        out=out,
        method=chosen.name,
        parents=inputs.names,
        tensors=len(inputs.targets),
        size=sum(p.size for p in plan.placements),
        read=sum(stored.size for target in inputs.targets for stored in target.stored),
        shards=len(plan.names),
        kept=kept,
        threads=workers,
        memory=plan.memory(inputs.computation.method, workers),
        weights=inputs.lineage["weights"],
        notes=lineage["notes"],
        compiled=kernels is not None,
        verified=checked,
    )


def _loaded_kernels(plan: OutputPlan, method: Method, device: str) -> Kernels | None:
    """Return the kernels of a plan, and load torch if it is computed by it, so that `OutputPlan.memory` measures it."""
    kernels = kernels_for(plan, method, device)
    by_torch = not method.linear or "F16" in plan.dtypes or (plan.wide and "BF16" in plan.dtypes)
    if method.random or (kernels is None and by_torch):
        import torch  # noqa: F401  # deferred: linear methods and kernels do without
    return kernels


def _check_device(device: str) -> None:
    if device != "cpu":
        from tangora.checkpoints.gpu import check_device  # deferred: imports torch, which linear methods do without

        check_device(device)


def _checked(output: OutputFolder, base: Checkpoint, models: Models) -> CheckpointVerification:
    from tangora.checkpoints.verified import check_written  # deferred: imports torch, which linear methods do without

    return check_written(output.folder, base, models.targets, models.computation, models.sources, output.cutoffs)


def _write_beside(
    folder: Path, carried: Carried, lineage: Mapping[str, Any], models: Models, index: str | None
) -> None:
    """Write the files of a checkpoint other than its shards."""
    write_sidecars(folder, carried, models.config, lineage, models.records)
    if models.heads or models.records:
        from tangora.adapters.heads import (  # deferred: torch, which linear methods do without
            write_heads,
            write_records,
        )

        write_heads(folder, models.heads)
        write_records(folder, models.records)
    if index is not None:
        write_text(folder / INDEX, index)


def _run(
    plan: OutputPlan,
    computation: Computation,
    output: OutputFolder,
    threads: int,
    device: str,
    progress: Progress,
    kernels: Kernels | None,
) -> None:
    files, torch = InputFiles(), sys.modules.get("torch")
    tasks = max((len(placement.target.parts) for placement in plan.placements), default=0)

    def lane() -> Lane:
        if torch is not None:
            torch.set_num_threads(1)  # for this thread: a block is too small to be divided
        if kernels is not None:
            return FastLane(files, tasks, plan.widest, plan.itemsize, kernels)
        if device == "cpu":
            return Lane(files, tasks, plan.widest, plan.itemsize, plan.wide)
        from tangora.checkpoints.gpu import GpuLane  # deferred: imports torch, which linear methods do without

        return GpuLane(files, tasks, plan.widest, plan.itemsize, plan.wide, device)

    sink = _ProgressSink(output, progress)
    steps = Steps(plan, computation, sink, skip=output.kept, cutoffs=output.cutoffs, on_cutoffs=output.save_cutoffs)
    before = torch.get_num_threads() if torch is not None else 1
    progress.begin(f"fuse by {computation.method.name}, MB", sink.total(plan))
    try:
        run_steps(steps.first(), lane, threads)
    finally:
        if torch is not None:
            torch.set_num_threads(before)
        files.close()
    progress.end()


class _ProgressSink:
    """Passes results on to the output, and reports finished chunks to the progress, in megabytes."""

    def __init__(self, output: OutputFolder, progress: Progress) -> None:
        self.output, self.progress, self._lock = output, progress, Lock()
        self.bytes = 0

    def write(self, placement: Placement, start: int, data: memoryview) -> None:
        """See `Output.write`."""
        self.output.write(placement, start, data)

    def done(self, placement: Placement, start: int, stop: int, digest: str) -> None:
        """See `Output.done`."""
        self.output.done(placement, start, stop, digest)
        with self._lock:
            self.bytes += (stop - start) * ITEMSIZE[placement.dtype]
            self.progress.update(self.bytes // 10**6, placement.target.name)

    def total(self, plan: OutputPlan) -> int:
        """Return the size of what is left to write, in megabytes."""
        return sum(placement.size for placement in plan.placements if placement.shard not in self.output.kept) // 10**6


def _dtype(name: str | None) -> str | None:
    if name is None or name in _DTYPES:
        return None if name is None else _DTYPES[name]
    raise ArgumentError("no such dtype", got=name, where="fuse.dtype", fix=did_you_mean(str(name), list(_DTYPES)))


def _threads(count: int | None) -> int:
    if count is None:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        given = os.environ.get("OMP_NUM_THREADS", "")
        return int(given) if given.isdigit() and int(given) > 0 else min(_THREADS, available)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ArgumentError("threads must be a whole number of at least 1", got=count, where="fuse.threads")
    return count
