"""The networks that are put into a backbone: with a generator, and with the adapters of one task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.config.pha import ModuleShapes
from tangora.errors import ModelError
from tangora.modular.network import Network
from tangora.modular.pha.parts import Bottleneck, Generator, Retriever
from tangora.modular.pha.places import Halves, halves_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch.utils.hooks import RemovableHandle

    from tangora.config.pha import PrototypeSizes

__all__ = ["JOINT", "ParallelAdapters", "PrototypeNetwork"]

JOINT = "joint."
"""How the names of tensors begin that an adapter contains for new tasks, and does not answer with."""

_KEPT = ("generator.", "retriever.")


class ParallelAdapters(Network):
    """The adapters of one task: shared ones in the first half of a backbone, its own ones in the second.

    Args:
        shapes: of the modules.
    """

    def __init__(self, shapes: ModuleShapes) -> None:
        super().__init__()
        self.shapes = shapes
        self.shared = _bottlenecks(shapes.width, shapes.bottleneck, shapes.shared)
        self.generated = _bottlenecks(shapes.width, shapes.bottleneck, shapes.generated)

    def connect(self, backbone: nn.Module) -> Iterator[RemovableHandle]:
        """Add each adapter beside its layer; see `Network.connect`."""
        yield from super().connect(backbone)
        halves = halves_of(backbone)
        _refuse_other_layers(halves, self.shapes.width, len(self.shared), len(self.generated))
        for place, adapter in zip((*halves.shared, *halves.generated), (*self.shared, *self.generated), strict=True):
            yield place.connect(adapter)


class PrototypeNetwork(Network):
    """Shared adapters, and a generator that makes the others from the prototype of a batch's task.

    ``task`` is the number of a batch's task. It may also be a tensor with one number per row: adapters are then
    generated for each row. For rows of one task, the result is the same.

    Args:
        halves: of the backbone.
        tasks: number of prototypes.
        sizes: of the parts.
        earlier: prototypes of tasks that are not trained: further negatives of the loss.
    """

    earlier: Tensor

    def __init__(self, halves: Halves, tasks: int, sizes: PrototypeSizes, earlier: Tensor | None = None) -> None:
        super().__init__()
        self.width, self.sizes = halves.width, sizes
        self.shared = _bottlenecks(halves.width, sizes.bottleneck, len(halves.shared))
        self.generator = Generator(halves.width, len(halves.generated), sizes)
        self.retriever = Retriever(halves.width, sizes)
        self.prototypes = nn.Parameter(torch.randn(tasks, sizes.prototype))
        self.register_buffer("earlier", torch.empty(0, sizes.prototype) if earlier is None else earlier)
        self._pooled: list[Tensor] | None = None

    def connect(self, backbone: nn.Module) -> Iterator[RemovableHandle]:
        """Add each adapter beside its layer, and watch the border of the halves; see `Network.connect`."""
        yield from super().connect(backbone)
        halves = halves_of(backbone)
        _refuse_other_layers(halves, self.width, len(self.shared), self.generator.layers.num_embeddings)
        for place, adapter in zip(halves.shared, self.shared, strict=True):
            yield place.connect(adapter)
        for layer, place in enumerate(halves.generated):
            yield place.connect(partial(self._adapted, layer))
        if halves.after:
            yield halves.border.register_forward_hook(lambda _, __, output: self._pool(output[0]))
        else:
            yield halves.border.register_forward_pre_hook(lambda _, inputs: self._pool(inputs[0]))

    def _adapted(self, layer: int, x: Tensor) -> Tensor:
        """Return the output of the adapter that is generated for the batch's task."""
        added: Tensor = self.generator(self.prototypes[self.task], layer).of(x)
        return added

    @contextlib.contextmanager
    def collecting(self) -> Iterator[list[Float[Tensor, "rows width"]]]:
        """Collect the means over tokens of the first half's hidden states, one tensor for each forward pass.

        `retriever` makes encodings of them.
        """
        self._pooled = []
        try:
            yield self._pooled
        finally:
            self._pooled = None

    def _pool(self, hidden: Float[Tensor, "rows length width"]) -> None:
        if self._pooled is None:
            return
        states, mask = hidden.float(), self.mask_of(hidden)
        if mask is None:
            self._pooled.append(states.mean(1))
        else:
            mask = mask.to(states.dtype).unsqueeze(-1)
            self._pooled.append((states * mask).sum(1) / mask.sum(1))

    @property
    def all_prototypes(self) -> Float[Tensor, "tasks prototype"]:
        """The prototypes of earlier tasks, and after them those that are trained."""
        return torch.cat([self.earlier, self.prototypes])

    def shapes(self, **more: Any) -> ModuleShapes:
        """Return the shapes of one task's adapters."""
        layers = self.generator.layers.num_embeddings
        return ModuleShapes(
            width=self.width, bottleneck=self.sizes.bottleneck, shared=len(self.shared), generated=layers, **more
        )

    @torch.no_grad()
    def baked(self, task: int) -> dict[str, Tensor]:
        """Return the adapters of a task as the ``state_dict`` of a `ParallelAdapters`: the generator runs once."""
        tensors = {f"shared.{name}": value for name, value in self.shared.state_dict().items()}
        for layer in range(self.generator.layers.num_embeddings):
            made = self.generator(self.prototypes[task], layer).tensors()
            tensors |= {f"generated.{layer}.{name}": value for name, value in made.items()}
        return {name: value.detach().contiguous() for name, value in tensors.items()}

    def kept(self) -> dict[str, Tensor]:
        """Return what new tasks need besides the shared adapters; names begin with `JOINT`."""
        tensors = {n: value for n, value in self.state_dict().items() if n.startswith(_KEPT)}
        tensors["prototypes"] = self.all_prototypes.detach()
        return {JOINT + name: value for name, value in tensors.items()}

    def load_kept(self, tensors: Mapping[str, Tensor]) -> None:
        """Load shared adapters, generator and retriever of an adapter's tensors; prototypes stay as they are.

        Raises:
            RuntimeError: names or shapes differ.
        """
        own = {name: value for name, value in tensors.items() if name.startswith("shared.")}
        own |= {n.removeprefix(JOINT): v for n, v in tensors.items() if n.startswith(tuple(JOINT + k for k in _KEPT))}
        self.load_state_dict({**own, "prototypes": self.prototypes, "earlier": self.earlier})


def _bottlenecks(width: int, inner: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(Bottleneck(width, inner) for _ in range(count))


def _refuse_other_layers(halves: Halves, width: int, shared: int, generated: int) -> None:
    """Refuse a backbone with other numbers of layers, or of another width."""
    own: Sequence[int] = (len(halves.shared), len(halves.generated), halves.width)
    if own != (shared, generated, width):
        what = f"the adapter is for {shared} + {generated} layers of width {width}"
        got = f"{own[0]} + {own[1]} layers of width {own[2]}"
        raise ModelError(what, got=got, where="base.model", fix="give the base of the adapter")
