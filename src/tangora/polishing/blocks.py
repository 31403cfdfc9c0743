"""The blocks of a backbone, called one after the other, and each of them called alone.

A backbone is a sequence of blocks if it has one list of modules (``nn.ModuleList``, not inside another such list) whose
members are called once each, in order, and if the output of each is the input of the next: layers of BERT, ViT, CLIP's
vision tower, or a decoder. This is observed in a pass, not read from the class. A model of an encoder and a
decoder has two such lists, and the blocks of its decoder have a second input, the encoder's output: it is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tangora.adapters.application import applied, find_slots
from tangora.errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from tangora.adapters.adapter import Adapter
    from tangora.support.machine import Machine
    from tangora.tasks import Base
    from tangora.tasks.model import TaskModel
    from tangora.tasks.values import Batch

__all__ = ["Blocks", "Passing", "blocks_of", "within"]

_HIDDEN = "hidden_states"
_OTHERWISE = "follow the experts' answers instead: leave objective and initial out"
_CACHES = ("past_key_values", "past_key_value", "layer_past")
_WHERE = "polish, layer by layer"


@dataclass
class Passing:
    """A batch on its way through the blocks of one model.

    Attributes:
        hidden: the input of the present block.
        calls: for each block, its other arguments, by position and by name.
        mask: which positions of the input count; None if all do.
    """

    hidden: Float[Tensor, "batch *positions width"]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    mask: Bool[Tensor, "batch positions"] | None = None

    def counted(self, value: Float[Tensor, "batch *positions width"]) -> Float[Tensor, "counted width"]:
        """Return the vectors at the positions that count; all, of a tensor with other positions than the input."""
        if self.mask is not None and value.shape[:2] == self.mask.shape:
            return value[self.mask]
        return value.reshape(-1, value.shape[-1])


@dataclass(frozen=True)
class Blocks:
    """The blocks of a backbone.

    Attributes:
        backbone: with the weights of the base; no method leaves it changed.
        names: of the blocks, in order.
        machine: that the backbone computes with.
    """

    backbone: nn.Module
    names: tuple[str, ...]
    machine: Machine

    def enter(self, model: TaskModel, batch: Batch) -> Passing:
        """Return a batch as it enters the first block, with the present weights of the backbone.

        Raises:
            ModelError: a block is called twice, or not at all.
        """
        passing, _ = self._observed(model, batch)
        return passing

    def run(self, index: int, passing: Passing, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the output of a block.

        Args:
            index: of the block.
            passing: contains its input.
            weights: of the block, by their names in it; the others are those of the base.
        """
        args, named = passing.calls[index]
        args, named = _with_hidden(args, named, passing.hidden)
        with self.machine.autocast():
            return _first(functional_call(self.block(index), dict(weights), args, named))

    def block(self, index: int) -> nn.Module:
        """Return a block."""
        return self.backbone.get_submodule(self.names[index])

    def weights(self, index: int, adapter: Adapter) -> dict[str, Tensor]:
        """Return the parameters of a block that an adapter changes, with its changes; by their names in the block."""
        part = within(adapter, self.names[index])
        touched = {slot.name for slot in find_slots(self.backbone, part).values()} | part.whole.keys()
        prefix = f"{self.names[index]}."
        with applied(self.backbone, part):
            parameters = dict(self.backbone.named_parameters(remove_duplicate=False))
            return {name.removeprefix(prefix): parameters[name].detach().clone() for name in sorted(touched)}

    @contextlib.contextmanager
    def tapped(
        self, index: int, sites: Mapping[str, str], keep: Callable[[str, Tensor, Tensor], None]
    ) -> Iterator[None]:
        """Call ``keep(site, input, output)`` after every call of a layer of a block.

        Args:
            index: of the block.
            sites: site -> name of its layer in the block.
            keep: called with the tensors.
        """

        def tap(site: str) -> Callable[..., None]:
            return lambda module, inputs, output: keep(site, inputs[0], output)

        block = self.block(index)
        handles = [block.get_submodule(name).register_forward_hook(tap(site)) for site, name in sites.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _observed(self, model: TaskModel, batch: Batch) -> tuple[Passing, list[tuple[Tensor, Tensor]]]:
        """Return the batch as it enters, and the inputs and outputs of the blocks."""
        given: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        masks: list[Tensor] = []
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def entering(index: int) -> Callable[..., None]:
            def keep(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
                if index in given:
                    what = "a block is called more than once in a pass"
                    raise ModelError(what, got=self.names[index], where=_WHERE, fix=_OTHERWISE)
                given[index] = _without_hidden(args, named)
                seen[index] = (_hidden(args, named), _first(output))

            return keep

        def around(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if isinstance(mask := named.get("attention_mask"), Tensor) and mask.ndim == 2:
                masks.append(mask.bool())

        with contextlib.ExitStack() as hooks, torch.no_grad():
            for index in range(len(self.names)):
                handle = self.block(index).register_forward_hook(entering(index), with_kwargs=True)
                hooks.callback(handle.remove)
            for module in _around(self.backbone, self.names[0]):
                hooks.callback(module.register_forward_pre_hook(around, with_kwargs=True).remove)
            model.logits({name: value for name, value in batch.items() if name != "labels"}, batch["labels"])
        if len(given) < len(self.names):
            raise ModelError("a block is not called", got=self.names[len(given)], where=_WHERE, fix=_OTHERWISE)
        pairs = [seen[index] for index in range(len(self.names))]
        hidden = pairs[0][0]
        mask = next((mask for mask in masks if mask.shape == hidden.shape[:2] and hidden.ndim == 3), None)
        return Passing(hidden, [given[index] for index in range(len(self.names))], mask), pairs


def blocks_of(base: Base, model: TaskModel, batch: Batch) -> Blocks:
    """Return the blocks of a backbone, as they are called for a batch.

    Args:
        base: its backbone is in evaluation mode.
        model: of a task, around the backbone.
        batch: of the task.

    Raises:
        ModelError: the backbone is no sequence of blocks, or a block called alone computes something else than in it.
    """
    found = _sequences(base.backbone, model, batch)
    if len(found) != 1:
        several = "the backbone has several sequences of blocks, and blocks of one depend on another's output"
        what = several if found else "the backbone has no list of blocks that are called once each, in order"
        got = ", ".join(name for name, _ in found) or type(base.backbone).__name__
        raise ModelError(what, got=got, where=_WHERE, fix=_OTHERWISE)
    blocks = Blocks(base.backbone, found[0][1], base.machine)
    passing, pairs = blocks._observed(model, batch)
    for index, (hidden, output) in enumerate(pairs):
        if index + 1 < len(pairs) and not _same(output, pairs[index + 1][0]):
            what = "the input of a block is not the output of the one before"
            raise ModelError(what, got=blocks.names[index + 1], where=_WHERE, fix=_OTHERWISE)
        with torch.no_grad():
            alone = blocks.run(index, replace(passing, hidden=hidden), {})
        scale = float(output.abs().max()) + float(hidden.abs().max())
        if alone.shape != output.shape or float((alone - output).abs().max()) > 1e-4 * scale:
            what = "a block that is called alone computes something else than in the model"
            raise ModelError(what, got=blocks.names[index], where=_WHERE, fix=_OTHERWISE)
    return blocks


def within(adapter: Adapter, block: str) -> Adapter:
    """Return the part of an adapter that changes a block."""
    prefix = f"{block}."
    updates = {site: update for site, update in adapter.updates.items() if site.startswith(prefix)}
    whole = {name: value for name, value in adapter.whole.items() if name.startswith(prefix)}
    return replace(adapter, updates=updates, whole=whole)


def _sequences(backbone: nn.Module, model: TaskModel, batch: Batch) -> list[tuple[str, tuple[str, ...]]]:
    """Return the lists of modules that are called once each, in order; without those inside another list."""
    lists = {name: part for name, part in backbone.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    outer = {n: x for n, x in lists.items() if not any(n.startswith(f"{other}.") for other in lists if other != n)}
    called: dict[str, list[int]] = {name: [] for name in outer}

    def note(name: str, index: int) -> Callable[..., None]:
        return lambda module, args: called[name].append(index)

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, part in outer.items():
            for index, member in enumerate(part):
                hooks.callback(member.register_forward_pre_hook(note(name, index)).remove)
        model.logits({name: value for name, value in batch.items() if name != "labels"}, batch["labels"])
    ordered = [name for name, part in outer.items() if called[name] == list(range(len(part)))]
    return [(name, tuple(f"{name}.{index}" for index in range(len(outer[name])))) for name in ordered]


def _around(backbone: nn.Module, block: str) -> Iterator[nn.Module]:
    """Yield the modules that contain a block, outermost first."""
    parts = block.split(".")
    for count in range(len(parts) - 1):
        module = backbone.get_submodule(".".join(parts[:count]))
        if not isinstance(module, nn.ModuleList):
            yield module


def _hidden(args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    value = args[0] if args else named.get(_HIDDEN)
    if not isinstance(value, Tensor):
        got = type(value).__name__
        raise ModelError("the first argument of a block is no tensor", got=got, where=_WHERE, fix=_OTHERWISE)
    return value


def _without_hidden(args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the other arguments; without a cache, to which a second call would append."""
    rest = {n: None if n in _CACHES else v for n, v in named.items() if args or n != _HIDDEN}
    if "use_cache" in rest:
        rest["use_cache"] = False
    return args[1:], {**rest, **({} if args else {_HIDDEN: None})}


def _with_hidden(
    args: tuple[Any, ...], named: Mapping[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (args, {**named, _HIDDEN: hidden}) if _HIDDEN in named else ((hidden, *args), dict(named))


def _first(output: Any) -> Tensor:
    value = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(value, Tensor):
        got = type(value).__name__
        raise ModelError("the output of a block is no tensor", got=got, where=_WHERE, fix=_OTHERWISE)
    return value


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))
