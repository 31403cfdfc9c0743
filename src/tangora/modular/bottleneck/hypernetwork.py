"""The hypernetwork of HyperFormer and Polyhistor: it writes weights of adapters from embeddings of task and layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from tangora.errors import ModelError
from tangora.modular.bottleneck.adapters import Adapters, Bottlenecks, Form, Size, shapes_of
from tangora.modular.bottleneck.heads import MatrixHead, VectorHead, composed, kernel

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.modular.bottleneck.places import Place

__all__ = ["Hypernetwork", "Plan", "sizes_of"]

_EPS = 1e-6


@dataclass(frozen=True)
class Plan:
    """What a hypernetwork consists of.

    Attributes:
        form: of the adapters.
        reduction: ρ.
        embedding, hidden, projected: numbers of an embedding, of the hidden layer and of a code.
        share: which layers have the same heads: those of one ``stage`` (width), each ``block`` its own, or ``all``,
            which compose their weights from templates.
        rank: of the matrices that heads write; None for whole ones.
        released: kernels begin with standard deviation 1.
        template_first: the order of Kronecker products.
    """

    form: Form
    reduction: int
    embedding: int
    hidden: int
    projected: int
    share: Literal["stage", "block", "all"]
    rank: int | None = None
    released: bool = False
    template_first: bool = False


def sizes_of(places: Sequence[Place], reduction: int, *, composed: bool = False) -> list[Size]:
    """Return the size of the adapter at each place: a bottleneck of ``width // ρ``.

    Args:
        places: in the order of the network.
        reduction: ρ.
        composed: widths are multiples s of the smallest, and bottlenecks are s times the smallest one's.

    Raises:
        ModelError: ρ is larger than a width; or a width is no multiple of the smallest.
    """
    least = min(place.width for place in places)
    if reduction > least:
        what = f"a layer of width {least} has no bottleneck"
        raise ModelError(what, got=reduction, where="reduction", fix=f"give at most {least}")
    if not composed:
        return [Size(place.width, place.width // reduction) for place in places]
    if odd := [place for place in places if place.width % least]:
        what = f"widths must be multiples of the smallest, {least}"
        fix = "use train: polyhistor, which composes nothing"
        raise ModelError(what, got=f"{odd[0].width} in {odd[0].layer}", where="train: polyhistor-lite", fix=fix)
    return [Size(place.width, place.width // least * (least // reduction)) for place in places]


class _Group(nn.Module):
    """The heads of layers that share them."""

    def __init__(self, size: Size, plan: Plan) -> None:
        super().__init__()
        for name, shape in shapes_of(size, plan.form.norm).items():
            head = (
                VectorHead(plan.projected, shape[0])
                if len(shape) == 1
                else MatrixHead(plan.projected, shape[0], shape[1], plan.rank)
            )
            self.add_module(name, head)


class Hypernetwork(Adapters):
    """Weights from embeddings: ``u = LN(W₂ ReLU(W₁ [task; layer; position]))``, and a head for every weight.

    A position, attention or FFN, has an embedding only if both have adapters. With ``share: block`` heads belong to one
    layer, so that layers need no embedding: this is HyperFormer; with ``stage`` it is HyperFormer++
    (arXiv:2106.04489). With ``rank`` heads are decomposed: Polyhistor (arXiv:2210.03265). With ``share: all`` too, a
    layer s times as wide as the narrowest has s embeddings, hence s templates of that one's size, and kernels K of its
    own, which tasks share: ``W = Σ_i K[i] ⊗ T_i``. This is Polyhistor-Lite.

    Args:
        places: of the adapters.
        plan: what it consists of.
        tasks: their number.
    """

    def __init__(self, places: Sequence[Place], plan: Plan, tasks: int) -> None:
        super().__init__(places, plan.form)
        self.plan, self.sizes = plan, sizes_of(places, plan.reduction, composed=plan.share == "all")
        least = min(self.sizes, key=lambda size: size.width)
        layers = dict.fromkeys(place.layer for place in places)
        scale = {place.layer: place.width // least.width if plan.share == "all" else 1 for place in places}
        ends = [0]
        for layer in layers:
            ends.append(ends[-1] + scale[layer])
        self._rows = dict(zip(layers, pairwise(ends), strict=True))
        self._kinds = sorted({place.kind for place in places})
        self.tasks = nn.Parameter(torch.randn(tasks, plan.embedding))
        self.layers = nn.Parameter(torch.randn(ends[-1], plan.embedding)) if plan.share != "block" else None
        both = len(self._kinds) > 1
        self.positions = nn.Parameter(torch.randn(2, plan.embedding)) if both else None
        parts = 1 + (self.layers is not None) + both
        self.code = nn.Sequential(
            nn.Linear(parts * plan.embedding, plan.hidden),
            nn.ReLU(),
            nn.Linear(plan.hidden, plan.projected),
            nn.LayerNorm(plan.projected, eps=_EPS),
        )
        self._key = _KEYS[plan.share]
        self._names = {key: str(number) for number, key in enumerate(dict.fromkeys(map(self._key, places)))}
        of_group = {self._key(place): size for place, size in zip(places, self.sizes, strict=True)}
        if plan.share == "all":
            of_group = {_all(places[0]): least}
        self.groups = nn.ModuleDict({self._names[key]: _Group(size, plan) for key, size in of_group.items()})
        self.kernels = nn.ModuleList(_kernels(scale[place.layer], plan) for place in places)

    def weights(self, number: int) -> Mapping[str, Tensor]:
        """Return the weights of a place for the present task, as the heads write them."""
        return self._written(number, self.task)

    def unwritten(self) -> Bottlenecks:
        """Return adapters of the sizes that are written, with new values."""
        return Bottlenecks(self.places, self.form, [size.bottleneck for size in self.sizes])

    def baked(self, task: int) -> Bottlenecks:
        """Return the adapters of a task, with its weights as parameters."""
        made = self.unwritten()
        with torch.no_grad():
            for number, adapter in enumerate(made.adapters):
                for name, value in self._written(number, task).items():
                    adapter.get_parameter(name).copy_(value)
        return made

    def _written(self, number: int, task: int) -> dict[str, Tensor]:
        place, kernels = self.places[number], cast(nn.ParameterDict, self.kernels[number])
        with torch.autocast(self.tasks.device.type, enabled=False):  # as the baked weights, which are float32
            codes = self.code(self._embedded(place, task))
            heads = self.groups[self._names[self._key(place)]]
            first, chosen = self.plan.template_first, dict(kernels.named_parameters())
            return {
                name: composed(head(codes), chosen.get(name), template_first=first)
                for name, head in heads.named_children()
            }

    def _embedded(self, place: Place, task: int) -> Float[Tensor, "templates numbers"]:
        parts = [self.tasks[task]]
        if self.positions is not None:
            parts.append(self.positions[self._kinds.index(place.kind)])
        shared = torch.cat(parts)
        if self.layers is None:
            return shared[None]
        first, end = self._rows[place.layer]
        return torch.cat([shared.expand(end - first, -1), self.layers[first:end]], 1)


def _stage(place: Place) -> str:
    return str(place.width)


def _block(place: Place) -> str:
    return place.layer


def _all(place: Place) -> str:
    return "all"


_KEYS: Mapping[str, Callable[[Place], str]] = {"stage": _stage, "block": _block, "all": _all}
"""``share`` -> the name of the heads of a place."""


def _kernels(scale: int, plan: Plan) -> nn.ParameterDict:
    """Return the kernels of one place; none at scale 1."""
    dimensions = {name: len(shape) for name, shape in shapes_of(Size(1, 1), plan.form.norm).items()}
    made = {name: kernel(scale, count, released=plan.released) for name, count in dimensions.items()}
    return nn.ParameterDict({name: value for name, value in made.items() if value is not None})
