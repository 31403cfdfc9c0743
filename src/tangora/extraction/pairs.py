"""Pair the tensors of a tuned checkpoint with its base's, by the parameters of the model's class.

transformers renames tensors when it loads a checkpoint, and a base may be saved without its head, so both are paired by
the names in memory, which are those of an adapter's sites. The class also has what each parameter belongs to: a layer
that LoRA adapts, an embedding, a layer that peft saves whole, or none of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import nn

from tangora.adapters.formats.lora.settings import HEADS
from tangora.checkpoints.align import refuse_other_architecture
from tangora.checkpoints.meaning import check_ties, same_bytes
from tangora.errors import FusionError
from tangora.storage.architecture import Architecture, build, own_architectures
from tangora.storage.checkpoint import Checkpoint
from tangora.storage.header import FLOATS, Stored
from tangora.storage.vocabulary import is_vocabulary

__all__ = ["Kind", "Model", "Pair", "pair"]

Kind = Literal["linear", "conv1d", "convolution", "embedding", "head", "bias", "whole", "other"]
"""What an adapter can hold of a parameter.

``linear``, ``conv1d`` and ``convolution`` are weights of layers that LoRA adapts; ``embedding`` has a row per token or
position, ``head`` is an output head over tokens; ``bias`` belongs to a layer that LoRA adapts; ``whole`` is of a layer
that peft can only replace; ``other`` is in none.
"""

_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
_CLASS = "name the class in config.json as transformers has it: architectures"
_BASE = "give the model that it was tuned from"


@dataclass(frozen=True)
class Pair:
    """One parameter of the class in both checkpoints.

    Attributes:
        name: the parameter in memory.
        layer: the path of its module, which is its site; of a task's head, that of the whole head.
        kind: what an adapter can hold of it.
        tuned: the tuned tensor.
        base: the base's; None if it has none, as of a new head.
        ties: other parameters that are the same tensor in the class.
    """

    name: str
    layer: str
    kind: Kind
    tuned: Stored
    base: Stored | None
    ties: tuple[str, ...] = ()

    @property
    def turned(self) -> bool:
        """Whether it is stored as the transpose of its update."""
        return self.kind in ("conv1d", "embedding")

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)`` of its update."""
        rows = self.tuned.shape[0]
        width = self.tuned.entries // max(1, rows)
        return (width, rows) if self.turned else (rows, width)

    @property
    def grown(self) -> bool:
        """Whether it has more rows than the base's: added tokens."""
        return self.base is not None and self.base.shape != self.tuned.shape


@dataclass(frozen=True, eq=False)
class Model:
    """The class of a tuned checkpoint without weights, and its parameters in pairs.

    Attributes:
        architecture: names, and how stored names are mapped to them.
        modules: the model on the meta device.
        pairs: every floating-point parameter that the tuned checkpoint has; of tied ones, the first.
        ties: whether the base, or the class, ties its output head to its embedding.
        notes: remarks for the user.
    """

    architecture: Architecture
    modules: nn.Module = field(repr=False)
    pairs: list[Pair]
    ties: bool
    notes: list[str]

    @property
    def task_type(self) -> str | None:
        """peft's task type of the class."""
        return next((task for end, task in _TASKS.items() if self.architecture.name.endswith(end)), None)

    @cached_property
    def paths(self) -> dict[str, nn.Module]:
        """Path -> module."""
        return dict(self.modules.named_modules(remove_duplicate=False))

    def saved_with(self, layer: str) -> list[str]:
        """Return the layers that peft replaces if one is listed: all whose path ends like it."""
        return [path for path in self.paths if path.endswith(layer)]

    def pair_of(self, parameter: str) -> Pair | None:
        """Return the pair of a parameter, also of one that is tied to another; None if the checkpoint lacks it."""
        return self._by_name.get(parameter)

    @cached_property
    def _by_name(self) -> dict[str, Pair]:
        return {name: pair for pair in self.pairs for name in (pair.name, *pair.ties)}


def pair(tuned: Checkpoint, base: Checkpoint) -> Model:
    """Pair two checkpoints.

    Raises:
        FusionError: they are of different architectures; the class is unknown; a tensor that differs is in only one of
            them, or has another shape.
    """
    refuse_other_architecture(base, tuned)
    for checkpoint in (base, tuned):
        check_ties(checkpoint)
    architecture, modules = _class_of(tuned)
    _refuse_other_layers(architecture, tuned, base)
    theirs, ours = _Tensors(tuned, architecture, modules), _Tensors(base, architecture, modules)
    pairs = []
    for name, stored in theirs.by_name.items():
        if stored.dtype in FLOATS:
            origin = ours.by_name.get(name)
            _check_shapes(name, stored, origin, tuned)
            layer, kind = _home(name, modules, architecture)
            pairs.append(Pair(name, layer, kind, stored, origin, theirs.ties.get(name, ())))
        elif (other := ours.by_name.get(name)) is not None:
            _check_integers(stored, other, tuned)
    notes = list(_unmatched(theirs, ours, tuned, base))
    heads = [name for head in base.tied if (name := architecture.in_memory(head) or head) in architecture.parameters]
    return Model(architecture, modules, pairs, bool(theirs.ties or heads), notes)


class _Tensors:
    """A checkpoint's tensors by their names in memory; of tied parameters, only one is a key."""

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture, modules: nn.Module) -> None:
        tied: Mapping[str, Any] = getattr(modules, "all_tied_weights_keys", None) or {}
        found = {name: architecture.in_memory(name) for name in checkpoint.tensors}
        held = {memory: checkpoint.tensors[name] for name, memory in found.items() if memory is not None}
        self.unknown = {name: checkpoint.tensors[name] for name, memory in found.items() if memory is None}
        self.ties: dict[str, tuple[str, ...]] = {}
        for name, source in tied.items():
            if name in architecture.parameters and name != source:
                self.ties[source] = (*self.ties.get(source, ()), name)
                first, second = held.get(source, held.get(name)), held.get(name)
                if first is not None:
                    held[source] = first
                    _refuse_separate(first, second, checkpoint)
        for source, names in self.ties.items():
            held = {name: stored for name, stored in held.items() if name not in names or source not in held}
        # A head that the class has as a parameter of its own, and this checkpoint as its embedding.
        for head, embedding in checkpoint.tied.items():
            name, at = architecture.in_memory(head) or head, architecture.in_memory(embedding)
            if at in held and name in architecture.parameters and name not in self.ties.get(at or "", ()):
                held.setdefault(name, checkpoint.tensors[embedding])
        self.by_name = held


def _refuse_separate(first: Stored, second: Stored | None, checkpoint: Checkpoint) -> None:
    if second is not None and second is not first and not (first.shape == second.shape and same_bytes(first, second)):
        what = f"{checkpoint.name} has a separate output head, which the class of the tuned model ties"
        fix = "save both with separate heads, or both with tied ones"
        raise FusionError(what, got=second.name, where=checkpoint.folder, fix=fix)


def _class_of(tuned: Checkpoint) -> tuple[Architecture, nn.Module]:
    found = own_architectures(tuned.config)
    model = build(tuned.config, found[0].name) if found else None
    if model is None:
        what = "the class of the tuned model is not known, and so not which of its tensors are layers"
        raise FusionError(what, got=tuned.config.get("architectures"), where=tuned.folder, fix=_CLASS)
    return found[0], model


def _refuse_other_layers(architecture: Architecture, tuned: Checkpoint, base: Checkpoint) -> None:
    """Refuse a model with other layers than its base: no adapter adds or removes any."""
    model = build({**base.config, "architectures": [architecture.name]}, architecture.name)
    names = set() if model is None else set(model.state_dict())
    if odd := sorted(names ^ architecture.parameters.keys()):
        what = "the base has other layers" if model is not None else "the base's config.json makes no such model"
        raise FusionError(what, got=odd[0] if names else architecture.name, where=base.folder, fix=_BASE)


def _home(name: str, modules: nn.Module, architecture: Architecture) -> tuple[str, Kind]:
    """Return the layer of a parameter, and what an adapter can hold of it."""
    path, _, leaf = name.rpartition(".")
    parts = path.split(".") if path else []
    outer = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    if any(isinstance(modules.get_submodule(one), nn.MultiheadAttention) for one in outer):
        return path, "other"  # it multiplies by its weights itself, past the layers that peft adapts
    if (head := next((one for one in outer if _is_head(one, architecture.name)), None)) is not None:
        return head, "whole"
    layer = modules.get_submodule(path) if path else modules
    if isinstance(layer, nn.Embedding):
        return path, "embedding"
    if isinstance(layer, nn.Linear) and is_vocabulary(f"{path}.weight"):
        return path, "head" if leaf == "weight" else "bias"
    turned = type(layer).__name__ == "Conv1D"
    convolution = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1
    if leaf in ("weight", "bias") and (isinstance(layer, nn.Linear) or turned or convolution):
        kind: Kind = "conv1d" if turned else "convolution" if convolution else "linear"
        return path, "bias" if leaf == "bias" else kind
    return path, "other" if list(layer.children()) or not path else "whole"


def _is_head(path: str, name: str) -> bool:
    """Return whether peft saves a module whole by the task of its class."""
    task = next((task for end, task in _TASKS.items() if name.endswith(end)), "")
    return path.endswith(HEADS.get(task, ())) if task in HEADS else False


def _check_shapes(name: str, tuned: Stored, base: Stored | None, model: Checkpoint) -> None:
    if base is None or tuned.shape == base.shape:
        return
    rows = bool(base.shape) and tuned.shape[1:] == base.shape[1:] and tuned.shape[0] > base.shape[0]
    if not rows or not (is_vocabulary(name) or name.startswith("lm_head.")):
        what = f"the shapes differ: {model.name} has {list(tuned.shape)}, the base {list(base.shape)}"
        raise FusionError(what, where=name, fix=_BASE)


def _check_integers(tuned: Stored, base: Stored, model: Checkpoint) -> None:
    if tuned.shape != base.shape or tuned.dtype != base.dtype or not same_bytes(tuned, base):
        what = f"{model.name} has other integers than the base, which no adapter changes"
        raise FusionError(what, where=tuned.name, fix=_BASE)


def _unmatched(theirs: _Tensors, ours: _Tensors, tuned: Checkpoint, base: Checkpoint) -> Iterator[str]:
    """Yield notes on tensors that are not compared, because the class does not load them.

    Raises:
        FusionError: such a tensor of the tuned model is not in the base, or differs from it; or the tuned model lacks a
            parameter that the base has.
    """
    for name, stored in theirs.unknown.items():
        origin = base.find(name)
        if origin is None or origin.shape != stored.shape or not same_bytes(stored, origin):
            what = f"{tuned.name} has a tensor that its class does not load as it is, and that is not the base's"
            fix = "experts and other parameters that transformers converts are not extracted: fuse the checkpoints"
            raise FusionError(what, got=name, where=tuned.folder, fix=fix)
    if missing := sorted(ours.by_name.keys() - theirs.by_name.keys()):
        raise FusionError(f"{tuned.name} lacks a parameter of the base", got=missing[0], where=tuned.folder, fix=_BASE)
    if spare := sorted(name for name in ours.unknown if name not in theirs.unknown):
        more = f" and {len(spare) - 1} more" if len(spare) > 1 else ""
        yield f"of the base, the class of {tuned.name} does not have {spare[0]}{more}"
