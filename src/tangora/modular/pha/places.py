"""Where adapters lie: beside the feed-forward layers of encoder-decoders and of encoders of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from tangora.errors import ModelError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["ENCODERS", "ENCODER_DECODERS", "Halves", "Place", "halves_of"]

ENCODER_DECODERS = ("mt5", "t5", "umt5")
"""Types of models whose encoder has the shared adapters, and whose decoder has the generated ones."""

ENCODERS = (
    "bert",
    "camembert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
"""Types of models whose lower half has the shared adapters, and whose upper half has the generated ones."""


@dataclass(frozen=True)
class Place:
    """A feed-forward layer, and the form of the block around it.

    Attributes:
        module: the one with the hook.
        form: ``pre``: ``h + dropout(FFN(LN h))``; ``post``: ``LN(dropout(W a) + h)`` with h as its second argument;
            ``inner``: the FFN by itself, in ``LN(FFN(h) + h)``.
    """

    module: nn.Module
    form: Literal["pre", "post", "inner"]

    def connect(self, adapter: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Add an adapter's output to that of the layer; both get the same input.

        With a normalization before the layer: ``h + dropout(FFN(LN h)) + adapter(LN h)``. With one after it:
        ``LN(h + dropout(FFN h) + adapter(h))``.
        """
        connect: dict[str, Callable[[nn.Module, Any], RemovableHandle]] = {
            "pre": _before_the_layer,
            "post": _after_the_layer,
            "inner": _within,
        }
        return connect[self.form](self.module, adapter)


def _before_the_layer(module: nn.Module, adapter: Callable[[Tensor], Tensor]) -> RemovableHandle:
    def add(block: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # The norm is computed a second time: dropout follows the layer inside, so its own output comes too early.
        return output + adapter(block.layer_norm(inputs[0])).to(output.dtype)

    return module.register_forward_hook(add)


def _after_the_layer(module: nn.Module, adapter: Callable[[Tensor], Tensor]) -> RemovableHandle:
    def add(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        inner, hidden = inputs  # the sum is normalized inside, so that what is added to h is added to the sum
        return inner, hidden + adapter(hidden).to(hidden.dtype)

    return module.register_forward_pre_hook(add)


def _within(module: nn.Module, adapter: Callable[[Tensor], Tensor]) -> RemovableHandle:
    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + adapter(inputs[0]).to(output.dtype)

    return module.register_forward_hook(add)


@dataclass(frozen=True)
class Halves:
    """The two halves of a backbone.

    Attributes:
        shared: places of the adapters that all tasks share.
        generated: places of the adapters that are generated.
        width: of the hidden states.
        border: the module at whose end (``after``) or beginning the hidden states of the first half are found.
        after: whether it is the end.
    """

    shared: tuple[Place, ...]
    generated: tuple[Place, ...]
    width: int
    border: nn.Module
    after: bool


def halves_of(backbone: nn.Module) -> Halves:
    """Return the two halves of a backbone.

    An encoder-decoder has its encoder and its decoder. An encoder has the lower and the upper half of its layers; of
    an odd number, the upper half has one more.

    Raises:
        ModelError: the model is of another type.
    """
    model: Any = backbone
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in ENCODER_DECODERS:
        lower, upper = ([Place(b.layer[-1], "pre") for b in m.block] for m in (model.encoder, model.decoder))
        return Halves(tuple(lower), tuple(upper), int(model.config.d_model), model.encoder, True)
    if kind in ENCODERS:
        layers, places = _encoder(model, kind)
        middle = len(layers) // 2
        width = int(model.config.hidden_size)
        return Halves(tuple(places[:middle]), tuple(places[middle:]), width, layers[middle], False)
    what = "adapters are generated for the feed-forward layers of known types of models"
    fix = f"choose a model of type {', '.join((*ENCODER_DECODERS, *ENCODERS))}, or another mode"
    raise ModelError(what, got=kind or type(backbone).__name__, where="base.model", fix=fix)


def _encoder(model: Any, kind: str) -> tuple[Sequence[nn.Module], list[Place]]:
    if kind == "distilbert":
        return model.transformer.layer, [Place(layer.ffn, "inner") for layer in model.transformer.layer]
    return model.encoder.layer, [Place(layer.output, "post") for layer in model.encoder.layer]
