"""Gates: how much each expert contributes to an output, computed from a token or a sample.

A gate is made of settings, which are JSON in ``tangora.json``, and has parameters, which are in the adapter's file. Its
weights depend on one token, or on one sample, and never on the rest of a batch.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from tangora.config.settings import Frozen
from tangora.errors import AdapterError

__all__ = [
    "GATES",
    "ConstantGate",
    "Gate",
    "GateSettings",
    "PooledGate",
    "PooledSettings",
    "ProjectionGate",
    "PrototypeGate",
    "gate_of",
    "layer_code",
    "top",
]


_SPREAD = 0.01  # of the first weights of a pooled gate


class GateSettings(Frozen):
    """What a gate is made of. Derive from it, and give ``kind`` one value, which is also its default."""

    kind: str


class Gate(nn.Module):
    """The weights of experts for an input. Derive from it, add the class to `GATES`, and implement `forward`.

    Attributes:
        settings_class: the class of its settings.
        settings: of this gate.
    """

    settings_class: ClassVar[type[GateSettings]]

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def placed(self, at: str) -> None:
        """Say which module the next input is of, for a gate that several share; most need not know."""

    def forward(self, x: Float[Tensor, "batch *tokens width"], mask: Tensor | None = None) -> Tensor:
        """Return the weights: ``[batch, *tokens, experts]``, or ``[batch, experts]`` for one decision a sample.

        Args:
            x: the input of a layer, in float32.
            mask: ``[batch, tokens]``, 1 at tokens and 0 at padding; None if the batch has no mask.
        """
        raise NotImplementedError


class ConstantSettings(GateSettings):
    """Settings of a `ConstantGate`."""

    kind: Literal["constant"] = "constant"
    experts: int = Field(ge=1)


class ConstantGate(Gate):
    """The same weights for every input: task arithmetic with these coefficients."""

    settings_class = ConstantSettings

    def __init__(self, settings: ConstantSettings) -> None:
        super().__init__(settings)
        self.weights = nn.Parameter(torch.zeros(settings.experts))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the weights for every token; see `Gate.forward`."""
        return self.weights.expand(*x.shape[:-1], -1)


class ProjectionSettings(GateSettings):
    """Settings of a `ProjectionGate`: the width of its input, and how many directions each expert has."""

    kind: Literal["projection"] = "projection"
    width: int = Field(ge=1)
    ranks: list[int] = Field(min_length=1)
    top_k: int = Field(ge=1)


class ProjectionGate(Gate):
    """Softmax over ``‖Vₜᵀ x‖``, where the columns of Vₜ are directions of expert t (SMILE, arXiv:2408.10174).

    Only the ``top_k`` largest weights are kept, and divided by their sum.
    """

    settings_class = ProjectionSettings

    def __init__(self, settings: ProjectionSettings) -> None:
        super().__init__(settings)
        self.directions = nn.Parameter(torch.zeros(sum(settings.ranks), settings.width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the weights for every token; see `Gate.forward`."""
        parts = F.linear(x, self.directions).split(self.settings.ranks, dim=-1)
        logits = torch.stack([torch.linalg.vector_norm(part, dim=-1) for part in parts], dim=-1)
        return top(logits, self.settings.top_k)


class PrototypeSettings(GateSettings):
    """Settings of a `PrototypeGate`."""

    kind: Literal["prototype"] = "prototype"
    width: int = Field(ge=1)
    experts: int = Field(ge=1)
    top_k: int = Field(ge=1)
    temperature: float = Field(default=1.0, gt=0)


class PrototypeGate(Gate):
    """Softmax over the ``top_k`` largest of ``|x · vₜ|``, divided by a temperature (Arrow, arXiv:2405.11157)."""

    settings_class = PrototypeSettings

    def __init__(self, settings: PrototypeSettings) -> None:
        super().__init__(settings)
        self.prototypes = nn.Parameter(torch.zeros(settings.experts, settings.width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the weights for every token; see `Gate.forward`."""
        return top(F.linear(x, self.prototypes).abs() / self.settings.temperature, self.settings.top_k)


class PooledSettings(GateSettings):
    """Settings of a `PooledGate`.

    ``places`` are the blocks that share the gate, in order; they are only needed for a code of the layer. ``causal``
    are those in which it decides for a token, whatever ``decide`` says.
    """

    kind: Literal["pooled"] = "pooled"
    width: int = Field(ge=1)
    experts: int = Field(ge=1)
    depth: Literal[0, 1, 2] = 2
    decide: Literal["sample", "token", "batch"] = "sample"
    code: int = Field(default=0, ge=0, multiple_of=2, description="numbers that encode the layer, beside the input")
    places: list[str] = Field(default_factory=list)
    causal: list[str] = Field(default_factory=list)


class PooledGate(Gate):
    """Weights of experts without a softmax: they may be negative, and need not add up to 1 (WEMoE, arXiv:2402.00433).

    .. math:: r = \\operatorname{mean}_{\\text{tokens}} \\big(V_2 \\operatorname{relu}(V_1 h + v_1) + v_2\\big)

    That is ``depth`` 2; with 1 it is one linear layer, with 0 a constant. The mean leaves padding out. ``decide:
    token`` takes no mean, for decoders, where it would read the future. ``decide: batch`` also takes the mean over the
    rows of a batch, as released code does: answers then depend on the other rows, so it is no default anywhere.
    """

    settings_class = PooledSettings
    codes: Tensor | None

    def __init__(self, settings: PooledSettings) -> None:
        super().__init__(settings)
        inputs, self._place = settings.width + settings.code, 0
        self._for_token = settings.decide == "token"
        if settings.depth == 0:
            self.weights = nn.Parameter(torch.zeros(settings.experts))
        else:
            hidden = [nn.Linear(inputs, settings.width), nn.ReLU()] if settings.depth == 2 else []
            outer = nn.Linear(settings.width if hidden else inputs, settings.experts)
            self.layers = nn.Sequential(*hidden, outer)
        codes = [layer_code(place, settings.code) for place in range(len(settings.places) if settings.code else 0)]
        self.register_buffer("codes", torch.stack(codes) if codes else None, persistent=False)

    @torch.no_grad()
    def start(self, initial: float, generator: torch.Generator) -> PooledGate:
        """Draw weights from N(0, 0.01²), so that every expert has about the weight ``initial``; return the gate."""
        for parameter in self.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, _SPREAD, generator=generator)
            else:
                parameter.zero_()
        last: Any = self if self.settings.depth == 0 else self.layers[-1]
        (last.weights if self.settings.depth == 0 else last.bias).fill_(initial)
        return self

    def placed(self, at: str) -> None:
        """Say which block the next input is of."""
        self._for_token = self.settings.decide == "token" or at in self.settings.causal
        if self.settings.code:
            self._place = self.settings.places.index(at)

    def forward(self, x: Float[Tensor, "batch *tokens width"], mask: Tensor | None = None) -> Tensor:
        """Return ``[batch, experts]``, or for ``decide: token`` ``[batch, *tokens, experts]``; see `Gate.forward`."""
        if self.settings.depth == 0:
            return self.weights.expand(*(x.shape[:-1] if self._for_token else x.shape[:1]), -1)
        if self.codes is not None:
            code = self.codes[self._place]
            x = torch.cat([x, code.expand(*x.shape[:-1], -1)], -1)
        weights: Tensor = self.layers(x)
        if self._for_token:
            return weights
        pooled = _mean(weights, mask)
        return pooled if self.settings.decide == "sample" else pooled.mean(0, keepdim=True).expand_as(pooled)


def _mean(weights: Float[Tensor, "batch *tokens experts"], mask: Tensor | None) -> Float[Tensor, "batch experts"]:
    """Return the mean over the tokens of each sample, without padding."""
    if weights.ndim == 2:
        return weights
    flat = weights.flatten(1, -2)
    if mask is None:
        return flat.mean(1)
    counted = mask.to(flat.dtype).unsqueeze(-1)
    return torch.where(counted > 0, flat, 0.0).sum(1) / counted.sum(1).clamp_min(1.0)


def layer_code(place: int, dims: int) -> Float[Tensor, " dims"]:
    """Return the sinusoidal code of a layer: ``sin(place / 10000^(2i/dims))`` and the cosines, in turn.

    >>> layer_code(0, 4)
    tensor([0., 1., 0., 1.])
    """
    rates = torch.exp(torch.arange(0, dims, 2) * (-math.log(10000.0) / max(dims, 1)))
    return torch.stack([torch.sin(place * rates), torch.cos(place * rates)], -1).flatten()


GATES: dict[str, type[Gate]] = {
    "constant": ConstantGate,
    "projection": ProjectionGate,
    "prototype": PrototypeGate,
    "pooled": PooledGate,
}
"""Kind -> class."""


def gate_of(settings: Any) -> Gate:
    """Return a gate, with parameters of zero, from its settings in ``tangora.json``.

    Raises:
        AdapterError: there is no such kind, or a setting is invalid.
    """
    kind = settings.get("kind") if isinstance(settings, dict) else None
    if kind not in GATES:
        fix = f"this version knows {', '.join(GATES)}: update tangora, or copy the adapter's folder again"
        raise AdapterError("no such gate", got=kind, where="modules.gates", fix=fix)
    try:
        return GATES[kind](GATES[kind].settings_class.model_validate(settings))
    except ValidationError as cause:
        what = f"the settings of a gate are invalid ({cause.errors()[0]['msg']})"
        raise AdapterError(what, got=settings, where="modules.gates", fix="copy the adapter's folder again") from None


def top(logits: Float[Tensor, "*tokens experts"], count: int) -> Float[Tensor, "*tokens experts"]:
    """Return the softmax over the largest logits of each token, and 0 for the others.

    This is the softmax over all, restricted to the largest weights and divided by their sum.

    Args:
        logits: of each expert.
        count: how many are kept; all of them if there are fewer.

    >>> top(torch.tensor([[0.0, 1.0, 1.0]]), 2)
    tensor([[0.0000, 0.5000, 0.5000]])
    """
    if count >= logits.shape[-1]:
        return logits.softmax(-1)
    values, places = logits.topk(count, dim=-1)
    return torch.zeros_like(logits).scatter(-1, places, values.softmax(-1))
