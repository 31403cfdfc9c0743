"""What a worker of the executor ``ray`` needs of a node: by the recipe, or by an estimate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tangora.support.sizes import size_text

if TYPE_CHECKING:
    from tangora.runs.context import Context
    from tangora.runs.executors.ray import RaySettings, Share
    from tangora.runs.jobs import Job

__all__ = ["Need", "needs"]

_LIBRARIES = 2**30  # bytes of torch, transformers and this package in a process
_MORE = 1.25  # an estimate counts no allocator


@dataclass(frozen=True)
class Need:
    """What Ray reserves for a worker, and the threads that it computes with.

    Attributes:
        gpus: a number, or a fraction of one.
        cpus: of the node.
        memory: bytes of the node's; 0 reserves none.
        threads: of torch on the CPU.
    """

    gpus: float
    cpus: float
    memory: int
    threads: int

    @property
    def options(self) -> dict[str, Any]:
        """The options of a Ray actor."""
        return {"num_gpus": self.gpus, "num_cpus": self.cpus, "memory": self.memory or None}

    def fits(self, node: Mapping[str, float]) -> int:
        """Return how many such workers a node can have at once, by its resources."""
        asked = {"GPU": self.gpus, "CPU": self.cpus, "memory": float(self.memory)}
        counts = [node.get(name, 0.0) / amount + 1e-6 for name, amount in asked.items() if amount]
        return int(min(counts)) if counts else int(node.get("CPU", 0.0))

    def __str__(self) -> str:
        parts = [f"{self.gpus:g} GPU"] * bool(self.gpus) + [f"{self.cpus:g} CPU"] * bool(self.cpus)
        parts += [f"{size_text(self.memory)} of memory"] * bool(self.memory)
        return ", ".join(parts) or "nothing"


def needs(
    context: Context, settings: RaySettings, nodes: Sequence[Mapping[str, float]], jobs: Sequence[Job]
) -> Callable[[Job], Need]:
    """Return a function from a job to what its worker needs.

    What the recipe leaves open is the same for all kinds of jobs, so that one worker does all of them and loads the
    base once: a GPU if the run computes on one and the cluster has any; the run's threads; and the memory that the
    job with the largest estimate takes. A guess asks for no more than the largest node has.

    Args:
        context: of the run, with base and tasks loaded if memory has to be estimated.
        settings: of the executor.
        nodes: resources of each node.
        jobs: to do.
    """
    guessed = _guess(context, settings, nodes, jobs)
    made = {kind: _with(guessed, share, settings) for kind, share in settings.jobs.items()}
    common = _with(guessed, settings, settings)
    return lambda job: made.get(job.kind, common)


def _with(guessed: Need, share: Share, general: Share) -> Need:
    """Return what is stated for a kind of job, else in general, else guessed."""

    def stated(name: str) -> float | None:
        own: float | None = getattr(share, name)
        return own if own is not None else getattr(general, name)

    gpus, cpus, memory, threads = (stated(name) for name in ("gpus", "cpus", "memory", "threads"))
    own_cpus = cpus if cpus is not None else guessed.cpus
    if threads is None:
        threads = guessed.threads if cpus is None else max(1, int(cpus))
    elif cpus is None:
        own_cpus = min(float(threads), guessed.cpus) if guessed.gpus else float(threads)
    return Need(
        gpus if gpus is not None else guessed.gpus,
        own_cpus,
        int(memory * 1e9) if memory is not None else guessed.memory,
        int(threads),
    )


def _guess(context: Context, settings: RaySettings, nodes: Sequence[Mapping[str, float]], jobs: Sequence[Job]) -> Need:
    import torch  # deferred: validating a recipe needs only the settings

    with_gpus = [node for node in nodes if node.get("GPU")]
    gpus = settings.gpus
    if gpus is None:
        gpus = 1.0 if with_gpus and context.recipe.machine.device != "cpu" else 0.0
    threads = context.machine.threads or torch.get_num_threads()
    if gpus and with_gpus:  # the processors of a node are shared by its GPUs
        share = min(int(node.get("CPU", 1.0) / node["GPU"] * gpus) for node in with_gpus)
        threads = max(1, min(threads, share))
    cpus = min(float(threads), _largest(nodes, "CPU") or float(threads))
    own = (settings.jobs.get(kind) for kind in {job.kind for job in jobs})
    guessed = settings.memory is None and any(share is None or share.memory is None for share in own)
    memory = min(_memory(context, bool(gpus)), int(_largest(nodes, "memory"))) if guessed else 0
    return Need(gpus, cpus, memory, threads)


def _largest(nodes: Sequence[Mapping[str, float]], resource: str) -> float:
    return max((node.get(resource, 0.0) for node in nodes), default=0.0)


def _memory(context: Context, on_gpu: bool) -> int:
    """Return the bytes of the node's memory that a worker takes: for the weights alone if it computes on a GPU."""
    from tangora.modes.memory import Memory, memory_of, weight_bytes  # deferred: imports torch

    weights = weight_bytes(context.base)
    if on_gpu:
        return int(2 * _LIBRARIES + weights * _MORE)
    recipe, rows = context.recipe, context.recipe.evaluation.batch_size
    configs = [recipe.finetune_config(mode) for mode in recipe.modes if recipe.trained(mode)]
    found = [memory_of(context.base, task, config, rows) for config in configs for task in context.tasks.values()]
    most = max(Memory.most(found).total.values()) if found else 2 * weights
    return int(_LIBRARIES + most * _MORE)
