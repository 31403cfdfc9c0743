"""`RoutedNetwork`: low-rank experts beside the layers of a backbone, and the gates that weigh them.

At a site, ``y = W x + B (g ⊙ A x)``: the rows of A and the columns of B are those of all experts, one after the other,
and g repeats the weight of an expert over its rank. No matrix of the size of W is made.

    settings (tangora.json) ─▶ RoutedNetwork: sites.SITE.a, .b │ gates.NAME.… │ fixed.SITE.a, .b
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tangora.config.settings import Frozen
from tangora.errors import AdapterError, ModelError
from tangora.modular.banks import Change, DenseBank, SparseBank
from tangora.modular.gates import Gate, gate_of
from tangora.modular.network import Network
from tangora.storage.held import autocasts
from tangora.support.validation import validate

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = [
    "Bank",
    "FixedSettings",
    "RoutedNetwork",
    "RoutedSettings",
    "SiteSettings",
    "Tree",
    "layer_at",
    "routed_network",
]

_FIX = "give the base model that the adapter was made for"


class SiteSettings(Frozen):
    """A site with experts.

    ``shape`` is ``[out, in]``, ``ranks`` has the rank of each expert, 0 if it does not change the layer. The gate reads
    the input of the site or, with ``at``, that of another module, such as the block around it; it then decides once for
    all sites inside. Experts of another ``form`` have no ranks: matrices are ``dense``, or ``sparse`` with ``kept``
    entries each; with ``bias``, experts change the layer's bias too.
    """

    shape: list[int] = Field(min_length=2, max_length=2)
    ranks: list[int] = Field(min_length=1)
    gate: str
    at: str | None = None
    form: Literal["low-rank", "dense", "sparse"] = "low-rank"
    kept: int = Field(default=0, ge=0)
    bias: bool = False


class FixedSettings(Frozen):
    """A site with an update that is always added, of one rank."""

    shape: list[int] = Field(min_length=2, max_length=2)
    rank: int = Field(ge=1)


class RoutedSettings(Frozen):
    """What a `RoutedNetwork` is made of, as ``modules`` in ``tangora.json``.

    ``changes`` are shapes of parameters of the base that a change is always added to.
    """

    experts: list[str] = Field(min_length=1)
    gates: dict[str, dict[str, Any]] = Field(default_factory=dict)
    sites: dict[str, SiteSettings] = Field(default_factory=dict)
    fixed: dict[str, FixedSettings] = Field(default_factory=dict)
    changes: dict[str, list[int]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> RoutedSettings:
        for name, site in self.sites.items():
            if len(site.ranks) != len(self.experts):
                raise ValueError(f"{name} has {len(site.ranks)} ranks for {len(self.experts)} experts")
            if site.gate not in self.gates:
                raise ValueError(f"{name} names the gate {site.gate}, which does not exist")
        return self


class Bank(nn.Module):
    """The experts of one site: ``B (g ⊙ A x)``.

    Args:
        shape: ``(out, in)``.
        ranks: of each expert.
    """

    owners: Tensor

    def __init__(self, shape: list[int], ranks: list[int]) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(sum(ranks), shape[1]))
        self.b = nn.Parameter(torch.zeros(shape[0], sum(ranks)))
        owners = torch.tensor([expert for expert, rank in enumerate(ranks) for _ in range(rank)], dtype=torch.long)
        self.register_buffer("owners", owners, persistent=False)

    def forward(
        self, x: Float[Tensor, "batch *tokens in"], weights: Tensor | None = None
    ) -> Float[Tensor, "batch *tokens out"]:
        """Return what the experts add.

        Args:
            x: the input of the site.
            weights: of the experts, ``[batch, *tokens, experts]`` or ``[batch, experts]``; None for 1 each.
        """
        inner = F.linear(x if autocasts(x.device) else x.to(self.a.dtype), self.a)
        if weights is not None:
            while weights.ndim < inner.ndim:  # a decision for a sample counts for all its tokens
                weights = weights.unsqueeze(1)
            inner = inner * weights.to(inner.dtype).index_select(-1, self.owners)
        return F.linear(inner, self.b)


class Tree(nn.Module):
    """Modules by dotted names, which are names in the ``state_dict`` too, whatever they are."""

    def add(self, name: str, module: nn.Module) -> None:
        """Add a module."""
        parent: nn.Module = self
        *parts, last = name.split(".")
        for part in parts:
            # add_module refuses the names of methods, which modules of a backbone may have
            parent = parent._modules.setdefault(part, Tree())  # type: ignore[assignment]
        parent._modules[last] = module

    def at(self, name: str) -> Any:
        """Return the module of a name."""
        found: Any = self
        for part in name.split("."):
            found = found._modules[part]
        return found


class RoutedNetwork(Network):
    """Experts and gates, which answer in a backbone once they are attached (`tangora.modular.network.attach`).

    Args:
        settings: names of sites are those of the backbone, or of the model with a head around it.

    Raises:
        AdapterError: a gate cannot be made of its settings.
    """

    def __init__(self, settings: RoutedSettings) -> None:
        super().__init__()
        self.settings = settings
        self.sites, self.gates, self.fixed = Tree(), Tree(), Tree()
        for name, site in settings.sites.items():
            self.sites.add(name, _bank(site))
        for name, gate in settings.gates.items():
            self.gates.add(name, gate_of(gate))
        for name, one in settings.fixed.items():
            self.fixed.add(name, Bank(one.shape, [one.rank]))
        self.changes = Tree()
        for name, shape in settings.changes.items():
            self.changes.add(name, Change(shape))
        self._decided: dict[tuple[str, str], Tensor] = {}

    def gate(self, name: str) -> Gate:
        """Return a gate."""
        found: Gate = self.gates.at(name)
        return found

    def check_values(self) -> None:
        """Refuse places of entries that are in no matrix; see `Network.check_values`."""
        for name, site in self.settings.sites.items():
            if site.form == "sparse":
                self.sites.at(name).check_values(name)

    def connect(self, backbone: nn.Module) -> Iterator[RemovableHandle]:
        """Add hooks: gates that read elsewhere first, then fixed updates and experts; see `Network.connect`."""
        yield from super().connect(backbone)
        for name in self.settings.changes:
            yield self.changes.at(name).added(backbone, name)
        places = {(site.gate, site.at) for site in self.settings.sites.values() if site.at is not None}
        for gate, at in sorted(places):
            module = _submodule(backbone, at)
            yield module.register_forward_pre_hook(partial(self._decide, gate, at), with_kwargs=True)
        for name, fixed in self.settings.fixed.items():
            layer, bank = layer_at(backbone, name, fixed.shape), self.fixed.at(name)
            yield layer.register_forward_hook(partial(self._add, _beside(bank, layer)), with_kwargs=True)
        for name, site in self.settings.sites.items():
            layer, bank = layer_at(backbone, name, site.shape), self.sites.at(name)
            yield layer.register_forward_hook(partial(self._route, _beside(bank, layer), site), with_kwargs=True)

    def _decide(self, gate: str, at: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Keep the weights of a gate that reads the input of a module, for the sites inside it."""
        self.gate(gate).placed(at)
        self._decided[gate, at] = self._weights(gate, _hidden(inputs, named))

    def _weights(self, name: str, x: Tensor) -> Tensor:
        gate = self.gate(name)
        device = next(gate.parameters(), x).device
        with torch.autocast(x.device.type, enabled=False):  # close decisions in half precision would be others
            weights: Tensor = gate(x.to(device).float(), self.mask_of(x) if x.ndim == 3 else None)
        return weights.to(x.device)

    def _add(
        self, bank: Bank, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], out: Tensor
    ) -> Tensor:
        added: Tensor = bank(_hidden(inputs, named))
        return out + added.to(out.dtype)

    def _route(
        self,
        bank: Bank,
        site: SiteSettings,
        module: nn.Module,
        inputs: tuple[Any, ...],
        named: dict[str, Any],
        out: Tensor,
    ) -> Tensor:
        x = _hidden(inputs, named)
        weights = self._weights(site.gate, x) if site.at is None else self._decided[site.gate, site.at]
        added: Tensor = bank(x, weights)
        return out + added.to(out.dtype)


def _bank(site: SiteSettings) -> nn.Module:
    """Return the experts of a site, without their values."""
    match site.form:
        case "dense":
            return DenseBank(site.shape, len(site.ranks), site.bias)
        case "sparse":
            return SparseBank(site.shape, len(site.ranks), site.kept, site.bias)
    return Bank(site.shape, site.ranks)


def routed_network(modules: Mapping[str, Any] | None) -> RoutedNetwork:
    """Return the network of an adapter, without the adapter's tensors.

    Args:
        modules: its settings in ``tangora.json``.

    Raises:
        AdapterError: they are missing or invalid.
    """
    return RoutedNetwork(validate(RoutedSettings, modules or {}, "modules in tangora.json", AdapterError))


def layer_at(backbone: nn.Module, name: str, shape: list[int] | tuple[int, ...]) -> nn.Module:
    """Return the layer of a site.

    Args:
        backbone: a model, or the part without a head of the model that has the names.
        name: of the site.
        shape: ``(out, in)`` of its weight.

    Raises:
        ModelError: there is none, or it is of another kind or shape.
    """
    layer: Any = _submodule(backbone, name)
    if type(layer).__name__ == "Conv1D":  # of transformers; its weight is [in, out]
        own = (layer.nf, layer.nx)
    elif isinstance(layer, nn.Linear):
        own = (layer.out_features, layer.in_features)
    else:
        fix = "route experts of Linear and Conv1D layers"
        raise ModelError(
            "no experts can be put beside this kind of layer", got=type(layer).__name__, where=name, fix=fix
        )
    if own != tuple(shape):
        raise ModelError(f"the layer is {own}, the experts are {tuple(shape)}", where=name, fix=_FIX)
    found: nn.Module = layer
    return found


def _submodule(backbone: nn.Module, name: str) -> nn.Module:
    """Return a module by its name in the backbone, or in the model with a head that it is the backbone of."""
    known: dict[str, nn.Module] = dict(backbone.named_modules())
    bare = name.removeprefix(f"{getattr(backbone, 'base_model_prefix', '')}.")
    if name not in known and bare not in known:
        raise ModelError("the model has no such layer", got=type(backbone).__name__, where=name, fix=_FIX)
    return known[name] if name in known else known[bare]


def _beside(bank: Bank, layer: nn.Module) -> Bank:
    """Return the bank on the layer's device: those of a model may be several."""
    return bank.to(next(layer.parameters()).device)


def _hidden(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """Return the tensor that a module was called with."""
    hidden: Tensor = inputs[0] if inputs else next(value for value in named.values() if isinstance(value, Tensor))
    return hidden
