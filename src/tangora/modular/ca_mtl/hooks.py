"""`Conditions`: the hooks by which CA-MTL conditions an encoder, wherever the values of the task come from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from tangora.errors import ModelError
from tangora.modular.ca_mtl.encoder import encoder_of
from tangora.modular.ca_mtl.parts import biased, block_diagonal, film
from tangora.modular.network import Network

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from tangora.modular.ca_mtl.encoder import Encoder
    from tangora.modular.ca_mtl.parts import Parts

__all__ = ["Conditions", "refuse_attention"]

_KERNELS = ("eager", "sdpa")


class Conditions(Network):
    """The conditioned parts of an encoder. A derived class provides the values of the present task.

    Args:
        parts: what there is.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        self._attended: Tensor | None = None
        self._skipped: Tensor | None = None

    @abstractmethod
    def alignment_values(self) -> tuple[Tensor, Tensor]:
        """Return γ and β of the embeddings, each [width of embeddings]."""

    @abstractmethod
    def bias(self, layer: int) -> Tensor:
        """Return the blocks of a layer's attention bias, [L, c]."""

    @abstractmethod
    def norm_weight(self, name: str, weight: Tensor) -> Tensor:
        """Return the weight of a norm, [d].

        Args:
            name: one of `Parts.normed`.
            weight: the encoder's own.
        """

    @abstractmethod
    def squeezed(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the bottleneck of a layer, applied to hidden states [batch, tokens, d]."""

    @abstractmethod
    def top_norm_values(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the norm after the top layer's bottleneck, each [d]."""

    def connect(self, backbone: nn.Module) -> Iterator[RemovableHandle]:
        """Register the hooks of all parts; see `Network.connect`.

        Raises:
            ModelError: the backbone is of another kind or size, or its attention takes no bias.
        """
        yield from super().connect(backbone)
        encoder = encoder_of(backbone)
        self._refuse_other_sizes(encoder)
        if self.parts.attention:
            refuse_attention(backbone)
        yield from self._connect_layers(encoder)
        if self.parts.alignment:
            yield encoder.embeddings.register_forward_hook(self._align)
        if self.parts.has_top_norm:
            top, eps = encoder.layers[-1], encoder.norms(self.parts.layers - 1)["output"].eps
            yield top.get_submodule("attention").register_forward_hook(self._attended_to)
            yield top.register_forward_hook(partial(self._squeeze_top, eps))
        elif self.parts.bottleneck:
            for i, layer in enumerate(encoder.layers):
                yield layer.register_forward_hook(partial(self._squeeze, i))
            yield encoder.stack.register_forward_hook(self._last)

    def _connect_layers(self, encoder: Encoder) -> Iterator[RemovableHandle]:
        for i in range(self.parts.layers):
            if self.parts.attention:
                yield encoder.attention(i).register_forward_pre_hook(partial(self._attend, i), with_kwargs=True)
            for place, norm in encoder.norms(i).items():
                if (name := f"{i}_{place}") in self.parts.normed:
                    yield norm.register_forward_hook(partial(self._norm, name))

    def _refuse_other_sizes(self, encoder: Encoder) -> None:
        own = (self.parts.layers, self.parts.width, self.parts.embedded)
        if own != (given := (len(encoder.layers), encoder.width, encoder.embedded)):
            what = f"the modules are for layers, width and embeddings of {own}"
            raise ModelError(what, got=given, where="base.model", fix="give the base that they were trained with")

    def _align(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return film(output, *self.alignment_values())

    def _attend(
        self, layer: int, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Add the bias to the mask that transformers adds to ``QKᵀ/√d_h`` before the softmax."""
        hidden: Tensor = given[0] if given else named["hidden_states"]
        tokens = hidden.shape[1]
        if tokens > self.parts.length:
            what = "a text has more tokens than the attention bias"
            fix = f"load the base with max_length of at most {self.parts.length}"
            raise ModelError(what, got=tokens, where="length", fix=fix)
        bias = block_diagonal(self.bias(layer), tokens).to(hidden.dtype)
        if len(given) > 1:
            return (hidden, biased(given[1], bias), *given[2:]), named
        return given, {**named, "attention_mask": biased(named.get("attention_mask"), bias)}

    def _norm(self, name: str, norm: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = inputs
        return layer_norm(
            x, norm.normalized_shape, self.norm_weight(name, norm.weight).to(x.dtype), norm.bias.to(x.dtype), norm.eps
        )

    def _attended_to(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._attended = output[0]

    def _squeeze_top(self, eps: float, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Return ``CondLN(bottleneck(h) + a)``: the residual is the output a of the layer's attention, not h."""
        residual, self._attended = cast(Tensor, self._attended), None
        weight, bias = (value.to(output.dtype) for value in self.top_norm_values())
        return layer_norm(self.squeezed(self.parts.layers - 1, output) + residual, weight.shape, weight, bias, eps)

    def _squeeze(self, layer: int, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Add ``f_i = bottleneck_i(h_i + f_(i-1))`` to the side path; the next layer still reads h_i."""
        before = output if layer == 0 or self._skipped is None else output + self._skipped
        self._skipped = self.squeezed(layer, before)

    def _last(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Return the side path's end as the encoder's output."""
        end, self._skipped = self._skipped, None
        output.last_hidden_state = end
        return output


def refuse_attention(backbone: nn.Module) -> None:
    """Refuse a backbone whose attention takes no additive mask.

    Raises:
        ModelError: names the implementation.
    """
    kernel = getattr(getattr(backbone, "config", None), "_attn_implementation", None)
    if kernel not in _KERNELS:
        what = f"an attention bias needs the attention {' or '.join(_KERNELS)}"
        fix = "load the base with one of them, or set attention: false"
        raise ModelError(what, got=kernel, where="attention", fix=fix)


class Change:
    """Changes added to parameters until it is removed, when the values are as before, bit for bit.

    Raises:
        ModelError: a parameter is not in float32, so that the sum would be rounded.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], changes: dict[str, Tensor]) -> None:
        if odd := [name for name in changes if parameters[name].dtype != torch.float32]:
            fix = "set base.weights_dtype: float32"
            raise ModelError("changed weights must be held in float32", got=odd[0], where="base.weights_dtype", fix=fix)
        self._kept = [(parameters[name], parameters[name].detach().clone()) for name in changes]
        with torch.no_grad():
            for name, change in changes.items():
                parameters[name].add_(change)

    @torch.no_grad()
    def remove(self) -> None:
        """Put the values back."""
        for parameter, value in self._kept:
            parameter.copy_(value)
