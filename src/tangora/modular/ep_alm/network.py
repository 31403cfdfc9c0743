"""`EpAlm`: connectors and a soft prompt, put into a backbone of two towers by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.errors import ModelError
from tangora.modular.ep_alm.decoders import arguments, kind_of, positions_in_front
from tangora.modular.ep_alm.masks import MaskName, as_taken, layer_masks
from tangora.modular.ep_alm.towers import Levels
from tangora.modular.network import Network
from tangora.tasks.language.logits import positions

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch.utils.hooks import RemovableHandle

__all__ = ["EpAlm", "Layout", "SoftPrompt"]


@dataclass(frozen=True)
class Layout:
    """What the modules are made of; its fields are JSON.

    Attributes:
        levels: k, the number of the tower's last blocks that are read.
        start, end: the range of the decoder's layers, ``start`` included and ``end`` not.
        shared: one connector for all levels.
        prompt: number of vectors of the soft prompt.
        mask: what the visual token sees.
        seen: d_v, the width of the tower.
        read: d_t, the width of the decoder.
    """

    levels: int
    start: int
    end: int
    shared: bool
    prompt: int
    mask: MaskName
    seen: int
    read: int

    @property
    def columns(self) -> int:
        """The number of columns in front of a question."""
        return self.prompt + (self.end > self.start)

    def level_of(self, layer: int) -> int:
        """Return the number of the level that a layer of the range reads: shallow layers read shallow levels.

        >>> layout = Layout(6, 19, 31, False, 10, "causal", 1024, 2560)
        >>> [layout.level_of(layer) for layer in (19, 20, 21, 30)]
        [0, 0, 1, 5]
        """
        return (layer - self.start) * self.levels // (self.end - self.start)

    def settings(self) -> dict[str, Any]:
        """Return the fields as JSON, to make the modules of again."""
        return asdict(self)


class SoftPrompt(nn.Module):
    """Vectors in front of a question: ``E``, or ``W₂ tanh(W₁ E + b₁) + b₂`` with an MLP.

    Args:
        count: number of vectors.
        width: of the decoder.
        mlp: whether they pass through an MLP. After the training its outputs are all that is needed.
    """

    def __init__(self, count: int, width: int, *, mlp: bool) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(count, width))
        layers = [nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)] if mlp else []
        self.mlp = nn.Sequential(*layers)

    def forward(self) -> Float[Tensor, "count width"]:
        """Return the vectors."""
        made: Tensor = self.mlp(self.vectors)
        return made


class EpAlm(Network):
    """Connectors ``C_i v + c_i`` of d_v × d_t numbers, and a soft prompt (eP-ALM, arXiv:2303.11403, §3).

    Args:
        layout: what it is made of.
        mlp: whether the soft prompt passes through an MLP, as in a training.
    """

    def __init__(self, layout: Layout, *, mlp: bool = False) -> None:
        super().__init__()
        self.layout = layout
        count = 0 if layout.end <= layout.start else 1 if layout.shared else layout.levels
        self.connectors = nn.ModuleList(nn.Linear(layout.seen, layout.read) for _ in range(count))
        self.prompt = SoftPrompt(layout.prompt, layout.read, mlp=mlp) if layout.prompt else None
        self._pass: _Pass | None = None

    def kept(self) -> dict[str, Tensor]:
        """Return the parameters of the function: the connectors', and the vectors that the prompt's MLP returns.

        All of them enter linearly. So the sum of the parameters of two networks puts the sums of their visual tokens
        and of their prompts into the decoder.
        """
        state = {f"connectors.{name}": value for name, value in self.connectors.state_dict().items()}
        if self.prompt is not None:
            with torch.no_grad():
                state["prompt.vectors"] = self.prompt()
        return state

    def tokens(self, levels: Float[Tensor, "levels rows d_v"]) -> Float[Tensor, "levels rows d_t"]:
        """Return the visual token of each level."""
        chosen = [self.connectors[0 if self.layout.shared else level] for level in range(self.layout.levels)]
        return torch.stack([connector(v) for connector, v in zip(chosen, levels, strict=True)])

    def connect(self, backbone: nn.Module) -> Iterator[RemovableHandle]:
        """See `Network.connect`.

        Raises:
            ModelError: the backbone has not two towers, or one of them is of an unknown kind.
        """
        yield from super().connect(backbone)
        if not self.layout.columns:  # no range and no prompt: nothing changes
            return
        decoder, tower = (getattr(backbone, name, None) for name in ("decoder", "vision"))
        if not isinstance(decoder, nn.Module) or not isinstance(tower, nn.Module):
            fix = "load it with family vision-language"
            raise ModelError("the backbone has no vision tower", got=type(backbone).__name__, where="base", fix=fix)
        self._kind, self._way = kind_of(decoder), str(getattr(decoder.config, "_attn_implementation", "eager"))
        self._levels = Levels(tower, self.layout.levels)
        if self.connectors:
            yield from self._levels.connect()
        yield backbone.register_forward_pre_hook(self._begin, with_kwargs=True)
        for number, block in enumerate(decoder.get_submodule(self._kind.blocks).children()):
            yield block.register_forward_pre_hook(_Layer(self, number), with_kwargs=True)
        yield backbone.register_forward_hook(self._end)

    def _begin(
        self, backbone: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        """Put columns in front of the question, unless a cache has them, and compute what they contain."""
        given = arguments(backbone, inputs, named)
        ids: Tensor = given["input_ids"]
        if self.layout.mask == "released":  # a cached visual token would not see the tokens that follow
            given |= {"use_cache": False, "past_key_values": None}
        cache, columns = given.get("past_key_values"), self.layout.columns
        first = cache is None or cache.get_seq_length() == 0
        mask = given.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        places = given.get("position_ids")
        places = positions(mask)[:, -ids.shape[1] :] if places is None else places
        front = mask.new_ones(len(mask), columns)
        seen = torch.cat([front, mask], 1)
        given["position_ids"] = positions_in_front(self._kind, places, columns, first=first)
        given["attention_mask"] = seen
        if first:
            given["input_ids"] = torch.cat([ids.new_zeros(len(ids), columns), ids], 1)
        self._pass = self._contents(given, seen, ids.shape[1]) if first else self._later(given, seen, ids.shape[1])
        return (), given

    def _contents(self, given: dict[str, Any], seen: Tensor, width: int) -> _Pass:
        made = self._later(given, seen, width)
        if self.connectors:
            if given.get("pixel_values") is None:
                fix = "pass pixel_values"
                raise ModelError("the rows have no images", where="pixel_values", fix=fix)
            made.tokens = self.tokens(self._levels.of(given["pixel_values"]))
        made.prompt = None if self.prompt is None else self.prompt()
        return made

    def _later(self, given: dict[str, Any], seen: Tensor, width: int) -> _Pass:
        queries = given["input_ids"].shape[1]
        before, inside = layer_masks(seen, queries, self.layout.mask)
        if not self.connectors:  # column 0 is the first vector of the prompt
            before = inside
        return _Pass(before, inside, width)

    def _end(self, backbone: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Take the logits of the columns in front away, and forget the batch."""
        assert self._pass is not None
        output.logits = output.logits[:, -self._pass.width :]
        self._pass = None


@dataclass
class _Pass:
    """One forward pass.

    Attributes:
        before, inside: masks of the layers before the range, and from it on.
        width: number of the question's columns.
        tokens: the visual token of each level; None if a cache has them.
        prompt: the soft prompt; None likewise.
    """

    before: Tensor
    inside: Tensor
    width: int
    tokens: Float[Tensor, "levels rows d_t"] | None = None
    prompt: Float[Tensor, "count d_t"] | None = None


@dataclass(frozen=True)
class _Layer:
    """Replaces the mask of one layer, and the hidden states of the columns in front."""

    network: EpAlm
    number: int

    def __call__(
        self, block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        now, layout = self.network._pass, self.network.layout
        assert now is not None, "a layer runs inside a forward pass of the backbone"
        given = arguments(block, inputs, named)
        hidden: Tensor = given["hidden_states"]
        mask = now.before if self.number < layout.start else now.inside
        given["attention_mask"] = as_taken(mask, self.network._way, hidden.dtype)
        if self.number == 0 and now.prompt is not None:
            hidden = _with_prompt(hidden, now.prompt, layout.columns)
        if now.tokens is not None and layout.start <= self.number < layout.end:
            token = now.tokens[layout.level_of(self.number)].to(hidden)
            hidden = torch.cat([token[:, None], hidden[:, 1:]], 1)
        given["hidden_states"] = hidden
        return (), given


def _with_prompt(hidden: Tensor, prompt: Tensor, columns: int) -> Tensor:
    """Return the input of the first layer with the soft prompt in front of the question."""
    vectors = prompt.to(hidden)[None].expand(len(hidden), -1, -1)
    return torch.cat([hidden[:, : columns - prompt.shape[0]], vectors, hidden[:, columns:]], 1)
