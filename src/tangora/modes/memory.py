"""Estimate the memory of a training and of scoring, part by part, before anything is trained.

Weights, adapter, gradients and optimizer are counted exactly. Activations are a rule of thumb for transformers:

    rows × columns × layers × (6 H + 3 I numbers of forward passes, and 2 H in float32)

for hidden size H and intermediate size I: what a block keeps for the backward pass if attention keeps no matrix of
scores. With gradient checkpointing, every block keeps its input alone, and one block at a time keeps all. Libraries,
allocators and the device's own context take more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from tangora.modes.contract import mode_of
from tangora.storage.held import held_names
from tangora.support.sizes import size_text
from tangora.tasks.language.logits import CHUNK
from tangora.tasks.model import collate, make_readout

if TYPE_CHECKING:
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Footprint, Mode
    from tangora.tasks import Base, Task
    from tangora.tasks.values import Batch, Split

__all__ = ["Memory", "memory_of", "scoring_memory", "weight_bytes"]

_FLOAT = 4  # bytes of a number in float32
_COPIES = 3  # of logits: as computed, in float32, and their gradient


@dataclass(frozen=True)
class Memory:
    """Bytes that a training and scoring are estimated to take on the device.

    Attributes:
        training: part -> bytes. ``activations`` is missing if the architecture's sizes are not known. Empty if nothing
            is trained.
        scoring: part -> bytes, likewise.

    >>> str(Memory({"weights": 2000, "activations": 500}, {"weights": 2000}))
    'training 2.5 kB (weights 2 kB, activations 500 bytes); scoring 2 kB (weights 2 kB, activations unknown)'
    """

    training: Mapping[str, int]
    scoring: Mapping[str, int]

    def __str__(self) -> str:
        parts = {"training": self.training, "scoring": self.scoring} if self.training else {"scoring": self.scoring}
        return "; ".join(f"{name} {_listed(sizes)}" for name, sizes in parts.items())

    @property
    def total(self) -> dict[str, int]:
        """Training and scoring, each in all."""
        return {"training": sum(self.training.values()), "scoring": sum(self.scoring.values())}

    @classmethod
    def most(cls, estimates: Sequence[Memory]) -> Memory:
        """Return the largest training and the largest scoring of several estimates."""
        largest = (
            max((getattr(e, n) for e in estimates), key=lambda p: sum(p.values())) for n in ("training", "scoring")
        )
        return cls(*largest)


def _listed(parts: Mapping[str, int]) -> str:
    named = ", ".join(f"{name} {size_text(size)}" for name, size in parts.items() if size)
    without = "" if "activations" in parts else ", activations unknown"
    return f"{size_text(sum(parts.values()))} ({named}{without})"


def memory_of(base: Base, task: Task, config: FinetuneConfig, batch_size: int) -> Memory:
    """Return the estimate for one task, with its longest rows in each batch.

    Args:
        base: as it is loaded.
        task: with its rows.
        config: of the training.
        batch_size: rows per forward pass in scoring.
    """
    mode = mode_of(config)
    footprint, changes = mode.footprint(base, config), mode.kind == "full" and mode.linearize == "none"
    changes = changes and not getattr(mode, "keeps_start", False)
    settings = config.training
    compute = 2 if settings.bf16 or not base.machine.exact else _FLOAT
    trained = _FLOAT * (footprint.trainable + _of_head(task, base))
    common = {"weights": weight_bytes(base), "one weight in float32": _widest(base, compute)}
    rows = task.splits["train"], settings.batch_size
    training = {
        **common,
        "casts": _casts(base, compute, settings.gradient_checkpointing),
        "adapter": trained - (_FLOAT * footprint.trainable if changes else 0),
        "gradients": trained,
        "optimizer": 2 * trained,
        **_activations(base, task, *rows, compute, training=True, again=settings.gradient_checkpointing),
        "logits": _logits(base, task, *rows, training=True),
    }
    if mode.linearize == "model":
        training = _with_tangents(training)
    return Memory(training, scoring_memory(base, task, mode, footprint, batch_size))


def scoring_memory(base: Base, task: Task, mode: Mode, footprint: Footprint, batch_size: int) -> dict[str, int]:
    """Return the estimate of scoring one task, part -> bytes.

    Args:
        base, task, batch_size: as of `memory_of`.
        mode: of the adapter.
        footprint: of the adapter.
    """
    split = task.splits.get("test", next(iter(task.splits.values())))
    compute = _FLOAT if base.machine.exact else 2
    scoring = {
        "weights": weight_bytes(base),
        "one weight in float32": _widest(base, compute),
        "adapter": _beside(base, footprint),
        **_activations(base, task, split, batch_size, compute, training=False, again=False),
        "logits": _logits(base, task, split, batch_size, training=False),
    }
    return _with_tangents(scoring) if mode.linearize == "model" else scoring


_DOUBLED = ("activations", "logits")


def _with_tangents(parts: Mapping[str, int]) -> dict[str, int]:
    """Return the parts of an expansion: every activation has a tangent."""
    return {name: size * 2 if name in _DOUBLED else size for name, size in parts.items()}


def weight_bytes(base: Base) -> int:
    """Return the bytes of the backbone's parameters and buffers, shared ones once."""
    tensors = [*base.backbone.parameters(), *base.backbone.buffers()]
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def _widest(base: Base, compute: int) -> int:
    """Return the bytes of the largest held matrix in float32: products in float32 make one such copy at a time."""
    return _FLOAT * max(held_names(base.backbone).values(), default=0) if compute == _FLOAT else 0


def _casts(base: Base, compute: int, again: bool) -> int:
    """Return the bytes of the casts of weights that a training in half precision keeps for the backward pass."""
    numbers = sum(p.numel() for p in base.backbone.parameters() if p.ndim > 1 and p.dtype == torch.float32)
    sizes = _Sizes.of(base)
    layers = sizes.layers if again and sizes is not None else 1
    return compute * numbers // layers if compute != _FLOAT else 0


def _beside(base: Base, footprint: Footprint) -> int:
    """Return the bytes that a candidate adds in scoring: factors beside held weights, or a copy of those it changes."""
    return footprint.size if base.config.weights != "float32" else _FLOAT * footprint.adapted


def _of_head(task: Task, base: Base) -> int:
    readout = cast(nn.Module, make_readout(task, base))
    return sum(p.numel() for p in readout.parameters() if p.requires_grad)


@dataclass(frozen=True)
class _Sizes:
    """Hidden size, intermediate size and number of blocks of a transformer."""

    hidden: int
    inner: int
    layers: int

    @classmethod
    def of(cls, base: Base) -> _Sizes | None:
        """Return the sizes by the model's configuration; None if it has none of these names."""
        whole: Any = getattr(base.backbone, "config", None)
        config = whole.get_text_config() if base.config.family in _TEXTS else whole
        hidden, layers = getattr(config, "hidden_size", None), getattr(config, "num_hidden_layers", None)
        if not isinstance(hidden, int) or not isinstance(layers, int):
            return None
        inner = getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None) or 4 * hidden
        return cls(hidden, int(inner), layers + int(getattr(config, "num_decoder_layers", 0) or 0))


_TEXTS = ("causal-lm", "text-to-text")


def _activations(
    base: Base, task: Task, split: Split, rows: int, compute: int, *, training: bool, again: bool
) -> dict[str, int]:
    """Return the bytes of activations under their name; nothing if the sizes of the network are unknown."""
    sizes, tokens = _Sizes.of(base), _tokens(base, _longest(base, task, split, rows, training=training))
    if sizes is None or tokens is None:
        return {}
    block = tokens * (compute * (6 * sizes.hidden + 3 * sizes.inner) + _FLOAT * 2 * sizes.hidden)
    if not training:
        return {"activations": block}
    return {"activations": sizes.layers * _FLOAT * tokens * sizes.hidden + block if again else sizes.layers * block}


def _longest(base: Base, task: Task, split: Split, rows: int, *, training: bool) -> Batch:
    """Return a batch of the longest rows of a split, as training or scoring collates it."""
    lengths = [0] * len(split)
    for name in ("input_ids", "labels"):
        for row, value in enumerate(split.inputs.get(name, ())):
            lengths[row] += value.numel()
    chosen = sorted(range(len(split)), key=lengths.__getitem__)[-rows:]
    collator: Any = collate(task, base)
    if training and hasattr(collator, "for_training"):
        collator = collator.for_training()
    data = split.dataset()
    return cast("Batch", collator([data[row] for row in chosen]))


def _tokens(base: Base, batch: Batch) -> int | None:
    """Return the number of columns of all rows: tokens, or patches of images; None if it is not known."""
    if (ids := batch.get("input_ids")) is not None:
        return ids.numel() + (batch["labels"].numel() if base.config.family == "text-to-text" else 0)
    pixels, patch = batch.get("pixel_values"), getattr(base.backbone.config, "patch_size", None)
    if pixels is None or not isinstance(patch, int):
        return None
    return len(pixels) * (math.prod(side // patch for side in pixels.shape[-2:]) + 1)


def _logits(base: Base, task: Task, split: Split, rows: int, *, training: bool) -> int:
    """Return the bytes of the logits that exist at once, with the copies that a loss makes of them."""
    readout: Any = make_readout(task, base)
    batch = _longest(base, task, split, rows, training=training)
    labels = batch.get("labels")
    over_tokens = task.form.logits_over == "tokens" and labels is not None
    numbers = (labels.numel() if over_tokens and labels is not None else rows) * int(readout.width)
    if hasattr(readout, "losses_only") and "choices" not in batch:
        numbers = min(numbers, max(CHUNK, int(readout.width)))
    return _COPIES * _FLOAT * numbers
