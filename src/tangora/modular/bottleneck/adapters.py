"""Adapters at their places: what they compute, the hooks that add it, and adapters whose weights are parameters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tangora.modular.bottleneck.places import Place
from tangora.modular.network import Network

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch.utils.hooks import RemovableHandle

__all__ = ["Adapters", "Bottlenecks", "Form", "Size", "added", "shapes_of"]

_START = 0.01  # standard deviation of new values
_EPS = 1e-6  # of normalization

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}


@dataclass(frozen=True)
class Form:
    """What all adapters of a network have in common; see `tangora.config.bottleneck.BottleneckKeys`."""

    form: str
    activation: str
    norm: str
    output_scale: float


@dataclass(frozen=True)
class Size:
    """The size of an adapter: the width of its place, and that of its bottleneck."""

    width: int
    bottleneck: int


def shapes_of(size: Size, norm: str) -> dict[str, tuple[int, ...]]:
    """Return the name of each weight of an adapter -> its shape.

    >>> shapes_of(Size(8, 2), "none")
    {'down': (2, 8), 'down_bias': (2,), 'up': (8, 2), 'up_bias': (8,)}
    """
    width, bottleneck = size.width, size.bottleneck
    shapes: dict[str, tuple[int, ...]] = {"down": (bottleneck, width), "down_bias": (bottleneck,)}
    shapes |= {"up": (width, bottleneck), "up_bias": (width,)}
    return shapes if norm == "none" else shapes | {"norm_weight": (width,), "norm_bias": (width,)}


def added(x: Float[Tensor, "*batch width"], weights: Mapping[str, Tensor], form: Form) -> Tensor:
    """Return what an adapter adds: ``scale · (W_up act(W_down x + b_down) + b_up)``.

    With ``norm: before``, x is normalized; with ``after``, the sum in brackets.

    Args:
        x: what the adapter reads.
        weights: by the names of `shapes_of`.
        form: of the adapter.
    """
    x = x.to(weights["down"].dtype)
    x = _normalized(x, weights) if form.norm == "before" else x
    hidden = _ACTIVATIONS[form.activation](functional.linear(x, weights["down"], weights["down_bias"]))
    y = functional.linear(hidden, weights["up"], weights["up_bias"])
    return form.output_scale * (_normalized(y, weights) if form.norm == "after" else y)


def _normalized(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weights["norm_weight"], weights["norm_bias"], _EPS)


class Adapters(Network):
    """Adapters at places of a backbone, connected by hooks. Derive from it, and implement `weights`.

    Args:
        places: in the order of the network.
        form: of every adapter.
    """

    def __init__(self, places: Sequence[Place], form: Form) -> None:
        super().__init__()
        self.places, self.form = tuple(places), form
        self._entered: dict[int, Tensor] = {}

    @abstractmethod
    def weights(self, number: int) -> Mapping[str, Tensor]:
        """Return the weights of the adapter at a place, by the names of `shapes_of`."""

    def connect(self, backbone: nn.Module) -> Iterator[RemovableHandle]:
        """Register hooks at the exits, and at the entries if adapters are parallel; see `Network.connect`."""
        yield from super().connect(backbone)
        for number, place in enumerate(self.places):
            if self.form.form == "parallel":
                yield backbone.get_submodule(place.entry).register_forward_pre_hook(self._entering(number))
            yield backbone.get_submodule(place.exit).register_forward_hook(self._leaving(number))

    def _entering(self, number: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._entered[number] = inputs[0]

        return note

    def _leaving(self, number: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            read = self._entered.pop(number) if self.form.form == "parallel" else output
            return output + added(read, self.weights(number), self.form).to(output.dtype)

        return add


class _Weights(nn.Module):
    """The weights of one adapter: it adds nothing at first."""

    def __init__(self, size: Size, norm: str) -> None:
        super().__init__()
        for name, shape in shapes_of(size, norm).items():
            start = _START * torch.randn(shape) if name == "down" else torch.zeros(shape)
            start = torch.ones(shape) if name == "norm_weight" else start
            self.register_parameter(name, nn.Parameter(start))


class Bottlenecks(Adapters):
    """Adapters whose weights are parameters.

    Args:
        places, form: see `Adapters`.
        bottlenecks: the width of the bottleneck at each place.
    """

    def __init__(self, places: Sequence[Place], form: Form, bottlenecks: Sequence[int]) -> None:
        super().__init__(places, form)
        self.bottlenecks = tuple(bottlenecks)
        sizes = [Size(place.width, n) for place, n in zip(places, bottlenecks, strict=True)]
        self.adapters = nn.ModuleList(_Weights(size, form.norm) for size in sizes)

    def weights(self, number: int) -> Mapping[str, Tensor]:
        """Return the parameters of a place."""
        return dict(self.adapters[number].named_parameters())

    @property
    def settings(self) -> dict[str, Any]:
        """What it is made of again, as JSON."""
        listed = [{**asdict(place), "bottleneck": n} for place, n in zip(self.places, self.bottlenecks, strict=True)]
        return {**asdict(self.form), "places": listed}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Bottlenecks:
        """Return the adapters of such settings, without their values.

        Raises:
            KeyError, TypeError: the settings are others.
        """
        form = Form(**{name: settings[name] for name in Form.__dataclass_fields__})
        listed = [dict(one) for one in settings["places"]]
        bottlenecks = [int(one.pop("bottleneck")) for one in listed]
        return cls([Place(**one) for one in listed], form, bottlenecks)
