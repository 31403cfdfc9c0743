"""Grids of gates on feed-forward weights (HyperGrid, arXiv:2007.05891).

    W' = W ∘ repeat(H)        H = g(u vᵀ) ∈ R^{d_r × d_c}        u = L_r x, v = L_c x

x describes the task. W is divided into d_r blocks of inputs and d_c blocks of outputs, and each block has one gate.
Here g is 2σ, 1 + tanh or exp, and u or v begins at zero: so all gates begin at 1, and the network at its base.

    HyperGrid: u and v from x, trained on all tasks ── for each task ─▶ Grids: log H of each matrix, fixed

Gates are computed from their logarithms, in training too, so that a fixed grid gives the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tangora.errors import ModelError
from tangora.modular.network import Network
from tangora.storage.held import is_held

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from tangora.config.hypergrid import HyperGridSettings

__all__ = ["Grids", "HyperGrid", "feed_forward", "gated", "layers_of", "token_embedding"]

_FEED_FORWARD = re.compile(
    r"(^|\.)((mlp|ffn|DenseReluDense)\.\w+|intermediate\.dense|(?<!attention\.)output\.dense|fc[12]|pwconv[12])$"
)
"""The ends of the paths of feed-forward layers in transformers' encoders and encoder-decoders."""

_ZERO = torch.zeros(())

_LOGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    # The subtrahend is computed as the minuend, on whatever device: the difference is exactly 0 at 0.
    "sigmoid2": lambda z: F.logsigmoid(z) - F.logsigmoid(_ZERO.to(z.device)),
    "tanh": lambda z: F.logsigmoid(2 * z) - F.logsigmoid(_ZERO.to(z.device)),  # 1 + tanh(z) = 2 sigmoid(2z)
    "exp": lambda z: z,
}
"""Gate -> its logarithm, of z; finite wherever z is."""

_PARTS = {"L": ("local", None), "L2": ("local", "local"), "LG": ("local", "global"), "GL": ("global", "local")}
"""Variant -> what u and v are: of the task, of all tasks, or none."""


def gated(weight: Float[Tensor, "out in"], gates: Float[Tensor, "rows columns"]) -> Float[Tensor, "out in"]:
    """Return a weight with each of its blocks multiplied by a gate, ``W ∘ (gates ⊗ 1)ᵀ``.

    >>> gated(torch.ones(2, 4), torch.tensor([[2.0], [3.0]]))[0]
    tensor([2., 2., 3., 3.])
    """
    (rows, columns), (out, inside) = gates.shape, weight.shape
    blocks = weight.reshape(columns, out // columns, rows, inside // rows)
    return (blocks * gates.T[:, None, :, None]).reshape(out, inside)


def feed_forward(
    backbone: nn.Module, targets: Sequence[str] | None, grid: tuple[int, int] = (1, 1)
) -> dict[str, nn.Linear]:
    """Return name -> layer of the linear layers that have grids.

    Args:
        backbone: an encoder or an encoder-decoder.
        targets: ends of their names; by default those of the feed-forward blocks.
        grid: rows and columns, which must divide the widths.

    Raises:
        ModelError: a target matches nothing, or no linear layer; there are no known feed-forward blocks; or a width
            cannot be divided.
    """
    modules = dict(backbone.named_modules())
    if targets is None:
        chosen = [name for name, module in modules.items() if _is_linear(module) and _FEED_FORWARD.search(name)]
        if not chosen:
            fix = "name its linear layers in target_modules"
            raise ModelError("the feed-forward layers are not known", got=type(backbone).__name__, fix=fix)
    else:
        matched = {t: [n for n in modules if n == t or n.endswith(f".{t}")] for t in targets}
        if odd := [target for target, names in matched.items() if not names]:
            raise ModelError("a target module matches nothing", got=odd[0], where="target_modules")
        chosen = [name for name in modules if any(name in names for names in matched.values())]
    return {name: _checked(modules[name], name, grid) for name in chosen}


def layers_of(backbone: nn.Module, sites: Sequence[str]) -> dict[str, nn.Linear]:
    """Return name -> layer of an adapter's gated layers.

    Raises:
        ModelError: there is no such linear layer.
    """
    found = {}
    for site in sites:
        try:
            module = backbone.get_submodule(site)
        except AttributeError:
            fix = "give the base model that the adapter was made for"
            raise ModelError("the model has no such layer", where=site, fix=fix) from None
        found[site] = _checked(module, site, (1, 1))
    return found


def _checked(module: nn.Module, name: str, grid: tuple[int, int]) -> nn.Linear:
    if not _is_linear(module):
        fix = "name linear layers of a base in float32"
        raise ModelError("only linear layers have grids", got=type(module).__name__, where=name, fix=fix)
    layer = cast(nn.Linear, module)
    widths = {"rows": layer.in_features, "columns": layer.out_features}
    for (key, width), count in zip(widths.items(), grid, strict=True):
        if width % count:
            side = "inputs" if key == "rows" else "outputs"
            what = f"{width} {side} of {name} are not divided into {count} blocks"
            raise ModelError(what, where=key, fix=f"choose a divisor of {width}")
    return layer


def _is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer whose forward pass can be computed with another weight."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward and not is_held(module)


def token_embedding(backbone: nn.Module) -> nn.Embedding | None:
    """Return the layer that looks up tokens; None if the backbone reads none."""
    get: Any = getattr(backbone, "get_input_embeddings", None)
    found = get() if callable(get) else None
    return found if isinstance(found, nn.Embedding) else None


class _GatedForward:
    """The forward pass of a linear layer with a gated weight. An object, which is copied with its layer."""

    def __init__(self, layer: nn.Linear, network: _Gating, site: str) -> None:
        self.layer, self.network, self.site = layer, network, site
        layer.forward = self  # type: ignore[method-assign]

    def __call__(self, input: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        weight = gated(self.layer.weight, self.network.log_gates(self.site).exp())
        return F.linear(input, weight, self.layer.bias)

    def remove(self) -> None:
        """Leave the layer its own forward pass."""
        del self.layer.forward


class _Gating(Network):
    """A network that gates the weights of some layers. Derive from it, and implement `log_gates`.

    Args:
        sites: the layers.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.sites = tuple(sites)

    def log_gates(self, site: str) -> Float[Tensor, "rows columns"]:
        """Return the logarithms of the gates of a layer for the present task."""
        raise NotImplementedError

    def connect(self, backbone: nn.Module) -> Iterator[RemovableHandle]:
        """Gate the layers; see `Network.connect`."""
        yield from super().connect(backbone)
        for site, layer in layers_of(backbone, self.sites).items():
            yield cast("RemovableHandle", _GatedForward(layer, self, site))  # only its `remove` is used


class HyperGrid(_Gating):
    """The trained network: gates computed from what describes the task.

    Args:
        sites: the gated layers.
        settings: variant, gate and grid.
        width: of x.
        tasks: their number, for an embedding of each.
        tokens: a token for each task, whose embedding in the base is used in place of one of its own.
    """

    def __init__(
        self,
        sites: Sequence[str],
        settings: HyperGridSettings,
        width: int,
        tasks: int,
        tokens: Sequence[int] | None = None,
    ) -> None:
        super().__init__(sites)
        self.tokens, self._gate = tokens, _LOGS[settings.gate]
        self.embedding = nn.Parameter(torch.randn(tasks, width)) if tokens is None else None
        self._tokens_of: tuple[nn.Embedding, ...] = ()  # in a tuple, so that it stays the backbone's
        self.factors = nn.Module()
        parts, sizes = _PARTS[settings.variant], settings.grid
        last = "v" if parts[1] else "u"
        for site in self.sites:
            for name, part, size in zip("uv", parts, sizes, strict=True):
                if part is not None:
                    shape = (size, width) if part == "local" else (size,)
                    # at scale 1 with x of scale 1; what is zero makes all gates 1
                    drawn = torch.randn(shape) * (width**-0.5 if part == "local" else 1.0)
                    _put(self.factors, f"{site}.{name}", torch.zeros(shape) if name == last else drawn)

    def connect(self, backbone: nn.Module) -> Iterator[RemovableHandle]:
        """Gate the layers, by the backbone's embedding of tokens if that describes the tasks."""
        if self.tokens is not None:
            self._tokens_of = (cast(nn.Embedding, token_embedding(backbone)),)
        yield from super().connect(backbone)

    def log_gates(self, site: str) -> Float[Tensor, "rows columns"]:
        """Return the logarithms of the gates of a layer for the task that `Network.task` numbers."""
        layer = self.factors.get_submodule(site)
        u, v = (self._side(getattr(layer, name, None)) for name in "uv")
        assert u is not None
        return self._gate(u[:, None] if v is None else torch.outer(u, v))

    def _side(self, factor: Tensor | None) -> Tensor | None:
        """Return u or v: a matrix is multiplied by x, a vector is that of all tasks."""
        return factor if factor is None or factor.ndim == 1 else factor @ self._x()

    def _x(self) -> Float[Tensor, " width"]:
        if self.embedding is not None:
            return self.embedding[self.task]
        assert self.tokens is not None
        return self._tokens_of[0].weight[self.tokens[self.task]]

    @torch.no_grad()
    def grids(self, task: int) -> dict[str, Float[Tensor, "rows columns"]]:
        """Return layer -> logarithms of the gates of a task. The network is attached."""
        self.task = task
        return {site: self.log_gates(site).detach().float().cpu().clone() for site in self.sites}


class Grids(_Gating):
    """The network of one task: the logarithms of its gates, and what was changed of the base's weights.

    Args:
        sites: the gated layers.
        grid: rows and columns.
        changes: parameter of the base -> shape of what is added to it while the network is attached.
    """

    def __init__(
        self, sites: Sequence[str], grid: tuple[int, int], changes: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        super().__init__(sites)
        self.grids, self.changes, self.changed = nn.Module(), nn.Module(), tuple(changes or {})
        for site in self.sites:
            _put(self.grids, f"{site}.log_gates", torch.zeros(grid))
        for name, shape in (changes or {}).items():
            _put(self.changes, name, torch.zeros(tuple(shape)))

    def log_gates(self, site: str) -> Float[Tensor, "rows columns"]:
        """Return the logarithms of the gates of a layer."""
        return self.grids.get_parameter(f"{site}.log_gates")

    def connect(self, backbone: nn.Module) -> Iterator[RemovableHandle]:
        """Add the changes to the base's weights, and gate the layers."""
        for name in self.changed:
            yield cast("RemovableHandle", _Added(backbone.get_parameter(name), self.changes.get_parameter(name)))
        yield from super().connect(backbone)


class _Added:
    """A change that is added to a parameter until it is removed."""

    @torch.no_grad()
    def __init__(self, parameter: nn.Parameter, change: Tensor) -> None:
        self.parameter, self.before = parameter, parameter.detach().clone()
        parameter.add_(change)

    @torch.no_grad()
    def remove(self) -> None:
        """Restore the parameter, bit for bit."""
        self.parameter.copy_(self.before)


def _put(root: nn.Module, name: str, value: Tensor) -> None:
    """Add a parameter by a dotted name, in modules that are made for it."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = cast(nn.Module, root._modules[part])
    root.register_parameter(last, nn.Parameter(value))
